"""Sampled answers with drafts are distributed as without, on the default model; 100,000 tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
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
SHUFFLES = 999
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


def matrix(drawn: list[Sample]) -> np.ndarray:
    """Tokens [samples, NEW]; -1 behind the end of an answer."""
    rows = np.full((len(drawn), NEW), -1)
    for row, sample in zip(rows, drawn, strict=True):
        row[: len(sample.tokens)] = sample.tokens
    return rows


def statistics(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Chi-square of homogeneity of every position's tokens, for each row of `labels`.

    `labels` [ways, samples of both] says by +1 and -1 which sample counts as whose; as many of
    each, so that a cell's expected counts are halves of its total.
    """
    both = np.concatenate([ours, theirs])  # [2·SAMPLES, NEW]
    cell = both + 1 + (both.max() + 2) * np.arange(NEW)
    _, cell = np.unique(cell, return_inverse=True)
    hits = np.zeros((len(both), cell.max() + 1), np.float32)  # [2·SAMPLES, cells]
    hits[np.arange(len(both))[:, None], cell.reshape(both.shape)] = 1
    differences = labels @ hits
    return np.asarray((differences**2 / hits.sum(0)).sum(1))


def chance(
    plain: list[list[Sample]], model: CausalLM, drafter: Drafter | None
) -> tuple[float, int]:
    """How often a random split of the same samples looks at least as different; and tokens.

    Positions of an answer depend on each other, samples do not: a permutation test over samples
    within each prompt is exact without knowing how the statistic is distributed.
    """
    random = np.random.default_rng(0)
    found, tokens = np.zeros(1 + SHUFFLES), 0
    for ours, theirs in zip(answers(model, 20_000, drafter), plain, strict=True):
        labels = np.repeat([[1.0, -1.0]], SAMPLES, axis=1).astype(np.float32)
        shuffled = random.permuted(np.repeat(labels, SHUFFLES, axis=0), axis=1)
        found += statistics(matrix(ours), matrix(theirs), np.concatenate([labels, shuffled]))
        tokens += sum(len(sample.tokens) for sample in ours)
    return float((found >= found[0]).mean()), tokens


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
    p, tokens = chance(plain, model, drafter)
    print(f"{way}: {tokens} tokens, p = {p:.3f}")
    assert tokens >= TOKENS
    assert p > 0.001


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
    p, _ = chance(plain, model, PromptLookup())
    print(f"planted: p = {p:.3f}")
    assert p <= 0.001


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
