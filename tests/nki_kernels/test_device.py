"""The torch references on a GPU, where there is one, against the same oracle as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nki_kernels import bifurcated_attention, flash_attention
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

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in [*FEATURES, *pairwise()]])
def test_bifurcated(case: Case) -> None:
    arguments = make(case)
    expected = oracle(arguments)[0]
    o = bifurcated_attention(**on_gpu(arguments))
    assert o.device.type == "cuda"
    assert error(o.cpu(), expected) <= tolerance(expected, case.dtype)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in FEATURES])
def test_poison_changes_no_bit(case: Case) -> None:
    clean, poisoned = (bifurcated_attention(**on_gpu(make(case, p))) for p in (0.0, 1e4))
    assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in FLASH])
def test_flash(case: FlashCase) -> None:
    arguments = make_flash(case)
    expected = flash_oracle(arguments)[0]
    o = flash_attention(**on_gpu(arguments))
    assert error(o.cpu(), expected) <= tolerance(expected, case.dtype)
