"""The decode kernel with everything that a call may ask for, every two of them together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import nki_sim
from nki_kernels.cases import (
    Case,
    decode_pairwise,
    make,
    random_case,
)
from tests.nki_kernels.holding import dead_slots_change_no_bit, hold, runner
from tests.nki_kernels.running import BIFURCATED, bifurcated_options
from tests.nki_kernels.test_bifurcated_kernel import dma_reads

pytestmark = [
    pytest.mark.sim,
    # A read of memory that nothing wrote, or other advice of the simulator, is a failure here.
    pytest.mark.filterwarnings("error"),
]

RUN = runner(BIFURCATED, bifurcated_options)
PAIRS = decode_pairwise()
SMALL = {"chunk_columns": 64, "block_slots": 2, "ramp": 1, "suffix_tiles": 2}
"""Sizes at which a few hundred keys take several blocks and chunks."""
ROWS = {"row_chunks": True, "block_slots": 2, "ramp": 1, "lag": 3, "resident_slots": 4}
UNITS = {"split_units": True, "unit_slots": 4, "turn_lag": 2, "start_jobs": 1, "turn_share": 4}
"""And with query rows on partitions, as they are and with split units."""


def every(step: int) -> list[Any]:
    """The pairwise cases; all but every `step`th of them slow."""
    return [
        pytest.param(case, id=str(case), marks=[] if i % step == 0 else [pytest.mark.slow])
        for i, case in enumerate(PAIRS)
    ]


@pytest.mark.parametrize("case", every(5))
def test_features_meet(case: Case) -> None:
    """On two generations of cores, in chunks of their own size and in small ones."""
    hold(RUN, case)
    hold(RUN, case, "trn2")
    hold(RUN, case, "trn2", **SMALL)


@pytest.mark.parametrize("case", every(5))
def test_two_cores_share_the_work(case: Case) -> None:
    """With keys on partitions a logical core of two gives the same bits as one.

    With rows there a core's last head has finer units at its end than another.
    """
    hold(RUN, case, "trn2", lnc=2)
    arguments = make(case)
    one = RUN(arguments, "trn2", return_state=True, row_chunks=False)
    two = RUN(arguments, "trn2", return_state=True, row_chunks=False, lnc=2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def joined(case: Case) -> Case:
    """A case like it of few rows and a long context of one kv head, which two cores share out."""
    long = 1030 + case.m_c // 2
    return replace(
        case, h=case.h // case.g, g=1, G=1 + 2 * (case.G > 1), b=min(case.b, 5), m_c=long
    )


@pytest.mark.parametrize("case", every(5))
def test_two_cores_share_a_context(case: Case) -> None:
    """Where rows are few each reads a part of it once, and their states are joined."""
    case = joined(case)
    trace = nki_sim.Trace()
    hold(RUN, case, "trn2", lnc=2, trace=trace, join_slots=1024)
    assert dma_reads(trace)["v_ctx"] == make(case)["v_ctx"].nbytes


def test_a_core_of_suffixes_alone() -> None:
    """Where the suffixes are more than half of all keys, the other core has the whole context."""
    for sizes in ({}, ROWS, ROWS | UNITS):
        case = Case(m_c=1100, m_d=61, b=19, h=1, g=1, d=16)
        hold(RUN, case, "trn2", lnc=2, join_slots=1, **sizes)


@pytest.mark.parametrize("case", every(5))
def test_dead_slots_change_no_bit(case: Case) -> None:
    dead_slots_change_no_bit(RUN, case)


@pytest.mark.parametrize("seed", range(30))
def test_any_call(seed: int) -> None:
    hold(RUN, random_case(seed), ("trn1", "trn2")[seed % 2])


@pytest.mark.long
@pytest.mark.parametrize("block", range(50))
def test_many_calls(block: int) -> None:
    for seed in range(1000 + 42 * block, 1042 + 42 * block):
        target = ("trn1", "trn2", "trn2", "trn3")[seed % 4]
        sizes = ({}, SMALL, ROWS, ROWS | UNITS)[seed // 4 % 4]
        if target == "trn1" and "split_units" in sizes:
            sizes = ROWS  # NeuronCore-v3 alone splits them
        lnc = {"lnc": 2, "join_slots": 128} if seed % 4 == 2 else {}
        try:
            hold(RUN, random_case(seed), target, **sizes, **lnc)
        except Exception as error:
            error.add_note(f"seed {seed} on {target}: {random_case(seed)}")
            raise
