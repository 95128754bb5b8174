"""The prefill kernel on the simulator, against an fp64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nki_sim
from nki_kernels import flash_attention
from tests.nki_kernels.cases import FLASH, FlashCase, error, flash_oracle, make_flash, tolerance
from tests.nki_kernels.running import FLASH as KERNEL
from tests.nki_kernels.running import flash_options, simulate
from tests.nki_kernels.test_bifurcated_kernel import dma_reads, peak

pytestmark = [
    pytest.mark.sim,
    # A read of memory that nothing wrote, or other advice of the simulator, is a failure here.
    pytest.mark.filterwarnings("error"),
]


def hold(case: FlashCase, target: str = "trn1", **options: int) -> None:
    """Run a case and compare output and statistics with the oracle."""
    arguments = make_flash(case)
    expected, top, total = flash_oracle(arguments)
    options = options or flash_options(arguments)
    o, highest, weight = simulate(KERNEL, arguments, target, return_state=True, **options)
    assert o.dtype == arguments["q"].dtype
    assert highest.dtype == weight.dtype == torch.float32
    assert error(o, expected) <= tolerance(expected, case.dtype)
    np.testing.assert_allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weight.numpy(), total, rtol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.work > 700 else [])
        for case in FLASH
    ],
)
def test_sizes(case: FlashCase) -> None:
    hold(case)


@pytest.mark.parametrize("target", ["inf2", "trn2", "trn3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_newer_and_sister_cores(target: str, dtype: str) -> None:
    hold(FlashCase(1, 140, 4, 2, 32, dtype), target)


@settings(deadline=None, max_examples=20)
@given(
    case=st.builds(
        FlashCase,
        B=st.integers(1, 2),
        S=st.integers(1, 560),
        h=st.just(4),
        g=st.sampled_from([1, 2, 4]),
        d=st.integers(1, 40),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        seed=st.integers(0, 2**16),
    )
)
def test_any_size(case: FlashCase) -> None:
    hold(case)


@pytest.mark.parametrize("query_tiles", [1, 2, 3])
def test_schedule_changes_no_bit(query_tiles: int) -> None:
    arguments = make_flash(FlashCase(1, 600, 4, 2, 32))
    expected = simulate(KERNEL, arguments, query_tiles=5)
    assert torch.equal(simulate(KERNEL, arguments, query_tiles=query_tiles), expected)


def test_later_positions_change_no_bit() -> None:
    """Causality: what lies behind a query, padding included, cannot reach it."""
    arguments = make_flash(FlashCase(1, 300, 4, 2, 32))
    expected = flash_attention(**arguments, kernels="nki")[:, :170]
    for name, axis in (("q", 1), ("k", 2), ("v", 1)):
        arguments[name].narrow(axis, 170, 130).fill_(1e4)
    assert torch.equal(flash_attention(**arguments, kernels="nki")[:, :170], expected)


def test_operator_is_the_kernel() -> None:
    arguments = make_flash(FlashCase(1, 200, 4, 2, 32))
    direct = simulate(KERNEL, arguments, **flash_options(arguments))
    through = flash_attention(**arguments, kernels="nki")
    reference = flash_attention(**arguments, kernels="torch")
    assert torch.equal(direct, through)
    assert not torch.equal(through, reference)
    torch.testing.assert_close(through, reference, rtol=1e-4, atol=1e-5)


def run_traced(arguments: dict[str, Any]) -> nki_sim.Trace:
    trace = nki_sim.Trace()
    simulate(KERNEL, arguments, trace=trace, **flash_options(arguments))
    return trace


def test_keys_are_loaded_once_for_all_query_heads() -> None:
    arguments = make_flash(FlashCase(1, 600, 8, 2, 32, "bfloat16"))
    read = dma_reads(run_traced(arguments))
    for name in ("q", "k", "v"):
        assert read[name] == arguments[name].nbytes


def test_nothing_above_the_diagonal_is_multiplied() -> None:
    """q·K covers, for each tile of 128 queries, the keys up to its last query and no more."""
    S, h, d = 700, 2, 32
    trace = run_traced(make_flash(FlashCase(1, S, h, 1, d)))
    columns = 0
    for instruction in trace:
        if instruction.opcode == "nc_matmul":
            stationary, moving = instruction.operand("stationary"), instruction.operand("moving")
            if stationary.shape[0] == d and moving.shape[0] == d:
                columns += stationary.shape[1] * moving.shape[1]
    tiles = [(start, min(start + 128, S)) for start in range(0, S, 128)]
    assert columns == h * sum((stop - start) * stop for start, stop in tiles)


@pytest.mark.slow
def test_fits_on_chip() -> None:
    trace = run_traced(make_flash(FlashCase(1, 1400, 8, 1, 128)))
    assert peak(trace, "sbuf") <= 160 * 1024
    assert peak(trace, "psum") <= 4 * 2048
