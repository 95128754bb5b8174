"""The torch references against an fp64 NumPy oracle that joins the keys and takes one softmax."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nki_kernels.attention_state.reference import finish, merge, resume
from nki_kernels.bifurcated_attention.reference import bifurcated_attention
from nki_kernels.cases import (
    FEATURES,
    FLASH,
    Case,
    FlashCase,
    decode_pairwise,
    error,
    flash_oracle,
    largest_logit,
    make,
    make_flash,
    oracle,
    pairwise,
    tolerance,
)
from nki_kernels.flash_attention import reference as flash_module
from nki_kernels.flash_attention.reference import flash_attention

pytestmark = pytest.mark.null


def bifurcated_cases() -> list[object]:
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.work > 3000 else [])
        for case in [*FEATURES, *pairwise(), *decode_pairwise()]
    ]


@pytest.mark.parametrize("case", bifurcated_cases())
def test_bifurcated(case: Case) -> None:
    arguments = make(case)
    expected, top, total = oracle(arguments)
    o, highest, weight = bifurcated_attention(**arguments, return_state=True)
    logit = largest_logit(arguments)
    rounding = 4 * 2.0**-24 * logit
    assert o.dtype == arguments["q"].dtype
    assert error(o, expected) <= tolerance(expected, case.dtype, logit)
    np.testing.assert_allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5 + rounding)
    np.testing.assert_allclose(weight.numpy(), total, rtol=1e-4 + rounding)
    assert torch.equal(bifurcated_attention(**arguments), o)


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in FEATURES])
def test_bifurcated_in_double(case: Case) -> None:
    arguments = make(case)
    for name in ("q", "k_ctx", "v_ctx", "k_suf", "v_suf"):
        arguments[name] = arguments[name].double()
    expected, _, _ = oracle(arguments)
    assert error(bifurcated_attention(**arguments), expected) <= 1e-12 * np.abs(expected).max()


def positions_of_keys(
    arguments: dict[str, Any],
) -> Iterator[tuple[tuple[int, int, int], int, int, Any]]:
    """Of every query token (j, i, t): its position, its row in the suffix, and key by key of what
    lies before it (position, K [g, d], V [g, d])."""
    q, k_ctx, v_ctx = arguments["q"], arguments["k_ctx"], arguments["v_ctx"]
    k_suf, v_suf = arguments["k_suf"], arguments["v_suf"]
    G, r, n = q.shape[:3]
    S_ctx, S_dec = k_ctx.shape[2] // G, k_suf.shape[1] // (G * r)
    for j, i, t in itertools.product(range(G), range(r), range(n)):
        m_c, m_d = int(arguments["context_len"][j]), int(arguments["suffix_len"][j, i])
        own = m_c + m_d - n + t
        keys = [(s, k_ctx[..., j * S_ctx + s], v_ctx[:, j * S_ctx + s]) for s in range(m_c)]
        first = (j * r + i) * S_dec
        keys += [(m_c + s, k_suf[:, first + s], v_suf[:, first + s]) for s in range(m_d)]
        yield (j, i, t), own, m_d, [key for key in keys if key[0] <= own]


def brute_force(
    q: torch.Tensor, keys: Any, own: int, scale: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    """One softmax of one query token `q` [h, d] over `keys`, in fp64, written as the definition."""
    seen = [(k, v) for position, k, v in keys if window is None or position > own - window]
    if not seen:
        return torch.zeros_like(q, dtype=torch.float64)
    p = q.shape[0] // seen[0][0].shape[0]
    k = torch.stack([k for k, _ in seen]).double().repeat_interleave(p, 1)  # [keys, h, d]
    v = torch.stack([v for _, v in seen]).double().repeat_interleave(p, 1)
    logits = (q.double() * k).sum(-1) * scale  # [keys, h]
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    return (logits.softmax(0).unsqueeze(-1) * v).sum(0)


WINDOWED = Case(m_c=11, m_d=7, b=3, h=4, g=2, d=16, G=2, n=2, logit_scale=4.0)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 14, 100])
@pytest.mark.parametrize(
    "case",
    [WINDOWED, replace(WINDOWED, empty="both"), replace(WINDOWED, n=1, G=1)],
    ids=["ragged", "empty", "single"],
)
def test_window_and_softcap(case: Case, window: int | None, softcap: float | None) -> None:
    """Windows that end in the suffix, at its edge, in the context, and before it."""
    arguments = make(case)
    o = bifurcated_attention(**arguments, window=window, softcap=softcap)
    for (j, i, t), own, m_d, keys in positions_of_keys(arguments):
        if m_d < case.n:  # a free row: what it gives is not read, but it must be finite
            assert o[j, i, t].isfinite().all()
            continue
        q = arguments["q"][j, i, t]
        expected = brute_force(q, keys, own, arguments["scale"], window, softcap)
        torch.testing.assert_close(o[j, i, t].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [1, 5, 9, 14, 100])
@pytest.mark.parametrize("case", [WINDOWED, replace(WINDOWED, n=1, G=1)], ids=["ragged", "single"])
def test_a_context_in_blocks_is_merged_to_the_whole(case: Case, window: int) -> None:
    """Each block of context slots by itself, the suffix beside the first; then the states joined.

    A window reaches into a block from where the query is, which `query_position` says.
    """
    arguments = make(case)
    whole, top, total = bifurcated_attention(**arguments, window=window, return_state=True)
    G, slots, stored = case.G, arguments["k_ctx"].shape[2] // case.G, 4
    context_len, suffix_len = arguments["context_len"], arguments["suffix_len"]
    states = []
    for first in range(0, slots, stored):
        behind = context_len - first
        here = slice(first, first + stored)
        k_ctx = arguments["k_ctx"].unflatten(2, (G, slots))[..., here]
        v_ctx = arguments["v_ctx"].unflatten(1, (G, slots))[:, :, here]
        block = {
            "k_ctx": k_ctx.flatten(2),
            "v_ctx": v_ctx.flatten(1, 2),
            "context_len": behind.clamp(0, k_ctx.shape[-1]),
            "suffix_len": suffix_len if first == 0 else torch.zeros_like(suffix_len),
            "query_position": behind[:, None] + suffix_len - 1,
        }
        parts = bifurcated_attention(**(arguments | block), window=window, return_state=True)
        states.append(resume(*parts))
    merged = functools.reduce(merge, states)
    live = (suffix_len >= case.n)[:, :, None].expand(top.shape[:3])
    torch.testing.assert_close(finish(merged)[live], whole[live], rtol=0, atol=1e-5)
    torch.testing.assert_close(merged.max[live], top[live])
    torch.testing.assert_close(merged.sum[live], total[live], rtol=1e-5, atol=1e-5)


def test_window_and_softcap_change_the_result() -> None:
    arguments = make(WINDOWED)
    plain = bifurcated_attention(**arguments)
    for window, softcap in ((14, None), (None, 2.0)):
        other = bifurcated_attention(**arguments, window=window, softcap=softcap)
        assert (plain - other).abs().max() > 0.1


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [1, 3, 7, 8, 40, 100])
def test_flash_window_and_softcap(
    window: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows within, across and beyond blocks of eight queries."""
    monkeypatch.setattr(flash_module, "QUERY_BLOCK", 8)
    B, S = 2, 37
    arguments = make_flash(FlashCase(B=B, S=S, h=4, g=2, d=16))
    arguments["q"] *= 4
    o = flash_attention(**arguments, window=window, softcap=softcap)
    for b, own in itertools.product(range(B), range(S)):
        k, v = arguments["k"], arguments["v"]
        keys = [(s, k[..., b * S + s], v[:, b * S + s]) for s in range(own + 1)]
        q = arguments["q"][b, own]
        expected = brute_force(q, keys, own, arguments["scale"], window, softcap)
        torch.testing.assert_close(o[b, own].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"window": 5, "softcap": 2.0}], ids=["plain", "options"])
@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in FEATURES])
def test_poison_changes_no_bit(case: Case, options: dict[str, Any]) -> None:
    """Whatever finite number a dead slot holds, the result has the same bits."""
    outputs = [
        bifurcated_attention(**make(case, poison), **options, return_state=True)
        for poison in (0.0, 1e4, -7.0)
    ]
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in FLASH])
def test_flash(case: FlashCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_module, "QUERY_BLOCK", 200)
    arguments = make_flash(case)
    expected, top, total = flash_oracle(arguments)
    o, highest, weight = flash_attention(**arguments, return_state=True)
    assert o.dtype == arguments["q"].dtype
    assert error(o, expected) <= tolerance(expected, case.dtype)
    np.testing.assert_allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weight.numpy(), total, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"window": 9, "softcap": 2.0}], ids=["plain", "options"])
def test_context_is_never_copied_per_sample(options: dict[str, Any]) -> None:
    """The exported graph of the reference holds no tensor of b·m_c·d elements or more."""
    case = Case(m_c=512, m_d=4, b=64, h=4, g=2, d=64)
    arguments = make(case)
    scale = arguments.pop("scale")

    class Attention(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return bifurcated_attention(*tensors, scale=scale, **options)

    program = torch.export.export(Attention(), tuple(arguments.values()))
    largest = max(
        value.numel()
        for node in program.graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor)
    )
    # The largest legitimate one holds the logits, b·h·S_ctx; a copy per sample is d/p times that.
    assert largest <= case.b * case.h * (case.m_c + case.gap)


def test_ordinary_decoding_is_the_same_operator() -> None:
    """r samples of one prompt equal r groups that each hold a copy of it."""
    shared = make(Case(m_c=40, m_d=6, b=3, h=4, g=2, d=16))
    copies = dict(shared)
    copies["q"] = shared["q"].transpose(0, 1).contiguous()
    copies["k_ctx"] = shared["k_ctx"].repeat(1, 1, 3)
    copies["v_ctx"] = shared["v_ctx"].repeat(1, 3, 1)
    copies["context_len"] = shared["context_len"].repeat(3)
    copies["suffix_len"] = shared["suffix_len"].view(3, 1)
    torch.testing.assert_close(
        bifurcated_attention(**copies),
        bifurcated_attention(**shared).transpose(0, 1),
        rtol=1e-5,
        atol=1e-6,
    )
