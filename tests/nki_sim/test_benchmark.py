"""The simulator's speed against its bars. Slow machines fail this before they fail anything
else."""

from __future__ import annotations

import statistics

import pytest

from tests.nki_sim import benchmark

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def test_small_instructions_take_tens_of_microseconds():
    found = benchmark.small(200)
    assert statistics.median(found.values()) <= 40, found
    assert max(found.values()) <= 120, found


def test_large_tiles_stay_near_numpy():
    found = benchmark.large(20)
    ratios = {name: ours / numpy for name, (ours, numpy) in found.items()}
    assert statistics.median(ratios.values()) <= 3, ratios
