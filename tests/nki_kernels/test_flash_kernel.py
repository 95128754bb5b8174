"""The prefill kernel on the simulator, against an fp64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nki_sim
from nki_kernels import flash_attention, launch
from nki_kernels.cases import (
    FLASH,
    FlashCase,
    error,
    flash_largest_logit,
    flash_oracle,
    flash_pairwise,
    make_flash,
    tolerance,
)
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
    options = flash_options(arguments, target) | options
    o, highest, weight = simulate(KERNEL, arguments, target, return_state=True, **options)
    logit = flash_largest_logit(arguments)
    assert o.dtype == arguments["q"].dtype
    assert highest.dtype == weight.dtype == torch.float32
    assert error(o, expected) <= tolerance(expected, case.dtype, logit)
    # A maximum near 0 is a sum of products as large as those of the largest logit: its rounding.
    np.testing.assert_allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5 + 4 * 2.0**-24 * logit)
    np.testing.assert_allclose(weight.numpy(), total, rtol=1e-4 + 4 * 2.0**-24 * logit)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.work > 700 else [])
        for case in FLASH
    ],
)
def test_sizes(case: FlashCase) -> None:
    hold(case)


SMALL = {"key_block": 256, "piece": 128, "exponentials": 256, "query_tiles": 2}
"""Sizes at which a few hundred keys take several blocks, passes and pieces."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[] if i % 4 == 0 else [pytest.mark.slow])
        for i, case in enumerate(flash_pairwise())
    ],
)
def test_features_meet(case: FlashCase) -> None:
    """Every two features together, in blocks of their own size and in small ones, on two cores."""
    hold(case)
    hold(case, **SMALL)
    hold(case, "trn2", vector_share=3)
    hold(case, "trn2", dma_share=4, **SMALL)


@pytest.mark.parametrize(
    "case",
    [
        FlashCase(2, 150, 4, 2, 16, gap=9, start=70),
        FlashCase(1, 130, 2, 1, 32, "bfloat16", gap=3, window=40, sinks=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["trn1", "trn2"])
def test_dead_slots_change_no_bit(case: FlashCase, target: str) -> None:
    outputs = []
    for poison in (0.0, 1e4, -7.0):
        arguments = make_flash(case, poison)
        outputs.append(
            simulate(KERNEL, arguments, target, **flash_options(arguments, target) | SMALL)
        )
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["trn1", "trn2"])
def test_logits_of_ten_thousand(dtype: str, target: str) -> None:
    case = FlashCase(1, 200, 2, 1, 64, dtype, start=300, logit_scale=4e3)
    assert flash_largest_logit(make_flash(case)) > 1e4
    hold(case, target)
    hold(case, target, **SMALL)


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("target", ["trn1", "trn2"])
def test_chunks_equal_the_whole(target: str, window: int | None) -> None:
    """Chunk by chunk against the context cache, as a long prompt is prefilled: the same bits."""
    arguments = make_flash(FlashCase(2, 640, 2, 1, 32, "bfloat16", window=window))
    sizes = SMALL | {"exponentials": 128}
    whole = simulate(KERNEL, arguments, target, **flash_options(arguments, target) | sizes)
    for start in range(0, 640, 128):
        q = arguments["q"][:, start : start + 128].contiguous()
        chunk = arguments | {"q": q, "start": start}
        o = simulate(KERNEL, chunk, target, **flash_options(chunk, target) | sizes)
        assert torch.equal(o, whole[:, start : start + 128])


@pytest.mark.parametrize(
    "case", [FlashCase(1, 600, 4, 2, 32), FlashCase(1, 1000, 3, 1, 32)], ids=str
)
def test_two_cores_share_the_work(case: FlashCase) -> None:
    """A logical core of two: the same bits, and the same instructions on each to a few percent."""
    arguments = make_flash(case)
    options = flash_options(arguments, "trn2")
    kernel = launch.load(*KERNEL)
    tensors = tuple(arguments.values())
    trace = nki_sim.Trace()
    both = nki_sim.simulate(kernel[2], target="trn2", trace=trace)(*tensors, **options)
    assert torch.equal(both, simulate(KERNEL, arguments, "trn2", **options))
    work = [0, 0]
    for i in trace:
        if i.opcode == "nc_matmul":
            work[i.core] += i.attrs["n"]
    assert max(work) <= 1.15 * min(work)


@pytest.mark.parametrize("target", ["inf2", "trn2", "trn3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_newer_and_sister_cores(target: str, dtype: str) -> None:
    hold(FlashCase(1, 140, 4, 2, 32, dtype), target)


RANDOM = st.builds(
    FlashCase,
    B=st.integers(1, 2),
    S=st.integers(1, 560),
    h=st.just(4),
    g=st.sampled_from([1, 2, 4]),
    d=st.one_of(st.integers(1, 40), st.sampled_from([128, 129, 256])),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    start=st.one_of(st.just(0), st.integers(1, 700)),
    window=st.one_of(st.none(), st.integers(1, 600)),
    softcap=st.sampled_from([None, None, 3.0, 90.0]),
    sinks=st.booleans(),
    gap=st.integers(0, 3),
    logit_scale=st.sampled_from([1.0, 20.0]),
    seed=st.integers(0, 2**16),
)
SIZES = st.sampled_from([{}, SMALL, {"key_block": 512, "piece": 512, "exponentials": 512}])
TARGETS = st.sampled_from(["trn1", "trn2"])


@settings(deadline=None, max_examples=15)
@given(case=RANDOM, sizes=SIZES, target=TARGETS)
@example(  # maxima near 0 beside logits near 75
    FlashCase(1, 234, 4, 1, 256, start=2, window=1, logit_scale=20.0), {}, "trn1"
)
def test_any_call(case: FlashCase, sizes: dict[str, int], target: str) -> None:
    hold(case, target, **sizes)


@pytest.mark.long
@settings(deadline=None, max_examples=2000)
@given(case=RANDOM, sizes=SIZES, target=TARGETS)
def test_many_calls(case: FlashCase, sizes: dict[str, int], target: str) -> None:
    hold(case, target, **sizes)


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
@pytest.mark.parametrize(
    "case",
    [
        FlashCase(1, 1400, 8, 1, 128),
        FlashCase(1, 1024, 8, 1, 128, "bfloat16", start=8000),
        FlashCase(1, 256, 4, 1, 256, start=8000),
    ],
    ids=str,
)
def test_fits_on_chip(case: FlashCase) -> None:
    trace = run_traced(make_flash(case))
    assert peak(trace, "sbuf") <= 180_224
    assert peak(trace, "psum") <= 16 * 1024
