"""The kernels on AWS's own software: its simulator (ring sdk), and a Neuron device (ring device).

Neither has been run so far: both are skipped where the SDK is not installed. They are here so that
whoever has it can.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compile.devices import resolve, sdk_version
from nki_kernels import bifurcated_attention, flash_attention, launch
from nki_kernels.cases import (
    FEATURES,
    FLASH,
    Case,
    FlashCase,
    decode_pairwise,
    error,
    flash_oracle,
    largest_logit,
    make,
    make_flash,
    oracle,
    tolerance,
)
from nki_sim.binding import find_sdk
from tests.nki_kernels.running import BIFURCATED, OPTIONS, bifurcated_options, flash_options
from tests.nki_kernels.running import FLASH as FLASH_KERNEL

DECODE = [*FEATURES, *decode_pairwise()]

needs_nki = pytest.mark.skipif(find_sdk() is None, reason="AWS's nki is not installed")
needs_device = pytest.mark.skipif(sdk_version() is None, reason="AWS's torch-neuronx is not here")


def aws_simulated(kernel: tuple[str, str], arguments: dict[str, Any], options: Any) -> torch.Tensor:
    """The kernel's output by AWS's simulator, at trn1, the narrowest generation."""
    import nki

    tensors = [value for name, value in arguments.items() if name not in OPTIONS]
    result: torch.Tensor = nki.simulate(launch.load(*kernel))(*tensors, **options)
    return result


@needs_nki
@pytest.mark.sdk
@pytest.mark.parametrize("case", DECODE, ids=str)
def test_bifurcated_on_aws_simulator(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    arguments = make(case)
    expected = oracle(arguments)[0]
    o = aws_simulated(BIFURCATED, arguments, bifurcated_options(arguments))
    assert error(o, expected) <= tolerance(expected, case.dtype, largest_logit(arguments))


@needs_nki
@pytest.mark.sdk
@pytest.mark.parametrize("case", FLASH, ids=str)
def test_flash_on_aws_simulator(case: FlashCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    arguments = make_flash(case)
    expected = flash_oracle(arguments)[0]
    o = aws_simulated(FLASH_KERNEL, arguments, flash_options(arguments))
    assert error(o, expected) <= tolerance(expected, case.dtype)


def on_neuron(arguments: dict[str, Any]) -> dict[str, Any]:
    device = resolve("neuron").torch
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@needs_device
@pytest.mark.device
@pytest.mark.parametrize("kernels", ["nki", "torch"])
@pytest.mark.parametrize("case", DECODE, ids=str)
def test_bifurcated_on_neuron(case: Case, kernels: str) -> None:
    arguments = make(case)
    expected = oracle(arguments)[0]
    o = bifurcated_attention(**on_neuron(arguments), kernels=kernels).cpu()
    assert error(o, expected) <= tolerance(expected, case.dtype, largest_logit(arguments))


@needs_device
@pytest.mark.device
@pytest.mark.parametrize("kernels", ["nki", "torch"])
@pytest.mark.parametrize("case", FLASH, ids=str)
def test_flash_on_neuron(case: FlashCase, kernels: str) -> None:
    arguments = make_flash(case)
    expected = flash_oracle(arguments)[0]
    o = flash_attention(**on_neuron(arguments), kernels=kernels).cpu()
    assert error(o, expected) <= tolerance(expected, case.dtype)
