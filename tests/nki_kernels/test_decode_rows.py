"""The decode kernel with query rows on partitions for its context, at every edge of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nki_kernels.cases import (
    FEATURES,
    POISON,
    Case,
    error,
    largest_logit,
    make,
    oracle,
    tolerance,
)
from tests.nki_kernels.holding import dead_slots_change_no_bit, hold, runner
from tests.nki_kernels.running import BIFURCATED, bifurcated_options

pytestmark = [
    pytest.mark.sim,
    # A read of memory that nothing wrote, or other advice of the simulator, is a failure here.
    pytest.mark.filterwarnings("error"),
]

RUN = runner(BIFURCATED, bifurcated_options)
SMALL: dict[str, Any] = {"row_chunks": True, "block_slots": 4, "ramp": 1, "lag": 3}
"""Blocks of 128 to 512 keys."""
SPLIT: dict[str, Any] = SMALL | {"split_units": True, "unit_slots": 8, "resident_slots": 16}
"""Each block a chunk of its own, some of them sharing a maximum."""
SPLIT |= {"turn_lag": 3, "start_jobs": 2, "values_late": 1, "ahead": 2}
TARGETS = ("trn1", "trn2")
FULL = Case(m_c=1300, m_d=5, b=32, h=4, g=1, d=32, dtype="bfloat16", gap=0)
"""Row tiles of 128, so that DMA may turn their weights; the last block is no whole one."""


def cut_at(arguments: dict[str, Any], length: int, poison: float) -> dict[str, Any]:
    """The same call with `length` live keys of context, those behind it ±poison."""
    k_ctx, v_ctx = arguments["k_ctx"].clone(), arguments["v_ctx"].clone()
    k_ctx[:, :, length:] = poison
    k_ctx[:, ::2, length:] *= -1
    v_ctx[:, length:] = poison
    context_len = torch.tensor([length], dtype=torch.int32)
    return arguments | {"k_ctx": k_ctx, "v_ctx": v_ctx, "context_len": context_len}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", FEATURES, ids=str)
def test_any_rows(case: Case, target: str) -> None:
    hold(RUN, case, target, **SMALL)


@pytest.mark.parametrize("case", FEATURES, ids=str)
def test_any_split_rows(case: Case) -> None:
    hold(RUN, case, "trn2", **SPLIT)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 512, 513, 1024, 1279, 1280, 1281, 1300])
def test_any_length(length: int, target: str, dtype: str) -> None:
    """Lengths at the edges of partitions, tiles and blocks; dead keys change no bit."""
    share = 8 if target == "trn2" and dtype == "bfloat16" else 0
    full = make(replace(FULL, dtype=dtype))
    results = []
    for poison in (0.0, POISON):
        arguments = cut_at(full, length, poison)
        results.append(RUN(arguments, target, return_state=True, turn_share=share, **SMALL))
    expected, _, _ = oracle(arguments)
    assert error(results[1][0], expected) <= tolerance(expected, dtype, largest_logit(arguments))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("length", [0, 1, 511, 513, 1024, 1281, 1300])
def test_any_length_of_split_units(length: int) -> None:
    """As above; `dead` blocks share a maximum with live ones, and DMA turns some."""
    full = make(FULL)
    results = []
    for poison in (0.0, POISON):
        arguments = cut_at(full, length, poison)
        results.append(RUN(arguments, "trn2", return_state=True, turn_share=5, **SPLIT))
    expected, _, _ = oracle(arguments)
    bound = tolerance(expected, FULL.dtype, largest_logit(arguments))
    assert error(results[1][0], expected) <= bound
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", [FEATURES[1], FEATURES[5], FEATURES[13]], ids=str)
def test_dead_slots_change_no_bit(case: Case, target: str) -> None:
    dead_slots_change_no_bit(RUN, case, target, **SMALL)


@pytest.mark.parametrize("lag", [2, 4, 7])
def test_lag_changes_no_bit(lag: int) -> None:
    """How late a chunk is folded is a matter of speed only."""
    arguments = make(FULL)
    expected = RUN(arguments, "trn2", **SMALL)
    assert torch.equal(RUN(arguments, "trn2", **SMALL | {"lag": lag}), expected)


@pytest.mark.parametrize(
    "changed", [{"lag": 7}, {"turn_lag": 1}, {"turn_share": 0}, {"start_jobs": 9}], ids=str
)
def test_order_of_split_units_changes_little(changed: dict[str, Any]) -> None:
    """Who turns weights, and when, is a matter of speed; values join in another order at most."""
    arguments = make(FULL)
    sizes = SPLIT | {"turn_share": 4}
    expected = RUN(arguments, "trn2", **sizes).float()
    found = RUN(arguments, "trn2", **sizes | changed).float()
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_ten_thousand(dtype: str) -> None:
    case = Case(m_c=700, m_d=9, b=20, h=4, g=1, d=64, logit_scale=3000.0, dtype=dtype)
    for target in TARGETS:
        hold(RUN, case, target, **SMALL)
    hold(RUN, case, "trn2", **SPLIT)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize(
    "case",
    [
        Case(m_c=1300, m_d=5, b=10, h=8, g=1, d=64, dtype="float16", sinks=True),
        Case(m_c=700, m_d=9, b=20, h=12, g=2, d=160, dtype="bfloat16", sinks=True),
        Case(m_c=1024, m_d=10, b=30, h=4, g=1, d=80, dtype="bfloat16"),  # row tiles of 120
        Case(m_c=1300, m_d=8, b=32, h=4, g=1, d=64, dtype="bfloat16", fp8=True, n=2),
        Case(m_c=700, m_d=9, b=20, h=12, g=2, d=160, dtype="float16", fp8=True, sinks=True),
        Case(m_c=1024, m_d=10, b=30, h=4, g=1, d=31, dtype="bfloat16", fp8=True),  # no pairs
        Case(m_c=700, m_d=10, b=30, h=4, g=1, d=48, fp8=True),
        Case(m_c=1300, m_d=12, b=32, h=4, g=1, d=64, dtype="bfloat16", n=3, window=700),
        Case(m_c=1300, m_d=12, b=32, h=4, g=1, d=64, dtype="bfloat16", window=5, position=True),
        Case(m_c=700, m_d=9, b=20, h=12, g=2, d=160, dtype="bfloat16", softcap=9.0, sinks=True),
        Case(m_c=700, m_d=10, b=30, h=4, g=1, d=48, softcap=20.0, window=90, fp8=True),
    ],
    ids=str,
)
def test_with_what_it_serves(case: Case, lnc: int) -> None:
    """Features, 8 bits, fp16, wide heads and two cores; shares of the context among them."""
    sizes = SMALL | {"block_slots": 8}
    hold(RUN, case, "trn2", turn_share=4, lnc=lnc, **sizes)
    hold(RUN, case, "trn2", turn_share=4, lnc=lnc, **SPLIT)
    if lnc == 1:
        hold(RUN, case, "trn1", **sizes)


@pytest.mark.parametrize("target", TARGETS)
def test_rule_chooses_it(target: str) -> None:
    """The operator's schedule takes it where rows fill the partitions, and it fits with fp32."""
    for dtype in ("float32", "bfloat16"):
        case = Case(m_c=2048, m_d=16, b=48, h=4, g=1, d=128, dtype=dtype)
        assert bifurcated_options(make(case), target)["row_chunks"]
        hold(RUN, case, target)


@pytest.mark.parametrize("m_c", [896, 1200])
def test_full_tile_of_single_rows(m_c: int) -> None:
    """NeuronCore-v3 takes it for 128 samples of one row, too, from as long a context on as theirs.

    Odd there: a context that ends within a partition's keys, heads one behind the other.
    """
    case = Case(m_c=m_c, m_d=7, b=128, h=2, g=2, d=64, dtype="bfloat16", gap=0)
    for target in TARGETS:
        assert bifurcated_options(make(case), target)["row_chunks"] == (target == "trn2")
        hold(RUN, case, target)
    shorter = replace(case, m_c=895)
    assert not bifurcated_options(make(shorter), "trn2")["row_chunks"]
