"""Ranks as threads of one process: what a collective waits for. No part of neuronx-distributed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_here = threading.local()
PATIENCE = 60.0  # seconds


@dataclass(eq=False)
class Group:
    """A process group as the real mock makes one: of all groups in its mesh, rank 0's."""

    mesh: list[list[int]]

    def rank(self) -> int:
        """0: one graph is traced for all ranks."""
        return 0

    def size(self) -> int:
        """How many ranks each group of the mesh has."""
        return len(self.mesh[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self


class World:
    """So many ranks that run one function each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: dict[tuple[int, ...], dict[int, Tensor]] = {}
        self.barriers: dict[tuple[int, ...], threading.Barrier] = {}
        self.lock = threading.Lock()

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        """What `function(rank)` gives on each rank, all at once."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def work(rank: int) -> None:
            _here.world, _here.rank = self, rank
            try:
                results[rank] = function(rank)
            except BaseException as error:
                errors.append(error)
                for barrier in self.barriers.values():
                    barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


def exchange(group: Group, tensor: Tensor) -> list[Tensor]:
    """What all ranks of this rank's group gave."""
    world, rank = _here.world, _here.rank
    ranks = next(tuple(each) for each in group.mesh if rank in each)
    with world.lock:
        barrier = world.barriers.setdefault(ranks, threading.Barrier(len(ranks)))
        slots = world.slots.setdefault(ranks, {})
    slots[rank] = tensor
    barrier.wait(PATIENCE)
    found = [slots[each] for each in ranks]
    barrier.wait(PATIENCE)
    return found
