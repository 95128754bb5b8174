"""Prompts that arrive at random get the answers of separate runs, whatever sits beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM
from models.generation import Answers, Generator, Request, Sampling, generate
from models.generation import generator as generator_module
from models.generation import schedule as schedule_module
from models.generation.slots import Group, Slots
from tests.models import tiny

pytestmark = pytest.mark.null

SCHEDULES = range(24)
EOS = (7, 21, 33)
SHAPES = [(1, 4), (2, 2), (3, 1), (2, 3), (1, 1)]
SAMPLINGS = [Sampling(0), Sampling(0.9, top_k=30, top_p=0.95), Sampling(1.3), Sampling(1.0, 5)]


def text(tokens: Sequence[int]) -> str:
    """A letter a token, for stop strings."""
    return "".join(chr(ord("0") + token) for token in tokens)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


Result = tuple[list[int], str | None, str | None]


@pytest.fixture(scope="module")
def alone() -> Callable[[Request], list[Result]]:
    """What a request gives by itself over the smallest cache, on a model of its own.

    Where each sample has a seed, each is run by itself.
    """
    apart = tiny.model()
    known: dict[str, list[Result]] = {}

    def run(request: Request) -> list[Result]:
        name = repr(request)
        if name not in known:
            together = [(request.seed, request.samples)]
            if not isinstance(request.seed, int):  # a seed a sample: as many runs
                together = [(seed, 1) for seed in request.seed]
            known[name] = [
                (each.tokens, each.finish, each.text)
                for seed, samples in together
                for each in generate(
                    apart,
                    request.prompt,
                    samples=samples,
                    max_new_tokens=request.max_new_tokens,
                    sampling=request.sampling,
                    seed=seed,
                    eos_token_ids=EOS,
                    stop=request.stop,
                    detokenise=text,
                ).samples
            ]
        return known[name]

    return run


def draw_request(rng: random.Random, shape: CacheShape, prompts: list[list[int]]) -> Request:
    samples = rng.choice([1, 1, 2, 3, 5, 7])
    seed: int | list[int] = rng.randrange(2**64)
    if rng.random() < 0.3:
        seed = [rng.randrange(2**64) for _ in range(samples)]
    return Request(
        prompt=rng.choice(prompts),
        samples=samples,
        max_new_tokens=rng.randint(1, shape.S_dec + 1),
        sampling=rng.choice(SAMPLINGS),
        seed=seed,
        stop=[text([rng.randrange(50)]) for _ in range(rng.choice([0, 0, 2]))],
        groups=rng.choice([None, None, 1]),
    )


def draw_schedule(number: int) -> tuple[CacheShape, list[Request]]:
    rng = random.Random(number)
    G, r = rng.choice(SHAPES)
    shape = CacheShape(G, r, S_ctx=rng.randint(6, 12), S_dec=rng.randint(4, 9))
    prompts = [[rng.randrange(50) for _ in range(rng.randint(1, shape.S_ctx))] for _ in range(4)]
    return shape, [draw_request(rng, shape, prompts) for _ in range(rng.randint(3, 7))]


def run_schedule(model: CausalLM, number: int) -> tuple[list[Answers], Generator]:
    """Requests that arrive one by one, some steps apart."""
    shape, waiting = draw_schedule(number)
    rng = random.Random(number)
    generator, submitted = Generator(model, shape, EOS, text), []
    busy = False
    while waiting or busy:
        while waiting and (rng.random() < 0.4 or not busy):
            submitted.append(generator.submit(waiting.pop(0)))
            busy = True
        busy = generator.step()
    return submitted, generator


def results(answers: Answers) -> list[Result]:
    return [(each.tokens, each.finish, each.text) for each in answers.samples]


@pytest.fixture(scope="module")
def runs(model: CausalLM) -> list[tuple[list[Answers], Generator]]:
    return [run_schedule(model, number) for number in SCHEDULES]


@pytest.mark.parametrize("number", SCHEDULES)
def test_same_tokens_as_separate_runs(
    runs: list[tuple[list[Answers], Generator]],
    alone: Callable[[Request], list[Result]],
    number: int,
) -> None:
    submitted, _ = runs[number]
    for answers in submitted:
        assert answers.done
        assert results(answers) == alone(answers.request)


def test_schedules_use_what_they_are_to_test(
    runs: list[tuple[list[Answers], Generator]],
) -> None:
    copies = refills = reused = 0
    finishes: set[str | None] = set()
    for submitted, generator in runs:
        count = generator.occupancy
        copies += count.copies
        samples = [sample for answers in submitted for sample in answers.samples]
        refills += len(samples) > generator.shape.rows
        reused += count.prefills < len(submitted)
        finishes |= {sample.finish for sample in samples}
    assert min(copies, refills, reused) >= 5
    assert finishes == {"eos", "stop", "length"}


def suffix_length_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refilled row goes on from the length of its former sample."""
    step = Slots.step

    def planted(self: Any) -> tuple[Tensor, Tensor]:
        tokens, suffix_len = step(self)
        if not hasattr(self, "lengths"):
            self.lengths = [0] * self.shape.rows
        for row, _, _ in self.live():
            self.lengths[row] = min(self.lengths[row] + 1, self.shape.S_dec)
            suffix_len.view(-1)[row] = self.lengths[row]
        return tokens, suffix_len

    monkeypatch.setattr(Slots, "step", planted)


def token_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refilled row is fed the last token of its former sample."""
    step = Slots.step

    def planted(self: Any) -> tuple[Tensor, Tensor]:
        tokens, suffix_len = step(self)
        last = self.__dict__.setdefault("last", {})
        for row, _, live in self.live():
            fed = tokens.view(-1)[row].item()
            if len(live.sample.tokens) == 1 and row in last:
                tokens.view(-1)[row] = last[row]
            last[row] = fed
        return tokens, suffix_len

    monkeypatch.setattr(Slots, "step", planted)


def context_length_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group keeps the length of its first prompt."""
    context_len = Slots.context_len

    def planted(self: Any) -> Tensor:
        lengths = context_len(self)
        first = self.__dict__.setdefault("first", {})
        for j, length in enumerate(lengths.tolist()):
            if length:
                lengths[j] = first.setdefault(j, length)
        return lengths

    monkeypatch.setattr(Slots, "context_len", planted)


def prefills_group_0(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Generator._call
    monkeypatch.setattr(
        Generator, "_call", lambda self, t, c, s, group: call(self, t, c, s, group and 0)
    )


def logits_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples begin from the logits of the prompt that was in the group before."""
    load = Generator._load

    def planted(self: Generator, group: Group, prompt: tuple[int, ...]) -> None:
        before = group.logits
        load(self, group, prompt)
        group.logits = group.logits if before is None else before

    monkeypatch.setattr(Generator, "_load", planted)


def context_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalLM, "copy_context", lambda self, source, targets: None)


def random_numbers_of_sample_0(monkeypatch: pytest.MonkeyPatch) -> None:
    uniforms = schedule_module.randomness.uniforms
    monkeypatch.setattr(
        schedule_module.randomness,
        "uniforms",
        lambda stream, first, steps: uniforms((stream[0], 0), first, steps),
    )


def one_sampling_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = generator_module.choose_each
    monkeypatch.setattr(
        generator_module,
        "choose_each",
        lambda logits, u, samplings: choose(logits, u, [SAMPLINGS[1]] * len(samplings)),
    )


@pytest.mark.parametrize(
    "plant",
    [
        suffix_length_survives,
        token_survives,
        context_length_survives,
        prefills_group_0,
        logits_survive,
        context_is_not_copied,
        random_numbers_of_sample_0,
        one_sampling_for_all,
    ],
)
def test_planted_errors_are_seen(
    model: CausalLM,
    alone: Callable[[Request], list[Result]],
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    schedules = [draw_schedule(number)[1] for number in SCHEDULES]
    expected = [[alone(request) for request in requests] for requests in schedules]
    plant(monkeypatch)
    assert any(
        [results(answers) for answers in run_schedule(model, number)[0]] != expected[number]
        for number in SCHEDULES
    )
