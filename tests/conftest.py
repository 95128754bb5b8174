"""What every test shares: exactly one ring a test, and one thread for its small tensors."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Before torch is first imported: threads that wait for each other cost more than they bring here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test fails by the clock: machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

RINGS = ("null", "sim", "sdk", "device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hold every test to exactly one ring, and let `long` imply `slow`."""
    for item in items:
        rings = [ring for ring in RINGS if item.get_closest_marker(ring)]
        if len(rings) != 1:
            raise pytest.UsageError(
                f"{item.nodeid} carries the ring marks {rings}; it must carry one of {RINGS}"
            )
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
