"""The Triton path and the torch references on a GPU, where there is one, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nki_kernels import bifurcated_attention, flash_attention
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
from nki_kernels.torch_ops import cuda_path

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CASES = [*FEATURES, *pairwise(), *decode_pairwise()]


def on_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


def test_the_path_on_a_gpu() -> None:
    assert cuda_path(torch.bfloat16) == "triton"
    assert cuda_path(torch.float64) == "torch"


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in CASES])
def test_bifurcated(case: Case, kernels: str) -> None:
    arguments = make(case)
    expected = oracle(arguments)[0]
    o = bifurcated_attention(**on_gpu(arguments), kernels=kernels)
    assert o.device.type == "cuda"
    allowed = tolerance(expected, case.dtype, largest_logit(arguments))
    if case.fp8 and case.dtype != "float32":  # widened to 16 bits, times a factor of 16 bits
        allowed *= 4
    assert error(o.cpu(), expected) <= allowed


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in FEATURES])
def test_poison_changes_no_bit(case: Case, kernels: str) -> None:
    clean, poisoned = (
        bifurcated_attention(**on_gpu(make(case, p)), kernels=kernels) for p in (0.0, 1e4)
    )
    assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in FEATURES])
def test_states_windows_and_soft_caps_equal_the_reference(
    case: Case, window: int | None, softcap: float | None
) -> None:
    arguments = {**make(case), "window": window, "softcap": softcap, "return_state": True}
    expected = bifurcated_attention(**arguments, kernels="torch")
    states = bifurcated_attention(**on_gpu(arguments))
    empty = expected[2] == 0
    assert torch.equal(states[1].cpu()[empty], expected[1][empty])  # MASK, where no key is seen
    for ours, theirs in zip(states, expected, strict=True):
        blank = empty.view(empty.shape + (1,) * (theirs.dim() - empty.dim()))
        shown = theirs.masked_fill(blank, 0).double().numpy()
        assert error(ours.cpu().masked_fill(blank, 0), shown) <= 4 * tolerance(shown, case.dtype)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in FLASH])
def test_flash(case: FlashCase) -> None:
    arguments = make_flash(case)
    expected = flash_oracle(arguments)[0]
    o = flash_attention(**on_gpu(arguments))
    assert error(o.cpu(), expected) <= tolerance(expected, case.dtype)
