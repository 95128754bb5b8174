"""The life of requests in a generator: rows, groups, callbacks, interrupts, and what is stored."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
import torch

from models.causal_lm import CacheShape, CausalLM
from models.generation import Answers, Generator, Request, Sampling, Token, generate
from models.generation.traffic import position_bytes
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

PROMPT = [3, 14, 15, 9, 26, 5]
OTHER = [8, 9, 7]
NEW = 6
BASE = Request(PROMPT, samples=4, max_new_tokens=NEW, sampling=Sampling(0.9, 30, 0.95), seed=3)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


@pytest.fixture
def generator(model: CausalLM) -> Generator:
    return Generator(model, CacheShape(G=2, r=2, S_ctx=8, S_dec=NEW))


def tokens(answers: Answers) -> list[list[int]]:
    return [sample.tokens for sample in answers.samples]


def alone(request: Request, eos: tuple[int, ...] = ()) -> list[list[int]]:
    result = generate(
        tiny.model(),
        request.prompt,
        samples=request.samples,
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        seed=request.seed,
        eos_token_ids=eos,
    )
    return [sample.tokens for sample in result.samples]


def test_run_all_keeps_the_order(generator: Generator) -> None:
    requests = [replace(BASE, samples=s, max_new_tokens=m) for s, m in ((3, 6), (1, 1), (5, 4))]
    for _ in range(2):  # the second time over the first one's dead slots
        answers = generator.run_all(requests)
        assert [each.request for each in answers] == requests
        assert [tokens(each) for each in answers] == [alone(each) for each in requests]
    assert generator.run_all([]) == []


def test_one_sample_after_another(model: CausalLM) -> None:
    """n = 5 in a single row: the prompt is read once, each sample starts from its logits."""
    generator = Generator(model, CacheShape(1, 1, len(PROMPT), NEW))
    request = replace(BASE, samples=5)
    assert tokens(generator.run_all([request])[0]) == alone(request)
    count = generator.occupancy
    assert (count.prefills, count.copies, count.steps) == (1, 0, 5 * (NEW - 1))
    assert count.rows == 1.0


@pytest.mark.parametrize(("groups", "copies", "steps"), [(None, 1, 5), (1, 0, 10)])
def test_several_groups_or_turns(
    generator: Generator, groups: int | None, copies: int, steps: int
) -> None:
    request = replace(BASE, groups=groups)
    assert tokens(generator.run_all([request])[0]) == alone(request)
    count = generator.occupancy
    assert (count.prefills, count.copies, count.steps) == (1, copies, steps)


def test_a_group_each_before_a_second_group(generator: Generator) -> None:
    first, second = generator.submit(BASE), generator.submit(replace(BASE, prompt=OTHER))
    generator.step()
    assert [generator.slots.held(each) for each in (first, second)] == [1, 1]
    while generator.step():
        pass
    assert tokens(second) == alone(second.request)


def test_the_same_prompt_is_stored_once(generator: Generator) -> None:
    """Two requests in the two rows of one group."""
    requests = [replace(BASE, samples=1, seed=seed) for seed in (1, 2)]
    answers = generator.run_all(requests)
    assert [tokens(each) for each in answers] == [alone(each) for each in requests]
    count = generator.occupancy
    assert (count.prefills, count.copies, count.steps) == (1, 0, NEW - 1)


def test_nobody_overtakes_a_request_that_waits(model: CausalLM) -> None:
    generator = Generator(model, CacheShape(1, 2, 8, NEW))
    first = generator.submit(replace(BASE, samples=1))
    waits = generator.submit(replace(BASE, prompt=OTHER, samples=1))
    late = [generator.submit(replace(BASE, samples=1, seed=seed)) for seed in range(3)]
    while not first.done:
        generator.step()
        assert not any(each.samples[0].tokens for each in (waits, *late))
    generator.step()
    assert waits.samples[0].tokens
    assert not any(each.samples[0].tokens for each in late)
    while generator.step():
        pass
    assert all(tokens(each) == alone(each.request) for each in late)


def test_changed_weights_are_not_met_by_old_contexts() -> None:
    model = tiny.model()
    generator = Generator(model, CacheShape(1, 2, 8, NEW))
    before = tokens(generator.run_all([BASE])[0])
    tiny.randomise(model.named_parameters(), seed=1)
    after = tokens(generator.run_all([BASE])[0])
    fresh = Generator(tiny.model(1), CacheShape(1, 2, 8, NEW)).run_all([BASE])[0]
    assert before != after == tokens(fresh)


@pytest.mark.parametrize(("b", "spare"), [(1, 0), (5, 0), (5, 3)])
def test_stored_positions_are_context_and_suffixes(b: int, spare: int) -> None:
    """Counted in the buffers themselves: m_c + b m_d positions, and no other is touched."""
    model, new = tiny.model(), 4
    generator = Generator(model, CacheShape(2, b, len(PROMPT), new - 1 + spare))
    for cache in model.caches():
        for name in cache.names:
            getattr(cache, name).fill_(1e4)
    request = replace(BASE, samples=b, max_new_tokens=new, groups=1)
    answers = generator.run_all([request])[0]
    assert tokens(answers) == alone(request)
    written = 0
    for cache in model.caches():
        k_ctx, v_ctx, k_suf, v_suf = (getattr(cache, name) for name in cache.names)
        for buffer in (k_ctx.transpose(1, 2), v_ctx, k_suf, v_suf):  # [g, positions, d]
            touched = (buffer != 1e4).any(-1)
            if buffer is k_suf or buffer is v_suf:
                touched[:, b * (new - 1 + spare) :: new - 1 + spare] = False  # slot 0 of free rows
            written += int(touched.sum()) * tiny.CONFIG.d * 4
    m_d = new - 1
    assert written == position_bytes(tiny.CONFIG, 4) * (len(PROMPT) + b * m_d)


def test_padding_is_reported(model: CausalLM) -> None:
    generator = Generator(model, CacheShape(G=2, r=3, S_ctx=8, S_dec=7))
    generator.run_all([replace(BASE, samples=2, max_new_tokens=3)])
    count = generator.occupancy
    assert (count.steps, count.prefills) == (2, 1)
    assert count.rows == pytest.approx(2 / 6)
    # the steps read 6 + 2 and 6 + 4 of 2 * 8 + 6 * 7 slots
    assert count.slots == pytest.approx((8 + 10) / (2 * 58))
    assert count.prefill == pytest.approx(6 / 8)


def test_tokens_are_streamed(generator: Generator) -> None:
    eos = (alone(BASE)[1][2],)
    generator.eos = frozenset(eos)
    seen: dict[int, list[Token]] = {}
    request = replace(BASE, on_token=lambda token: seen.setdefault(token.sample, []).append(token))
    answers = generator.submit(request)
    generator.step()
    assert {len(each) for each in seen.values()} <= {1, 2}  # not kept back till the end
    while generator.step():
        pass
    assert tokens(answers) == alone(BASE, eos)
    for sample in answers.samples:
        mine = seen[sample.index]
        assert [each.token for each in mine] == sample.tokens
        assert [each.logprob for each in mine] == sample.logprobs
        assert [each.position for each in mine] == list(range(len(mine)))
        assert [each.finish for each in mine] == [None] * (len(mine) - 1) + [sample.finish]
    assert "eos" in {sample.finish for sample in answers.samples}


class InterruptAtLine:
    """Counts the lines of `models` that are run, and raises KeyboardInterrupt at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at, self.lines = at, 0
        self.former = sys.gettrace()

    def __enter__(self) -> InterruptAtLine:
        sys.settrace(self.calls)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self.former)

    def calls(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self.trace if "/models/" in frame.f_code.co_filename else None

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and "/tests/" not in frame.f_code.co_filename:
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self.trace


def interrupted_run(model: CausalLM, at: int | None) -> tuple[list[Answers], list[Token], int, int]:
    """Answers, what was streamed, lines run in the steps, copies of contexts made."""
    streamed: list[Token] = []
    generator = Generator(model, CacheShape(2, 2, 8, 4))
    requests = [replace(BASE, samples=5, max_new_tokens=3), replace(BASE, prompt=OTHER, samples=1)]
    submitted = [generator.submit(replace(requests[0], on_token=streamed.append))]
    submitted.append(generator.submit(replace(requests[1], max_new_tokens=2)))
    lines = 0
    try:
        with InterruptAtLine(at) as interrupt:
            while generator.step():
                pass
    except KeyboardInterrupt:
        while generator.step():
            pass
    else:
        lines = interrupt.lines
    return submitted, streamed, lines, generator.occupancy.copies


def test_an_interrupted_step_is_taken_again(model: CausalLM) -> None:
    """At lines all over the generator, the scheduler and the network."""
    whole, streamed, lines, copies = interrupted_run(model, None)
    expected = [tokens(each) for each in whole]
    assert expected == [alone(each.request) for each in whole]
    assert copies
    assert lines > 1000
    for at in range(1, lines, lines // 41):
        again, seen, _, _ = interrupted_run(model, at)
        assert [tokens(each) for each in again] == expected
        for sample in (sample for each in again for sample in each.samples):
            assert len(sample.logprobs) == len(sample.tokens)
        drawn = [(each.sample, each.position, each.token) for each in seen]
        assert len(set(drawn)) == len(drawn) >= len(streamed) - 1


class Interrupts:
    """Does what it stands for, and raises KeyboardInterrupt behind one of its calls."""

    def __init__(self, inner: Any, at: int) -> None:
        self.inner, self.at, self.calls = inner, at, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        result = self.inner(*args)
        if self.calls == self.at:
            raise KeyboardInterrupt
        return result


def test_interrupted_runs_leave_nothing_behind(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (
        lambda: generator.run_all([BASE, replace(BASE, prompt=OTHER)]),
        lambda: generator.run(PROMPT, samples=4, max_new_tokens=NEW),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(generator, "_take", Interrupts(generator._take, 3))
            with pytest.raises(KeyboardInterrupt):
                start()
        assert not generator.step()
        assert not list(generator.slots.live())
    assert tokens(generator.run_all([BASE])[0]) == alone(BASE)


def test_cancel(generator: Generator) -> None:
    stays, goes = generator.submit(BASE), generator.submit(replace(BASE, prompt=OTHER, samples=3))
    generator.step()
    generator.cancel(goes)
    assert goes.done
    assert {sample.finish for sample in goes.samples} == {"cancelled"}
    assert tokens(goes)[0] == alone(goes.request)[0][:2]
    assert tokens(goes)[2] == []
    assert math.isnan(goes.samples[2].mean_logprob)
    while generator.step():
        pass
    assert tokens(stays) == alone(BASE)
    generator.cancel(stays)  # too late, and no harm
    assert {sample.finish for sample in stays.samples} == {"length"}


def test_a_callback_may_cancel_and_submit(generator: Generator) -> None:
    others: list[Answers] = []

    def on_token(token: Token) -> None:
        if token.position == 2 and not others:
            generator.cancel(answers)
            others.append(generator.submit(replace(BASE, prompt=OTHER)))

    answers = generator.submit(replace(BASE, on_token=on_token))
    while generator.step():
        pass
    assert all(len(sample.tokens) <= 3 for sample in answers.samples)
    assert tokens(others[0]) == alone(others[0].request)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [1] * 9}, "9 prompt tokens do not fit: .* holds 8"),
        ({"max_new_tokens": NEW + 2}, "7 suffix positions do not fit: .* holds 6"),
        ({"groups": 0}, "groups is 0"),
        ({"samples": 0}, r"samples \(n\) is 0"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [50]}, "token 50"),
        ({"seed": [1, 2]}, "2 seeds for 4 samples"),
        ({"stop": ["A"]}, "without detokenise"),
    ],
)
def test_requests_that_are_refused(
    generator: Generator, changes: dict[str, Any], message: str
) -> None:
    request = replace(BASE, **changes)
    with pytest.raises(InputError, match=message):
        generator.submit(request)
    with pytest.raises(InputError, match=message):
        generator.run_all([BASE, request])
    assert not generator.step()


def test_no_memory_for_the_cache() -> None:
    with pytest.raises(InputError, match=r"no memory for the cache: .* takes 447034\.\d GiB"):
        Generator(tiny.model(), CacheShape(G=1, r=10**9, S_ctx=8, S_dec=1250))


def test_run_measures_one_prompt_alone(generator: Generator) -> None:
    generator.submit(BASE)
    with pytest.raises(InputError, match="1 submitted requests are not done"):
        generator.run(PROMPT, samples=1, max_new_tokens=2)


def test_damaged_weights_are_told_and_nothing_is_lost() -> None:
    model = tiny.model()
    generator = Generator(model, CacheShape(1, 2, 8, NEW))
    answers = generator.submit(BASE)
    generator.step()
    head = model.lm_head.weight.clone()
    model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(InputError, match="not finite at token 2 of sample 0"):
        generator.step()
    model.lm_head.weight.copy_(head)
    while generator.step():
        pass
    assert tokens(answers) == alone(BASE)
