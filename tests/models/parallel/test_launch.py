"""Which processes and which library: what is refused, and what a stub is."""

from __future__ import annotations

import importlib.metadata

import pytest

from models.parallel import SINGLE, Ranks, TensorParallel, neuron, start
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


@pytest.mark.parametrize(
    ("world", "tp", "message"),
    [
        (None, 0, "tp is 0; it must be 1 or more"),
        (None, 2, "tp is 2, and there is one process; torchrun --nproc-per-node 2 starts as many"),
        ("2", 1, "tp is 1, and there are 2 processes"),
        ("3", 2, "tp is 2, and there are 3 processes"),
    ],
)
def test_number_of_processes(
    monkeypatch: pytest.MonkeyPatch, world: str | None, tp: int, message: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(InputError, match=message):
        start(tp)


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert start(1) is SINGLE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert start(1) is SINGLE
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("version", "real"), [(None, False), ("0.1", False), ("0.18.27753", True), ("1.0", True)]
)
def test_a_stub_is_not_the_library(
    monkeypatch: pytest.MonkeyPatch, version: str | None, real: bool
) -> None:
    def installed(name: str) -> str:
        assert name == "neuronx-distributed"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.delenv("NXD_CPU_MODE", raising=False)
    assert (neuron.neuronx_distributed_version() is not None) == real
    assert neuron.runs_the_devices("xla") == real
    assert not neuron.runs_the_devices("cpu")
    assert not neuron.runs_the_devices("cuda")
    monkeypatch.setenv("NXD_CPU_MODE", "1")
    assert neuron.runs_the_devices("cpu") == real
    if not real:
        with pytest.raises(InputError, match=r"neuronx-distributed 0.18 or later"):
            neuron.from_neuronx_distributed()


def test_groups_that_do_not_divide_tp() -> None:
    with pytest.raises(InputError, match="tp is 6, which groups of 4 ranks do not divide"):
        TensorParallel(Ranks(0, 6)).subgroup(4)
    with pytest.raises(InputError, match=r"rank is 3; it must be in 0\.\.2"):
        Ranks(3, 3)
    assert TensorParallel(Ranks(5, 6)).subgroup(3).rank == 2
