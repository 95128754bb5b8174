"""The torch references against an fp64 NumPy oracle that joins the keys and takes one softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nki_kernels.bifurcated_attention.reference import bifurcated_attention
from nki_kernels.flash_attention import reference as flash_module
from nki_kernels.flash_attention.reference import flash_attention
from tests.nki_kernels.cases import (
    FEATURES,
    FLASH,
    Case,
    FlashCase,
    error,
    flash_oracle,
    make,
    make_flash,
    oracle,
    pairwise,
    tolerance,
)

pytestmark = pytest.mark.null


def bifurcated_cases() -> list[object]:
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.work > 3000 else [])
        for case in [*FEATURES, *pairwise()]
    ]


@pytest.mark.parametrize("case", bifurcated_cases())
def test_bifurcated(case: Case) -> None:
    arguments = make(case)
    expected, top, total = oracle(arguments)
    o, highest, weight = bifurcated_attention(**arguments, return_state=True)
    assert o.dtype == arguments["q"].dtype
    assert error(o, expected) <= tolerance(expected, case.dtype)
    np.testing.assert_allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weight.numpy(), total, rtol=1e-4)
    assert torch.equal(bifurcated_attention(**arguments), o)


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in FEATURES])
def test_bifurcated_in_double(case: Case) -> None:
    arguments = make(case)
    for name in ("q", "k_ctx", "v_ctx", "k_suf", "v_suf"):
        arguments[name] = arguments[name].double()
    expected, _, _ = oracle(arguments)
    assert error(bifurcated_attention(**arguments), expected) <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in FEATURES])
def test_poison_changes_no_bit(case: Case) -> None:
    """Whatever finite number a dead slot holds, the result has the same bits."""
    outputs = [
        bifurcated_attention(**make(case, poison), return_state=True) for poison in (0.0, 1e4, -7.0)
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


def test_context_is_never_copied_per_sample() -> None:
    """The exported graph of the reference holds no tensor of b·m_c·d elements or more."""
    case = Case(m_c=512, m_d=4, b=64, h=4, g=2, d=64)
    arguments = make(case)
    scale = arguments.pop("scale")

    class Attention(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return bifurcated_attention(*tensors, scale=scale)

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
