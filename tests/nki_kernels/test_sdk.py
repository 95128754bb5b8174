"""The kernels on AWS's own software: its simulator (ring sdk), and a Neuron device (ring device).

Neither has been run so far: both are skipped where the SDK is not installed. They are here so that
whoever has it can; `scripts/validate_on_sdk.py` and `validate_on_device.py` write the same down.
"""

from __future__ import annotations

import pytest

from compile.devices import sdk_version
from nki_kernels.calls import KernelCase, kernel_cases
from nki_sim.binding import find_sdk
from scripts.validation.kernels import hold, on_aws_simulator, on_neuron_core

TARGET = "trn1"  # the narrowest generation
CASES = kernel_cases()

needs_nki = pytest.mark.skipif(find_sdk() is None, reason="AWS's nki is not installed")
needs_device = pytest.mark.skipif(sdk_version() is None, reason="AWS's torch-neuronx is not here")


@needs_nki
@pytest.mark.sdk
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_aws_simulator(case: KernelCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", TARGET)
    found = hold(case, TARGET, on_aws_simulator)
    assert found.margin is not None and found.margin <= 1


@needs_device
@pytest.mark.device
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_neuron(case: KernelCase) -> None:
    found = hold(case, TARGET, on_neuron_core)
    assert found.margin is not None and found.margin <= 1
