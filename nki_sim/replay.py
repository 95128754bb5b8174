"""Executing a kernel's instructions again in other orders that respect their dependencies.

If the recorded dependencies are complete, every such order leaves the same bits in every memory.
That is what a timeline relies on when it lets engines run side by side; here it is tested by
execution.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from nki_sim.dependencies import Dependency, dependencies
from nki_sim.errors import SimulatorError
from nki_sim.kernel import Simulation
from nki_sim.launch import run_cores
from nki_sim.machine import Core, Launch
from nki_sim.memory import NEVER, Storage
from nki_sim.registers import VirtualRegister
from nki_sim.targets import Target
from nki_sim.trace import Trace
from nki_sim.wide import settle


class Replay:
    """One recorded run of a kernel that can be executed again.

    Two cores are replayed in one thread: an order puts the instructions of both into one line, and
    barriers and exchanges hold there because of their dependencies, not because anyone waits.

    Args:
        kernel, args, kwargs: as for ``nki_sim.simulate``; ``kernel[2]`` for two cores.
        target: generation to simulate.

    Attributes:
        trace: the record.
        before: dependencies of each instruction.
    """

    def __init__(
        self, kernel: Any, *args: Any, target: str | Target | None = None, **kwargs: Any
    ) -> None:
        self.trace = Trace()
        simulation = Simulation(kernel, target, self.trace)
        self._launch: Launch = simulation.keep_calls()
        simulation(*args, **kwargs)
        assert self._launch.calls is not None
        self._calls = self._launch.calls
        self.before = dependencies(self.trace)
        self._storages = list({id(s): s for s in self._launch.storages}.values())
        # placed tensors of one memory share its bytes; one of them stands for all
        self._distinct = list({id(s.data): s for s in self._storages}.values())
        self._expected = [s.data.copy() for s in self._distinct]

    def run(
        self, seed: int, before: Mapping[int, tuple[Dependency, ...]] | None = None
    ) -> list[str]:
        """Execute in a random order that respects ``before`` (default: the recorded dependencies).

        Returns:
            A description of each memory whose final bytes differ from those of program order.
        """
        order = random_order(self.before if before is None else before, seed)
        for storage in self._storages:
            _reset(storage)
        for _, _, args, kwargs in self._calls.values():
            for value in (*args, *kwargs.values()):
                if isinstance(value, VirtualRegister):
                    value.restart()
        recorded = self._launch
        launch = Launch(recorded.target, Trace(), recorded.lnc, recorded.exact_matmul)
        cores = [Core(launch, number) for number in range(recorded.lnc)]

        def again() -> None:
            for index in order:
                number, function, args, kwargs = self._calls[index]
                with cores[number].executing():
                    function(*args, **kwargs)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_cores(cores[:1], again, [], {})
        settle(launch.overlays)
        return [
            repr(s.info)
            for s, want in zip(self._distinct, self._expected, strict=True)
            if not np.array_equal(s.data, want)
        ]


def random_order(before: Mapping[int, tuple[Dependency, ...]], seed: int) -> list[int]:
    """The instruction indices in a random topological order."""
    rng = np.random.default_rng(seed)
    waiting = {index: len(deps) for index, deps in before.items()}
    after: dict[int, list[int]] = {index: [] for index in before}
    for index, deps in before.items():
        for dependency in deps:
            after[dependency.producer].append(index)
    ready = [(rng.random(), index) for index, n in waiting.items() if n == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, index = heapq.heappop(ready)
        order.append(index)
        for consumer in after[index]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                heapq.heappush(ready, (rng.random(), consumer))
    if len(order) != len(before):
        raise SimulatorError("the dependencies form a cycle")
    return order


def _reset(storage: Storage) -> None:
    """Bring a storage back to what it held before the kernel ran."""
    if storage.initial is not None:
        storage.data[...] = storage.initial
        return
    if storage.placed is not None:
        storage.data.fill(0xFF)
        storage.placed.reset()
    else:
        storage.data[...] = storage.fresh()
    storage.state = NEVER
