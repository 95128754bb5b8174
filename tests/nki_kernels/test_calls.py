"""The one list of calls: whole, right on our simulator, and able to be found wrong."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

import nki_kernels
from nki_kernels import launch
from nki_kernels.calls import KernelCase, as_double, kernel_cases, tensors_of, with_tensors, wrong

pytestmark = pytest.mark.sim

CASES = kernel_cases()
FIRST = {case.kernel: case for case in reversed(CASES)}


def test_every_kernel_has_cases_of_its_own_name() -> None:
    room = Path(nki_kernels.__file__).parent
    written = {
        name
        for file in room.glob("*/kernel.py")
        for name in re.findall(r"@nki\.jit\ndef (\w+)_kernel\(", file.read_text())
    }
    assert written == set(FIRST)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case in FIRST.values() else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_right_on_our_simulator(case: KernelCase) -> None:
    call = case.make("trn1")
    found = launch.simulate(
        launch.load(call.module, call.name), "trn1", *call.arguments, **call.options
    )
    assert call.margin(found) <= 1


@pytest.mark.parametrize("case", FIRST.values(), ids=lambda case: case.kernel)
def test_what_counts_as_wrong(case: KernelCase) -> None:
    call = case.make("trn1")
    right = [expected.value for expected in call.expected]
    assert call.margin(right) == 0
    assert wrong(call).margin(right) > 1
    assert call.margin([*right, right[0]]) == math.inf
    assert call.margin([value[..., :0] for value in right]) == math.inf
    for nan in ([np.full_like(value, np.nan) for value in right], [value * 0 for value in right]):
        assert call.margin(nan) > 1


def test_tensors_go_back_to_their_places() -> None:
    case = next(case for case in CASES if "sinks" in case.name)
    call = case.make("trn1")
    tensors = tensors_of(call)
    assert any(tensor is call.options["sinks"] for tensor in tensors)
    arguments, options = with_tensors(call, [tensor + 0 for tensor in tensors])
    for one, other in zip(arguments, call.arguments, strict=True):
        assert np.array_equal(as_double(one), as_double(other))
    assert options["with_sinks"] is True and options["sinks"] is not call.options["sinks"]
