"""The decode kernel on the simulator, against an fp64 oracle that joins the keys."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nki_sim
from nki_kernels import bifurcated_attention, predict
from nki_kernels.cases import (
    FEATURES,
    HEADS,
    M_C,
    M_D,
    B,
    Case,
    D,
    cross,
    largest_logit,
    make,
    pairwise,
)
from nki_kernels.speed_of_light import Decode
from tests.nki_kernels.holding import (
    dead_slots_change_no_bit,
    hold,
    marked,
    returned_states_merge,
    rows_without_keys_are_empty,
    runner,
)
from tests.nki_kernels.running import BIFURCATED, bifurcated_options, simulate

pytestmark = [
    pytest.mark.sim,
    # A read of memory that nothing wrote, or other advice of the simulator, is a failure here.
    pytest.mark.filterwarnings("error"),
]

SLOW_WORK = 700


RUN = runner(BIFURCATED, bifurcated_options)


def slow(case: Case) -> bool:
    return case.work > SLOW_WORK


def test_pairwise_covers_every_pair() -> None:
    """The default run meets every two sizes of different kinds at least once."""
    axes = [M_C, M_D, B, HEADS, D, ("float32", "bfloat16")]
    rows = [(c.m_c, c.m_d, c.b, (c.h, c.g), c.d, c.dtype) for c in pairwise()]
    for i in range(len(axes)):
        for j in range(i):
            met = {(row[i], row[j]) for row in rows}
            assert met == {(x, y) for x in axes[i] for y in axes[j]}


@pytest.mark.parametrize("case", marked(pairwise(), slow))
def test_sizes(case: Case) -> None:
    hold(RUN, case)


@pytest.mark.parametrize("case", marked(FEATURES, slow))
def test_features(case: Case) -> None:
    hold(RUN, case)


@pytest.mark.long
@pytest.mark.parametrize("case", [pytest.param(case, id=str(case)) for case in cross()])
def test_every_size_with_every_other(case: Case) -> None:
    hold(RUN, case)


@pytest.mark.parametrize("target", ["inf2", "trn2", "trn3"])
@pytest.mark.parametrize(
    "case", marked([FEATURES[1], FEATURES[5], replace(FEATURES[5], dtype="bfloat16")], slow)
)
def test_newer_and_sister_cores(case: Case, target: str) -> None:
    hold(RUN, case, target)


@settings(deadline=None, max_examples=30)
@given(
    case=st.builds(
        Case,
        m_c=st.integers(1, 700),
        m_d=st.integers(1, 60),
        b=st.integers(1, 20),
        h=st.just(6),
        g=st.sampled_from([1, 2, 3, 6]),
        d=st.integers(1, 40),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        G=st.integers(1, 2),
        n=st.integers(1, 3),
        gap=st.integers(0, 5),
        empty=st.sampled_from(["", "context", "suffix", "both"]),
        seed=st.integers(0, 2**16),
    )
)
def test_any_size(case: Case) -> None:
    hold(RUN, case)


@pytest.mark.parametrize("case", marked(FEATURES, slow))
def test_poison_changes_no_bit(case: Case) -> None:
    dead_slots_change_no_bit(RUN, case)


def test_rows_without_keys() -> None:
    rows_without_keys_are_empty(RUN, replace(FEATURES[0], empty="both", G=2, b=4), dead_rows=2)


@pytest.mark.parametrize(
    "sizes",
    [
        {"heads_per_pass": 1},
        {"heads_per_pass": 2},
        {"tiles_per_pass": 2},
        {"heads_per_pass": 2, "tiles_per_pass": 3, "ahead": 1},
        {"ahead": 5},
        {"lag": 3, "ahead": 2},
        {"ahead": 9, "values_late": 3},  # more than there are chunks
        {"late_suffixes": True},
        {"late_suffixes": True, "lag": 4, "heads_per_pass": 2, "tiles_per_pass": 2},
    ],
)
def test_schedule_changes_no_bit(sizes: dict[str, Any]) -> None:
    """What shares a pass, and when a job is loaded and folded, are matters of speed only."""
    case = Case(m_c=600, m_d=3, b=140, h=6, g=3, d=32)
    arguments = make(case)
    expected = simulate(BIFURCATED, arguments, heads_per_pass=3, tiles_per_pass=1)
    actual = simulate(BIFURCATED, arguments, **sizes)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("b", [8, 16])
def test_same_bits_whatever_b_is(b: int) -> None:
    """With tiles of the same keys, a sample's output does not depend on how many there are."""
    case = Case(m_c=1500, m_d=16, b=64, h=2, g=2, d=64, dtype="bfloat16", gap=0)
    arguments = make(case)
    sizes = bifurcated_options(arguments)
    many = simulate(BIFURCATED, arguments, **sizes | {"chunk_columns": 8 * case.b})
    for name in ("q", "suffix_len"):
        arguments[name] = arguments[name][:, :b].contiguous()
    for name in ("k_suf", "v_suf"):
        arguments[name] = arguments[name][:, : b * case.m_d].contiguous()
    few = simulate(BIFURCATED, arguments, **sizes | {"chunk_columns": 8 * b})
    assert torch.equal(few, many[:, :b])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_logits_of_ten_thousand(dtype: str) -> None:
    """The rounded shift stays within the range of the exponential, and the rest is exact enough."""
    case = Case(m_c=700, m_d=9, b=3, h=4, g=2, d=64, logit_scale=3000.0, dtype=dtype)
    assert largest_logit(make(case)) > 1e4
    hold(RUN, case)


def test_returned_states_merge() -> None:
    returned_states_merge(RUN)


def test_operator_is_the_kernel() -> None:
    """kernels="nki" runs the kernel: same bits as a direct run, and not those of the reference."""
    arguments = make(Case(m_c=300, m_d=9, b=5, h=4, g=2, d=64))
    direct = simulate(BIFURCATED, arguments, **bifurcated_options(arguments))
    through = bifurcated_attention(**arguments, kernels="nki")
    reference = bifurcated_attention(**arguments, kernels="torch")
    assert torch.equal(direct, through)
    assert not torch.equal(through, reference)
    torch.testing.assert_close(through, reference, rtol=1e-4, atol=1e-5)


def test_exported_program_runs_the_kernel() -> None:
    """A graph that was exported with kernels="nki" simulates when it is run."""
    arguments = make(Case(m_c=30, m_d=4, b=3, h=4, g=2, d=16))
    scale = arguments.pop("scale")

    class Attention(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return bifurcated_attention(*tensors, scale=scale, kernels="nki")

    tensors = tuple(arguments.values())
    program = torch.export.export(Attention(), tensors)
    expected = bifurcated_attention(**arguments, scale=scale, kernels="nki")
    assert torch.equal(program.module()(*tensors), expected)


def test_strided_arguments_are_made_dense() -> None:
    arguments = make(Case(m_c=30, m_d=4, b=3, h=4, g=2, d=16))
    expected = bifurcated_attention(**arguments, kernels="nki")
    arguments["q"] = arguments["q"].transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(bifurcated_attention(**arguments, kernels="nki"), expected)


@pytest.mark.parametrize("b", [1, 40, 150])
def test_context_is_read_once_whatever_b_is(b: int) -> None:
    """The point of it all, counted in the trace: K and V of the context cross DMA exactly once."""
    case = Case(m_c=600, m_d=3, b=b, h=4, g=2, d=32, dtype="bfloat16")
    arguments = make(case)
    trace = nki_sim.Trace()
    simulate(BIFURCATED, arguments, trace=trace, **bifurcated_options(arguments))
    read = dma_reads(trace)
    for name in ("k_ctx", "v_ctx", "k_suf", "v_suf", "q"):
        assert read[name] == arguments[name].nbytes
    written = sum(
        access.nbytes
        for instruction in trace
        if instruction.engine == "dma"
        for _, access in instruction.writes
        if not access.allocation.partitions
    )
    assert written == arguments["q"].nbytes  # the output: no logits, no weights


def dma_reads(trace: nki_sim.Trace) -> dict[str, int]:
    """Bytes that DMA read from each argument."""
    read: dict[str, int] = {}
    for instruction in trace:
        if instruction.engine == "dma":
            for _, access in instruction.reads:
                name = access.allocation.name
                if access.allocation.argument:
                    read[name] = read.get(name, 0) + access.nbytes
    return read


def peak(trace: nki_sim.Trace, space: str) -> int:
    """Most bytes a partition in use at once, a tile living from its first use to its last."""
    uses: dict[int, tuple[int, int, int]] = {}
    for instruction in trace:
        for _, access in (*instruction.writes, *instruction.reads):
            a = access.allocation
            if a.space.value == space:
                size = a.partition_bytes
                if space == "psum":  # a matmul's tile takes whole banks
                    size = 2048 * math.ceil(size / 2048)
                first = uses.get(a.id, (instruction.index, 0, 0))[0]
                uses[a.id] = (first, instruction.index, size)
    change: dict[int, int] = {}
    for first, last, size in uses.values():
        change[first] = change.get(first, 0) + size
        change[last + 1] = change.get(last + 1, 0) - size
    return int(np.cumsum([change[index] for index in sorted(change)]).max())


@pytest.mark.slow
@pytest.mark.parametrize("element_bytes", [2, 4])
@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize(
    ("b", "m_d", "d"), [(127, 128, 128), (61, 40, 80), (128, 1024, 128), (100, 128, 256)]
)
def test_any_batch_and_suffix_fits(
    b: int, m_d: int, d: int, target: str, element_bytes: int
) -> None:
    """Whatever divides b and m_d, or nothing: the simulator refuses what does not fit on chip."""
    work = Decode(1, b, 1, 2, 2, d, 300, m_d, element_bytes)
    assert predict.profile("bifurcated", work, target).total_us > 0


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(m_c=600, m_d=2, b=130, h=8, g=8, d=128), id="many-kv-heads"),
        pytest.param(
            Case(m_c=1, m_d=1, b=1500, h=8, g=1, d=128), id="many-rows", marks=pytest.mark.slow
        ),
    ],
)
def test_fits_on_chip(case: Case) -> None:
    """The schedule leaves SBUF room to spare, and whole PSUM banks suffice."""
    arguments = make(case)
    trace = nki_sim.Trace()
    simulate(BIFURCATED, arguments, trace=trace, **bifurcated_options(arguments))
    assert peak(trace, "sbuf") <= 160 * 1024
    assert peak(trace, "psum") <= 8 * 2048
