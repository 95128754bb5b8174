"""`--device`: what it resolves to, and what it says where the hardware or the SDK is missing."""

from __future__ import annotations

import importlib.metadata
import sys
import types

import pytest
import torch

from compile.devices import DEVICES, resolve, sdk_version
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    real = importlib.metadata.version

    def fake(name: str) -> str:
        if name != "torch-neuronx":
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


def test_cpu_and_simulate_differ_only_in_kernels() -> None:
    assert resolve("cpu").torch == resolve("simulate").torch == torch.device("cpu")
    assert (resolve("cpu").kernels, resolve("simulate").kernels) == ("auto", "nki")


@pytest.mark.parametrize(("version", "said"), [(None, "nothing"), ("1.0", "empty stub")])
def test_neuron_without_the_sdk_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str | None, said: str
) -> None:
    _pretend_installed(monkeypatch, version)
    assert sdk_version() is None
    with pytest.raises(InputError, match=f"needs AWS's torch-neuronx.*{said}"):
        resolve("neuron")


def test_neuron_with_an_sdk_asks_torch_xla_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_installed(monkeypatch, "2.9.0.2.13.1")
    stand_in = types.ModuleType("torch_xla")
    stand_in.device = lambda: torch.device("meta")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_xla", stand_in)
    assert resolve("neuron").torch == torch.device("meta")


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"--device cuda.*no CUDA device"):
        resolve("cuda")


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'tpu' is not one of " + ", ".join(DEVICES)):
        resolve("tpu")
