"""Steps whose graph draws the tokens: those of the host, and 16 bytes a row and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM
from models.generation import Answers, Generator, PromptLookup, Request, Sampling, Speculation
from models.generation.inside import InGraph
from tests.models import tiny

pytestmark = pytest.mark.null

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]
IN_GRAPH = [
    Sampling(0),
    Sampling(0.9, top_k=20, top_p=0.95),
    Sampling(1.4, top_k=5),
    Sampling(2.0, top_k=1),
]
ON_HOST = Sampling(1.1, top_p=0.9)
SHAPE = CacheShape(G=2, r=3, S_ctx=12, S_dec=16)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


def requests(samplings: list[Sampling]) -> list[Request]:
    """Of several lengths, so that rows end and are filled again at different steps."""
    return [
        Request(PROMPT[i:], samples=2 + i, max_new_tokens=5 + 2 * i, sampling=each, seed=i)
        for i, each in enumerate(samplings)
    ]


def tokens(answers: list[Answers]) -> list[list[int]]:
    return [sample.tokens for each in answers for sample in each.samples]


def logprobs(answers: list[Answers]) -> list[float]:
    return [x for each in answers for sample in each.samples for x in sample.logprobs]


def none(self: CausalLM, candidates: int) -> None:
    return None


@pytest.mark.parametrize("speculation", [None, Speculation(PromptLookup(), 2)])
@pytest.mark.parametrize("samplings", [IN_GRAPH, [*IN_GRAPH, ON_HOST]], ids=["all", "some"])
def test_same_tokens_as_on_the_host(
    model: CausalLM,
    monkeypatch: pytest.MonkeyPatch,
    samplings: list[Sampling],
    speculation: Speculation | None,
) -> None:
    inside = Generator(model, SHAPE, speculation=speculation).run_all(requests(samplings))
    monkeypatch.setattr(CausalLM, "sampled", none)
    outside = Generator(model, SHAPE, speculation=speculation).run_all(requests(samplings))
    assert tokens(inside) == tokens(outside)
    assert logprobs(inside) == pytest.approx(logprobs(outside), abs=1e-5)
    assert len({token for each in tokens(inside) for token in each}) > 20


def test_top_k_off_is_drawn_on_the_host(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    sampled = CausalLM.sampled
    monkeypatch.setattr(CausalLM, "sampled", lambda self, k: (seen.append(k), sampled(self, k))[1])
    Generator(model, SHAPE).run_all(requests([ON_HOST]))
    assert not seen
    Generator(model, SHAPE).run_all(requests([Sampling(0)]))
    assert set(seen) == {1}
    Generator(model, SHAPE).run_all(requests([Sampling(1.0, top_k=7), Sampling(0)]))
    assert max(seen) == 7


@pytest.mark.parametrize("b", [1, 3, 64])
def test_bytes_of_a_step(model: CausalLM, b: int) -> None:
    """Measured on what is handed over: u and length in, token and log-probability out."""
    generator = Generator(model, CacheShape(1, b, len(PROMPT), 12))
    generator.submit(Request(PROMPT, b, max_new_tokens=12, sampling=IN_GRAPH[1]))
    moved = []
    while generator.step():
        moved.append((generator.inside.sent, generator.inside.received))
    first, *steady = moved
    assert len(steady) > 5
    assert set(steady) == {(8 * b, 8 * b)}
    assert first[0] <= 8 * b + 4 * b + 12 * b + 4 + 4  # tokens, settings, the context's length


def test_a_token_that_the_device_has_not_drawn_is_sent(model: CausalLM) -> None:
    """Rows change hands and lengths differ, and the device is fed what the samples have."""
    fed: list[Tensor] = []

    class Recorded(InGraph):
        def _send(self, name: str, tensor: Tensor, read: Tensor | None = None) -> Tensor:
            there = super()._send(name, tensor, read)
            at = torch.ones_like(tensor, dtype=torch.bool) if read is None else read
            assert torch.equal(there[at.expand_as(there)], tensor[at.expand_as(tensor)])
            fed.append(there)
            return there

    generator = Generator(model, SHAPE)
    generator.inside = Recorded(model)
    generator.run_all(requests(IN_GRAPH))
    assert len(fed) > 100


def test_a_stale_token_is_seen(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tokens(Generator(model, SHAPE).run_all(requests(IN_GRAPH)))
    send = InGraph._send

    def stale(self: InGraph, name: str, tensor: Tensor, read: Any = None) -> Tensor:
        if name == "tokens" and name in self._held and self._held[name][0].shape == tensor.shape:
            return self._held[name][1]
        return send(self, name, tensor, read)

    monkeypatch.setattr(InGraph, "_send", stale)
    assert tokens(Generator(model, SHAPE).run_all(requests(IN_GRAPH))) != right
