"""Joining the processes that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from models.parallel import neuron
from models.parallel.state import SINGLE, TensorParallel
from nki_kernels.errors import InputError

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xla": "xla"}


@contextmanager
def started(tp: int, device: torch.device | str = "cpu") -> Iterator[TensorParallel]:
    """`start`, and at the end the process group is left, if it was joined here."""
    keep = dist.is_initialized()
    try:
        yield start(tp, device)
    except InputError:
        keep = True  # it may be one rank's own mistake: who tells it sees that there is a group
        raise
    finally:
        if dist.is_initialized() and not keep:
            dist.destroy_process_group()


def start(tp: int, device: torch.device | str = "cpu") -> TensorParallel:
    """The state of parallelism of this process; at tp = 1 nothing is started.

    Layers are neuronx-distributed's where it runs the devices (see `neuron.runs_the_devices`), and
    ours otherwise: over gloo on a CPU, over NCCL on CUDA. A process group that exists already is
    used.

    Args:
        tp: how many processes there must be.
        device: of the weights.

    Raises:
        InputError: tp is below 1, or torchrun started another number of processes.
    """
    if tp < 1:
        raise InputError(f"tp is {tp}; it must be 1 or more")
    if tp == 1 and "WORLD_SIZE" not in os.environ:
        return SINGLE
    there = int(os.environ.get("WORLD_SIZE", "1"))
    if there != tp:
        found = "there is one process" if there == 1 else f"there are {there} processes"
        raise InputError(f"tp is {tp}, and {found}; torchrun --nproc-per-node {tp} starts as many")
    if tp == 1:
        return SINGLE
    kind = torch.device(device).type
    if not dist.is_initialized():
        if kind == "cuda":
            torch.cuda.set_device(local_rank())
        dist.init_process_group(BACKENDS[kind])
    if neuron.runs_the_devices(kind):
        from neuronx_distributed.parallel_layers import parallel_state

        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
        return neuron.from_neuronx_distributed()
    world = dist.group.WORLD
    assert world is not None
    return TensorParallel(world)


@contextmanager
def described(tp: int) -> Iterator[TensorParallel]:
    """A group of tp ranks of which only rank 0 exists, so that graphs can be captured in it.

    Its collectives are nodes of a graph like any other's, and never run.

    Raises:
        InputError: this process is in a group already.
    """
    if tp == 1:
        yield SINGLE
        return
    if dist.is_initialized():
        raise InputError("this process is in a process group; capture graphs in one that is not")
    # torch's own group for this purpose; its store says nothing to anybody.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=tp, store=FakeStore())
    try:
        world = dist.group.WORLD
        assert world is not None
        yield TensorParallel(world)
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    """Which of this host's processes this is; its accelerator has the same number."""
    return int(os.environ.get("LOCAL_RANK", "0"))
