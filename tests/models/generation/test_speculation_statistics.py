"""Sampled answers with drafts are distributed as without, on the default model; 100,000 tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from models.causal_lm import CausalLM, Tokenizer, load, load_config
from models.generation import (
    Drafter,
    DraftModel,
    PromptLookup,
    Sample,
    Sampling,
    Speculation,
    generate,
)
from models.pretrained import DEFAULT_MODEL, example_prompt

pytestmark = [pytest.mark.null, pytest.mark.long]

DRAFT = DEFAULT_MODEL.parent / "draft"
TOKENS = 100_000
SAMPLES, NEW, K = 256, 24, 4
PROMPTS = 25
Cells = Counter[tuple[int, int]]  # (position, token)
WARM = Sampling(temperature=1.1, top_p=0.98)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return load(DEFAULT_MODEL, dtype="float32")


@pytest.fixture(scope="module")
def plain(model: CausalLM) -> list[list[Sample]]:
    return list(answers(model, 10_000, None))


def answers(model: CausalLM, seed: int, drafter: Drafter | None) -> Iterator[list[Sample]]:
    """Samples of each prompt; at least TOKENS in all."""
    tokenizer = Tokenizer.load(DEFAULT_MODEL)
    for i in range(PROMPTS):
        yield generate(
            model,
            tokenizer.encode(example_prompt(i)),
            samples=SAMPLES,
            max_new_tokens=NEW,
            sampling=WARM,
            seed=seed + i,
            eos_token_ids=tokenizer.eos_token_ids,
            speculation=None if drafter is None else Speculation(drafter, K),
        ).samples


def cells(drawn: list[Sample]) -> Cells:
    """How often a position has a token."""
    return Counter((i, token) for sample in drawn for i, token in enumerate(sample.tokens))


def statistic(
    ours: Counter[tuple[int, int]], theirs: Counter[tuple[int, int]]
) -> tuple[float, int]:
    """Chi-square of homogeneity of each position's tokens, rare ones together; and its degrees.

    Positions of an answer depend on each other, so the sum over them spreads wider than a
    chi-square variable of as many degrees; `test_distributed_as_plain_sampling` shows how wide.
    """
    chi2, degrees = 0.0, 0
    for position in range(NEW):
        table: dict[int, list[int]] = {}
        for column, counts in enumerate((ours, theirs)):
            for (at, token), count in counts.items():
                if at == position:
                    table.setdefault(token, [0, 0])[column] += count
        common = [row for row in table.values() if sum(row) >= 20]
        rest = [row for row in table.values() if sum(row) < 20]
        if rest:
            common.append([sum(row[0] for row in rest), sum(row[1] for row in rest)])
        totals = [sum(row[column] for row in common) for column in (0, 1)]
        if len(common) < 2 or not all(totals):
            continue
        for row in common:
            for column in (0, 1):
                expected = sum(row) * totals[column] / sum(totals)
                chi2 += (row[column] - expected) ** 2 / expected
        degrees += len(common) - 1
    return chi2, degrees


def excess(
    plain: list[list[Sample]], model: CausalLM, drafter: Drafter | None
) -> tuple[float, int]:
    """Standard deviations that the statistic of all prompts lies above its mean; and tokens."""
    chi2, degrees, tokens = 0.0, 0, 0
    for ours, theirs in zip(answers(model, 20_000, drafter), plain, strict=True):
        each, free = statistic(cells(ours), cells(theirs))
        chi2, degrees = chi2 + each, degrees + free
        tokens += sum(len(sample.tokens) for sample in ours)
    return (chi2 - degrees) / (2 * degrees) ** 0.5, tokens


def make_drafter(way: str) -> Drafter | None:
    if way == "draft model":
        return DraftModel(load(DRAFT, dtype="float32"), load_config(DEFAULT_MODEL))
    return PromptLookup() if way == "lookup" else None


@pytest.mark.parametrize("way", ["plain", "lookup", "draft model"])
def test_distributed_as_plain_sampling(
    model: CausalLM, plain: list[list[Sample]], way: str
) -> None:
    """Other seeds than the plain answers', so that nothing but the distribution agrees."""
    drafter = make_drafter(way)
    deviations, tokens = excess(plain, model, drafter)
    print(f"{way}: {tokens} tokens, chi-square {deviations:+.2f} standard deviations from its mean")
    assert tokens >= TOKENS
    assert abs(deviations) < 4


def test_the_test_sees_a_small_bias(
    model: CausalLM, plain: list[list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: one draft in twenty is taken although the model drew another token."""
    from models.generation.generator import Generator

    take, seen = Generator._take, [0]

    def planted(self, live, drawn, draft):  # type: ignore[no-untyped-def]
        for t in range(len(draft)):
            if drawn[t][0] != draft[t]:
                seen[0] += 1
                if seen[0] % 20 == 0:
                    drawn = [*drawn[:t], (draft[t], drawn[t][1]), *drawn[t + 1 :]]
                break
        take(self, live, drawn, draft)

    monkeypatch.setattr(Generator, "_take", planted)
    deviations, _ = excess(plain, model, PromptLookup())
    print(f"planted: {deviations:+.2f} standard deviations")
    assert deviations > 8


@pytest.mark.parametrize("way", ["lookup", "draft model"])
def test_same_seed_same_tokens(model: CausalLM, plain: list[list[Sample]], way: str) -> None:
    """All but what rounding of the logits decides: steps of other widths round otherwise."""
    drafter = make_drafter(way)
    differ = samples = tokens = 0
    for ours, theirs in zip(answers(model, 10_000, drafter), plain, strict=True):
        samples += len(ours)
        tokens += sum(len(sample.tokens) for sample in ours)
        differ += sum(a.tokens != b.tokens for a, b in zip(ours, theirs, strict=True))
    print(f"{way}: {differ} of {samples} samples differ, {tokens} tokens")
    assert tokens >= TOKENS
    assert differ <= samples / 1000
