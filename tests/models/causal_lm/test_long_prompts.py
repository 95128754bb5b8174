"""Prompts too long for one call of prefill attention: chunk by chunk, the same bits."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM, attention
from models.causal_lm.attention import attend_prompt
from nki_kernels import flash_attention
from tests.models import tiny
from tests.models.tiny import int32

pytestmark = pytest.mark.sim

S = 300  # two chunks of 128, and one of 44


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, S, 2, 16), (1, 16, S), (1, S, 16))
    q, k, v = (torch.randn(*shape, generator=generator) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("kernels", ["nki", "torch"])
def test_chunks_change_no_bit(kernels: str, window: int | None) -> None:
    options: dict[str, Any] = {"scale": 0.25, "kernels": kernels, "window": window}
    whole = flash_attention(*tensors(), **options)
    chunks = attend_prompt(*tensors(), whole=S - 1, chunk=128, **options)
    if kernels == "nki":
        assert torch.equal(chunks, whole)
    else:  # one product of other sizes, which BLAS may sum in another order
        torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-6)


def prefilled(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> tuple[CausalLM, list[int]]:
    """A small network that cuts prompts so, and where the calls of its attention start."""
    starts: list[int] = []

    def counted(*args: Any, start: int = 0, **options: Any) -> Any:
        starts.append(start)
        return flash_attention(*args, start=start, **options)

    monkeypatch.setattr(attention, "flash_attention", counted)
    monkeypatch.setattr(attention, "attend_prompt", functools.partial(attend_prompt, **sizes))
    network = tiny.model(max_position=512)
    network.allocate(CacheShape(G=2, r=1, S_ctx=S, S_dec=4))
    return network, starts


def test_a_network_cuts_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = torch.arange(S, dtype=torch.int32)[None] % 50
    inputs = (prompt, int32([0, 280]), int32([[0], [0]]), int32([1]))
    whole, starts = prefilled(monkeypatch)
    expected = whole(*inputs)
    assert starts == [0, 0]  # a call for each of two layers
    cut, starts = prefilled(monkeypatch, whole=200, chunk=128)
    torch.testing.assert_close(cut(*inputs), expected, rtol=0, atol=1e-5)
    assert starts == [0, 128, 256] * 2
    for mine, theirs in zip(cut.caches(), whole.caches(), strict=True):
        torch.testing.assert_close(mine.k_ctx, theirs.k_ctx, rtol=0, atol=1e-5)

    program = torch.export.export(cut, inputs)
    calls = [n for n in program.graph.nodes if "bifork.flash_attention" in str(n.target)]
    assert len(calls) == 6
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=0, atol=1e-5)


def test_what_one_call_takes() -> None:
    assert attention.WHOLE == 4096 and attention.CHUNK % 128 == 0
