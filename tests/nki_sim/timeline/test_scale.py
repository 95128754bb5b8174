"""Large records are timed in seconds, and never-run arithmetic is what makes that possible."""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
import pytest

import nki_sim
from nki_sim.timeline import benchmarks as b

pytestmark = [pytest.mark.sim, pytest.mark.slow]

BF16 = ml_dtypes.bfloat16


def test_matmul_of_4096_cubed() -> None:
    start = time.process_time()
    arrays = [np.empty((4096, 4096), BF16) for _ in range(2)]
    p = nki_sim.profile(b.matmul_optimised, *arrays, target="trn1", shapes_only=True)
    assert p.instructions > 8192 and time.process_time() - start < 30


@pytest.mark.long
def test_200_000_instructions_in_a_minute() -> None:
    arrays = [np.empty((8192, 4096), BF16), np.empty((8192, 16384), BF16)]
    trace = nki_sim.Trace()
    from nki_sim.kernel import Kernel, Simulation

    Simulation(Kernel(b.matmul_tiled), "gen2", trace, shapes_only=True)(*arrays)
    assert len(trace) > 195_000
    start = time.process_time()
    nki_sim.Profile(trace, nki_sim.get_target("gen2"))
    assert time.process_time() - start < 60
