"""Predicted times of the prefill kernel against the speed of light, which its README tabulates."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nki_sim
from nki_kernels import launch
from nki_kernels.flash_attention import tuning
from nki_kernels.flash_attention.validate import Shape
from nki_kernels.speed_of_light import Prefill, speed_of_light
from tests.nki_kernels.running import FLASH as KERNEL

pytestmark = [pytest.mark.sim, pytest.mark.slow]

BAR = {"trn1": 1.4, "trn2": 1.5}
START_US = 8.0


def predict(target: str, S: int, start: int, h: int, g: int) -> tuple[nki_sim.Profile, float]:
    """The profile of one call in bf16 at d = 128, and its speed of light in us."""
    d, keys = 128, start + S
    plan = tuning.schedule(Shape(B=1, S=S, h=h, g=g, d=d, S_ctx=keys, start=start), 2, target)
    dtype: Any = ml_dtypes.bfloat16
    profile = nki_sim.profile(
        launch.load(*KERNEL),
        np.empty((1, S, h, d), dtype),
        np.empty((g, d, keys), dtype),
        np.empty((g, keys, d), dtype),
        d**-0.5,
        target=target,
        shapes_only=True,
        **tuning.kernel_options(plan, start),
    )
    return profile, speed_of_light(Prefill(1, S, h, g, d, prior=start), target).us


@pytest.mark.parametrize("target", BAR)
@pytest.mark.parametrize("heads", [(1, 1), (4, 1)], ids=["one", "grouped"])
def test_4096_positions(target: str, heads: tuple[int, int]) -> None:
    profile, light = predict(target, 4096, 0, *heads)
    assert profile.total_us <= BAR[target] * light + START_US
    assert profile.sbuf_peak <= profile.sbuf_capacity and profile.psum_peak <= profile.psum_capacity


@pytest.mark.parametrize("target", BAR)
def test_8192_positions_as_the_sum_of_chunks(target: str) -> None:
    calls = [predict(target, 2048, start, 1, 1) for start in range(0, 8192, 2048)]
    total = sum(profile.total_us for profile, _ in calls)
    assert total <= BAR[target] * sum(light for _, light in calls) + START_US


@pytest.mark.parametrize("target", BAR)
def test_keys_and_values_are_read_once_for_all_query_heads(target: str) -> None:
    profile, _ = predict(target, 512, 1536, 4, 1)
    element = 2
    keys, rows = 2048 * 128 * element, 512 * 4 * 128 * element
    assert profile.bytes_first_touched == 2 * keys + 2 * rows
