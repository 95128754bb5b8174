"""Processes that share a group, of gloo or NCCL, and run functions of the tests, all the same one.

They are started once and kept: a process takes seconds to import torch. `Pool.call` runs a function
on each with the state of parallelism as its first argument; at tp = 2 four of them are two groups
side by side.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.parallel import TensorParallel

PATIENCE = 120.0  # seconds


def work(rank: int, world: int, backend: str, store: str, pipe: Connection) -> None:
    """The life of a process: functions in, results or tracebacks out."""
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend, store=dist.FileStore(store, world), rank=rank, world_size=world
    )
    groups = {}
    for tp in (2, 4, 8):
        for first in range(0, world // tp * tp, tp):
            group = dist.new_group(range(first, first + tp))
            if first <= rank < first + tp:
                groups[tp] = TensorParallel(group)
    while True:
        tp, function, args = pipe.recv()
        try:
            with torch.no_grad():
                pipe.send((True, function(groups[tp], *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class Pool:
    """The processes."""

    def __init__(self, folder: Path, world: int = 4, backend: str = "gloo") -> None:
        context = mp.get_context("spawn")
        self.processes, self.pipes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(
                target=work, args=(rank, world, backend, str(folder / "store"), there)
            )
            process.daemon = True
            process.start()
            self.processes.append(process)
            self.pipes.append(here)

    def call(self, tp: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What `function(parallel, *args)` returns on each rank."""
        for pipe in self.pipes:
            pipe.send((tp, function, args))
        results = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(PATIENCE):
                raise TimeoutError(f"rank {rank} has not answered in {PATIENCE} s")
            results.append(pipe.recv())
        for rank, (done, result) in enumerate(results):
            if not done:
                raise RuntimeError(f"rank {rank}: {result}")
        return [result for _, result in results]

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
