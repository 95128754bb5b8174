"""Large kernels are recorded without arithmetic and timed; how long it takes is on a dated page."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nki_sim
from nki_sim.timeline import benchmarks as b

pytestmark = [pytest.mark.sim, pytest.mark.slow]

BF16 = ml_dtypes.bfloat16


def test_matmul_of_4096_cubed() -> None:
    arrays = [np.empty((4096, 4096), BF16) for _ in range(2)]
    p = nki_sim.profile(b.matmul_optimised, *arrays, target="trn1", shapes_only=True)
    assert p.instructions > 8192
    assert p.total_us > 8192 * 512 / 2800  # the products alone: 512 columns each at 2.8 GHz


@pytest.mark.long
def test_200_000_instructions() -> None:
    arrays = [np.empty((8192, 4096), BF16), np.empty((8192, 16384), BF16)]
    trace = nki_sim.Trace()
    from nki_sim.kernel import Kernel, Simulation

    Simulation(Kernel(b.matmul_tiled), "gen2", trace, shapes_only=True)(*arrays)
    assert len(trace) > 195_000
    profile = nki_sim.Profile(trace, nki_sim.get_target("gen2"))
    assert profile.instructions == len(trace) and profile.total_us > 0
