"""What `--device` means: the torch device to run on, and a clear refusal where there is none."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import torch

from nki_kernels.errors import InputError

DEVICES = ("cpu", "cuda", "neuron", "simulate")

# torch-neuronx follows torch's major version; the empty package of that name on the public index is
# 1.0.
_SDK_PACKAGE = "torch-neuronx"
_SDK_MAJOR = "2."


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    Attributes:
        name: the word that was asked for, one of `DEVICES`.
        torch: the torch device of weights and caches.
        kernels: what `--kernels auto` means there, one of "auto", "nki", "torch".
    """

    name: str
    torch: torch.device
    kernels: str


def sdk_version() -> str | None:
    """The installed torch-neuronx of AWS's SDK, or None; the public index's stub does not count."""
    try:
        version = importlib.metadata.version(_SDK_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    return version if version.startswith(_SDK_MAJOR) else None


def resolve(name: str) -> Device:
    """Turn a device name into a device that is really here.

    "simulate" keeps tensors on the CPU and runs the NKI kernels on the simulator. "neuron" goes
    through PyTorch/XLA of the Neuron SDK, operator by operator; it has never run on a device here.

    Raises:
        InputError: the name is unknown, or its hardware or software is not on this machine.
    """
    if name == "cpu":
        return Device(name, torch.device("cpu"), "auto")
    if name == "simulate":
        return Device(name, torch.device("cpu"), "nki")
    if name == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"--device cuda: torch {torch.__version__} sees no CUDA device here")
        return Device(name, torch.device("cuda"), "auto")
    if name == "neuron":
        return _neuron()
    raise InputError(f"--device {name!r} is not one of {', '.join(DEVICES)}")


def _neuron() -> Device:
    if sdk_version() is None:
        try:
            found = f"version {importlib.metadata.version(_SDK_PACKAGE)}, which is an empty stub"
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        raise InputError(
            "--device neuron needs AWS's torch-neuronx 2.9 or later (Neuron pip repository); "
            f"found {found}"
        )
    import torch_xla

    return Device("neuron", torch_xla.device(), "auto")
