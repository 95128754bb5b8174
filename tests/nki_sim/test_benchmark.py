"""The simulator's benchmark covers what there is; its times are for people, on a dated page."""

from __future__ import annotations

import inspect

import pytest

from nki_sim import isa
from tests.nki_sim import benchmark

pytestmark = [pytest.mark.sim, pytest.mark.slow]

NOT_TIMED = {
    "activate2", "core_barrier", "current_or_none", "exponential", "get_nc_sub_version",
    "get_nc_version", "get_target", "nc_matmul_mx", "quantize_mx", "rand2", "register_alloc",
    "sendrecv", "tensor_copy_predicated",
}  # fmt: skip
"""Two cores, gen4 only, no instruction; and what stands there under another name ("select")."""


def test_every_instruction_is_in_the_benchmark():
    timed = benchmark.small(1)
    assert min(timed.values()) > 0
    functions = {name for name, each in vars(isa).items() if inspect.isfunction(each)}
    assert {name for name in functions if not name.startswith("_")} - NOT_TIMED <= set(timed)


def test_large_tiles_stand_beside_numpy():
    found = benchmark.large(1)
    assert found and all(ours > 0 and numpy > 0 for ours, numpy in found.values())
