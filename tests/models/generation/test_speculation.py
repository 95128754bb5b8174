"""Drafts change how many steps an answer takes, and not one of its tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from models.causal_lm import CacheShape, CausalLM
from models.generation import (
    Drafter,
    DraftModel,
    Generator,
    PromptLookup,
    Request,
    Sample,
    Sampling,
    Speculation,
    generate,
)
from models.generation import draft_model as draft_module
from models.generation.drafts import _Index
from models.generation.inside import Wanted
from models.generation.slots import Slots
from nki_kernels.errors import InputError
from tests.models import tiny
from tests.models.generation.test_batching import InterruptAtLine
from tests.models.generation.test_schedules import EOS, draw_schedule, text

pytestmark = pytest.mark.null

PROMPT = [3, 14, 15, 9, 26, 5, 3, 14, 15, 9]
NEW = 14
WARM = Sampling(temperature=0.7, top_k=30, top_p=0.95)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


def similar() -> CausalLM:
    """A draft model that often agrees with `tiny.model()`, and often does not."""
    draft = tiny.model()
    other = dict(tiny.model(1).named_parameters())
    for name, weight in draft.named_parameters():
        weight.data.lerp_(other[name], 0.1)
    return draft


class Scripted:
    """Proposes what it is told: the tokens of known answers, some of them changed."""

    def __init__(self, answers: list[list[int]], wrong: float, seed: int = 0) -> None:
        self.answers, self.wrong, self.rng = answers, wrong, random.Random(seed)

    def allocate(self, shape: CacheShape) -> None:
        pass

    def forget(self) -> None:
        pass

    def propose(self, slots: Slots, most: Mapping[int, int]) -> dict[int, list[int]]:
        drafts = {}
        for row, _, live in slots.live():
            length = len(live.sample.tokens)
            known = self.answers[live.sample.index][length : length + most[row]]
            drafts[row] = [
                token if self.rng.random() > self.wrong else (token + 1) % 50 for token in known
            ]
        return drafts


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "lookup": lambda: PromptLookup(3, 1),
    "same model": lambda: DraftModel(tiny.model(), tiny.CONFIG),
    "similar model": lambda: DraftModel(similar(), tiny.CONFIG),
    "other model": lambda: DraftModel(tiny.model(1), tiny.CONFIG),
}


def draw(model: CausalLM, samples: int, **changes: Any) -> list[Sample]:
    options: dict[str, Any] = {"max_new_tokens": NEW, "sampling": WARM, "seed": 3}
    return generate(model, PROMPT, samples=samples, **(options | changes)).samples


def results(samples: list[Sample]) -> list[tuple[list[int], str | None, str | None]]:
    return [(sample.tokens, sample.finish, sample.text) for sample in samples]


@pytest.mark.parametrize("attention", ["bifurcated", "ordinary"])
@pytest.mark.parametrize("sampling", [WARM, Sampling(0)], ids=["sampled", "greedy"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_same_tokens(model: CausalLM, drafter: str, sampling: Sampling, attention: Any) -> None:
    for samples, K in ((1, 1), (3, 3)) if attention == "bifurcated" else ((2, 20),):
        options: dict[str, Any] = {"sampling": sampling, "attention": attention, "seed": K}
        plain = draw(model, samples, **options)
        drafted = draw(model, samples, **options, speculation=Speculation(DRAFTERS[drafter](), K))
        assert results(drafted) == results(plain)
        for one, other in zip(drafted, plain, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_same_tokens_where_answers_end(model: CausalLM, drafter: str) -> None:
    options: dict[str, Any] = {"detokenise": text, "eos_token_ids": EOS, "stop": [text([11])]}
    plain = draw(model, 24, **options)
    drafted = draw(model, 24, **options, speculation=Speculation(DRAFTERS[drafter](), 4))
    assert results(drafted) == results(plain)
    assert {sample.finish for sample in plain} == {"eos", "stop", "length"}


@pytest.mark.parametrize("changes", [{"windows": (4, None)}, {"attention_softcap": 2.0}])
def test_same_tokens_with_windows_and_soft_caps(changes: dict[str, Any]) -> None:
    model = tiny.model(**changes)
    plain = draw(model, 4)
    known = Scripted([sample.tokens for sample in plain], wrong=0.3)
    assert results(draw(model, 4, speculation=Speculation(known, 5))) == results(plain)


@pytest.mark.parametrize("wrong", [0.0, 0.25, 1.0])
def test_accept_lengths_are_each_samples_own(model: CausalLM, wrong: float) -> None:
    plain = draw(model, 6)
    known = Scripted([sample.tokens for sample in plain], wrong)
    result = generate(
        model, PROMPT, samples=6, max_new_tokens=NEW, sampling=WARM, seed=3,
        speculation=Speculation(known, 4),
    )  # fmt: skip
    assert results(result.samples) == results(plain)
    accepted = [[taken for _, taken in sample.drafts] for sample in result.samples]
    for sample, taken in zip(result.samples, accepted, strict=True):
        # the prompt gives the first token, each step what it accepts and one more
        assert 1 + sum(each + 1 for each in taken) == len(sample.tokens)
        assert all(most >= each for most, each in sample.drafts)
    if wrong == 0.0:
        assert accepted == [[4, 4, 2]] * 6  # 13 tokens in steps of 5, 5 and 3
    elif wrong == 1.0:
        assert accepted == [[0] * (NEW - 1)] * 6
    else:
        assert len({tuple(each) for each in accepted}) == 6
    assert result.timings.steps == max(map(len, accepted))


def test_bytes_are_those_of_the_steps_taken(model: CausalLM) -> None:
    """b = 1, m_c = 10, K = 4, all right: steps read 5, 10, 13 suffix positions, write 5, 5, 3."""
    known = Scripted([sample.tokens for sample in draw(model, 1)], 0.0)
    result = generate(
        model, PROMPT, samples=1, max_new_tokens=NEW, sampling=WARM, seed=3,
        speculation=Speculation(known, 4),
    )  # fmt: skip
    assert result.shape.S_dec == NEW - 1 + 4
    unit = 2 * 2 * 2 * 12 * 4
    assert result.traffic.bifurcated.read_live == pytest.approx(unit * (3 * 10 + 5 + 10 + 13) / 3)
    assert result.traffic.written == pytest.approx(unit * 13 / 3)


def test_a_draft_model_that_agrees_saves_steps(model: CausalLM) -> None:
    def steps(drafter: Drafter) -> int:
        return generate(
            model, PROMPT, samples=4, max_new_tokens=NEW, sampling=WARM, seed=3,
            speculation=Speculation(drafter, 4),
        ).timings.steps  # fmt: skip

    same, near, far = (steps(DRAFTERS[f"{each} model"]()) for each in ("same", "similar", "other"))
    assert same == 3
    assert same < near < far <= NEW - 1


def test_prompt_lookup_finds_the_latest_and_longest() -> None:
    sizes = range(3, 0, -1)
    prompt = _Index(sizes)
    prompt.extend([1, 2, 3, 4, 9, 2, 3, 5, 6])
    index = _Index(sizes, prompt)
    assert index.continuation(3) == []  # 6 has not been seen before
    index.extend([2])
    assert index.continuation(2) == [3, 5]
    index.extend([3])
    assert index.continuation(9) == [5, 6, 2, 3]  # through the prompt's end, to what is known
    index.extend([4])
    assert index.continuation(2) == [9, 2]  # 2 3 4, and not 3 or 4
    index.extend([7, 2, 3])
    assert index.continuation(1) == [4]  # its own text is the latest


def schedule(
    model: CausalLM, number: int, speculation: Speculation | None
) -> list[list[tuple[list[int], str | None, str | None]]]:
    """Requests that arrive one by one, some steps apart."""
    shape, waiting = draw_schedule(number)
    drafts = speculation.draft_tokens if speculation else 0
    rng = random.Random(number)
    generator = Generator(model, replace(shape, S_dec=shape.S_dec + drafts), EOS, text, speculation)
    submitted, busy = [], False
    while waiting or busy:
        while waiting and (rng.random() < 0.4 or not busy):
            submitted.append(generator.submit(waiting.pop(0)))
            busy = True
        busy = generator.step()
    return [results(answers.samples) for answers in submitted]


@pytest.mark.parametrize("drafter", ["lookup", "similar model"])
def test_continuous_batching(model: CausalLM, drafter: str) -> None:
    for number in range(8):
        K = 1 + number % 4
        expected = schedule(model, number, None)
        assert schedule(model, number, Speculation(DRAFTERS[drafter](), K)) == expected


def takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Generator._take

    def planted(self: Generator, live: Any, drawn: Any, draft: Any) -> None:
        right = [(token, logprob) for token, (_, logprob) in zip(draft, drawn, strict=False)]
        take(self, live, [*right, drawn[-1]], draft)

    monkeypatch.setattr(Generator, "_take", planted)


def takes_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Generator._take

    def planted(self: Generator, live: Any, drawn: Any, draft: Any) -> None:
        told = [token for token, _ in drawn]
        first = next((t for t, each in enumerate(draft) if each != told[t]), None)
        if first is not None:
            draft = [*draft[:first], told[first], *draft[first + 1 :]]
        take(self, live, drawn, draft)

    monkeypatch.setattr(Generator, "_take", planted)


def one_number_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verified tokens share the random number of the first."""
    wanted = Generator._wanted

    def planted(live: Any, draft: Any) -> Wanted:
        right = wanted(live, draft)
        return replace(right, u=[right.u[0]] * len(right.u))

    monkeypatch.setattr(Generator, "_wanted", staticmethod(planted))


def keeps_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of drafts that were not taken stay in the draft of the next step."""
    feed = Slots.feed

    def planted(self: Slots, new: Any, n: int) -> Any:
        tokens, lengths = feed(self, new, n)
        return tokens, (lengths + (lengths > n).int()).clamp(max=self.shape.S_dec)

    monkeypatch.setattr(Slots, "feed", planted)


@pytest.mark.parametrize(
    "plant", [takes_everything, takes_one_too_many, one_number_a_step, keeps_its_length]
)
def test_planted_errors_are_seen(
    model: CausalLM,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    plain = draw(model, 1)
    plant(monkeypatch)
    known = Scripted([sample.tokens for sample in plain], wrong=0.3)
    assert results(draw(model, 1, speculation=Speculation(known, 3))) != results(plain)


class Checked(DraftModel):
    """Compares its drafts with those of a draft model that begins anew."""

    differ = 0

    def allocate(self, shape: CacheShape) -> None:
        super().allocate(shape)
        self.shape = shape

    def propose(self, slots: Slots, most: Mapping[int, int]) -> dict[int, list[int]]:
        drafts = super().propose(slots, most)
        anew = DraftModel(similar(), tiny.CONFIG)
        anew.allocate(self.shape)
        self.differ += drafts != anew.propose(slots, most)
        return drafts


def claims_to_know_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of a row of drafts that were all taken was never fed."""

    def planted(self: DraftModel, slots: Slots) -> None:
        self._rows = {
            row: draft_module._Row(live, live.sample.tokens[:-1]) for row, _, live in slots.live()
        }

    monkeypatch.setattr(DraftModel, "_roll_back", planted)


@pytest.mark.parametrize("plant", [None, claims_to_know_everything])
def test_the_draft_models_cache_is_rolled_back(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch, plant: Any
) -> None:
    """Drafts cannot spoil tokens, so a wrong cache shows in the drafts alone."""
    if plant is not None:
        plant(monkeypatch)
    drafter = Checked(similar(), tiny.CONFIG)
    samples = draw(model, 4, speculation=Speculation(drafter, 2))
    assert {taken for sample in samples for _, taken in sample.drafts} == {0, 1, 2}
    assert (drafter.differ == 0) == (plant is None)


def test_an_interrupted_step_is_taken_again(model: CausalLM) -> None:
    base = Request(PROMPT, samples=3, max_new_tokens=6, sampling=WARM, seed=5)
    expected = results(draw(model, 3, max_new_tokens=6, seed=5))
    for drafter in ("lookup", "similar model"):
        for at in (*range(40, 1500, 211), None):
            speculation = Speculation(DRAFTERS[drafter](), 3)
            generator = Generator(model, CacheShape(1, 2, 12, 9), speculation=speculation)
            answers = generator.submit(base)
            try:
                with InterruptAtLine(at) as interrupt:
                    while generator.step():
                        pass
            except KeyboardInterrupt:
                while generator.step():
                    pass
            assert results(answers.samples) == expected
        assert interrupt.lines > 1500


def test_changed_weights_are_not_met_by_old_contexts() -> None:
    draft, model = similar(), tiny.model()
    speculation = Speculation(DraftModel(draft, tiny.CONFIG), 3)
    generator = Generator(model, CacheShape(1, 4, 12, NEW + 3), speculation=speculation)
    request = Request(PROMPT, samples=4, max_new_tokens=NEW, sampling=WARM, seed=3)
    generator.run_all([request])
    draft.load_state_dict(model.state_dict(), strict=False)
    before = generator.occupancy.accepted
    proposed = generator.occupancy.proposed
    generator.run_all([request])
    # the draft model is the model itself now
    assert generator.occupancy.accepted - before == generator.occupancy.proposed - proposed > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: Speculation(PromptLookup(), 0), "draft_tokens is 0; it must be 1 or more"),
        (lambda m: PromptLookup(1, 2), "compares 1 down to 2"),
        (lambda m: PromptLookup(3, 0), "compares 3 down to 0"),
        (
            lambda m: DraftModel(m, replace(tiny.CONFIG, vocab_size=51)),
            "draft model's vocabulary has 50 tokens and the model's 51",
        ),
        (
            lambda m: DraftModel(m, replace(tiny.CONFIG, max_position=256)),
            "takes 128 positions .* and the model 256",
        ),
    ],
)
def test_refused(model: CausalLM, make: Callable[[CausalLM], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(model)


def test_drafts_need_slots(model: CausalLM) -> None:
    generator = Generator(
        model, CacheShape(1, 1, 12, NEW), speculation=Speculation(PromptLookup(), 2)
    )
    request = Request(PROMPT, max_new_tokens=NEW)
    with pytest.raises(
        InputError, match=r"15 suffix positions \(2 of them for drafts\) do not fit"
    ):
        generator.submit(request)
    generator.run_all([replace(request, max_new_tokens=NEW - 1)])
