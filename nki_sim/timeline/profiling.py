"""``profile``: run a kernel, time its record at low, nominal and high constants, and report."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nki_sim.dependencies import dependencies
from nki_sim.errors import AdviceWarning, UnwrittenReadWarning
from nki_sim.kernel import Simulation
from nki_sim.memory import PSUM, SBUF
from nki_sim.rebind import rebound
from nki_sim.targets import PSUM_PARTITION_BYTES, Target, get_target
from nki_sim.timeline import perfetto, plot, report
from nki_sim.timeline.constants import Timing, timing
from nki_sim.timeline.critical import Lane, Step, lanes, limiting, steps
from nki_sim.timeline.resources import first_touched, resources, tensor_flops
from nki_sim.timeline.schedule import schedule
from nki_sim.trace import Trace
from nki_sim.usage import memory_usage

VALIDATION_ROWS = {"gen2": 7, "gen3": 16, "gen4": 0}
"""Published measurements that the model is held against, by generation (``published.py``)."""

ENOUGH_ROWS = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """One end of a prediction: us in all, the same with the launch, and what limits it."""

    total_us: float
    launch_us: float
    bound: str


class Profile:
    """How long one launch takes on a NeuronCore, and why. Times are predictions, in us.

    Attributes:
        target: the generation.
        trace: the record.
        low, high: ``Estimate`` at both ends of the constants' ranges.
        total_us: from the kernel's first instruction to its last, nominal constants.
        launch_us: what published totals have before and after that; not in ``total_us``.
        engines: ``Lane`` by engine ("dma" is all DMA engines of a core; "1 vector" core 1's).
        bytes: bytes that DMA writes.
        bytes_first_touched: bytes of HBM with every tensor counted once a direction.
        bandwidth: bytes over total time, GB/s.
        dma_bandwidth: bytes over the time that DMA is active, GB/s.
        sbuf_peak, psum_peak: bytes a partition alive at once in program order, fullest core.
        critical_path: ``Step`` list, longest first.
        resources: us that the record asks of each resource at least.
        busiest: the largest of them; not a bound on the task (wasted work counts).
        bound: the engine with the most time on the critical path.
        bound_certain: whether that holds at low and high constants too.
        validated: whether enough published measurements stand behind this generation.
    """

    def __init__(self, trace: Trace, target: Target) -> None:
        if not trace.instructions:
            raise ValueError("the kernel issued no instruction: there is nothing to time")
        self.target = target.generation
        self.trace = trace
        self._target = target
        before = instruction_order(trace)
        self.timing = timing(self.target, "nominal")
        self.schedule = schedule(trace, before, self.timing)
        self.low = _estimate(trace, before, timing(self.target, "low"))
        self.high = _estimate(trace, before, timing(self.target, "high"))
        s = self.schedule
        self.total_us = s.total / 1000
        self.launch_us = self.timing.launch_ns / 1000
        self.engines: dict[str, Lane] = lanes(trace, s)
        self.bytes = trace.dma_bytes
        self.bytes_first_touched = first_touched(trace.instructions)
        self.bandwidth = self.bytes / s.total
        active = sum(s.dma_busy)
        self.dma_bandwidth = self.bytes / active if active else 0.0
        usage = memory_usage(trace, target)
        self.sbuf_peak = max((u.peak for u in usage if u.space is SBUF), default=0)
        self.psum_peak = max((u.peak for u in usage if u.space is PSUM), default=0)
        self.critical_path: list[Step] = steps(trace, s)
        self.resources = resources(trace, self.timing)
        self.busiest = max(self.resources, key=lambda name: self.resources[name])
        self.bound = limiting(trace, s)
        self.bound_certain = self.low.bound == self.bound == self.high.bound
        self.flops = tensor_flops(trace)
        self.validated = VALIDATION_ROWS[self.target] >= ENOUGH_ROWS

    @property
    def low_us(self) -> float:
        """``total_us`` at the constants that make kernels fastest.

        Engines take instructions greedily, so that quicker ones can end a little later: never that.
        """
        return min(self.low.total_us, self.total_us)

    @property
    def high_us(self) -> float:
        """``total_us`` at the constants that make kernels slowest, likewise."""
        return max(self.high.total_us, self.total_us)

    @property
    def sbuf_capacity(self) -> int:
        """Bytes a partition that a kernel may use."""
        return self._target.sbuf_usable_bytes_per_partition

    @property
    def psum_capacity(self) -> int:
        """Bytes a partition."""
        return PSUM_PARTITION_BYTES

    @property
    def instructions(self) -> int:
        """Executed instructions."""
        return len(self.trace)

    @property
    def stalls(self) -> dict[str, dict[str, float]]:
        """us that each engine waited, by what it waited for."""
        return {name: dict(lane.stalls) for name, lane in self.engines.items()}

    def summary(self) -> str:
        """The report as text; also printed."""
        text = report.summary(self)
        print(text)
        return text

    def save_perfetto(self, path: str | Path) -> None:
        """Write a trace for ui.perfetto.dev or chrome://tracing, a track an engine and queue."""
        perfetto.save(self, Path(path))

    def plot(self, path: str | Path) -> None:
        """Draw engine lanes and a roofline as PNG.

        Raises:
            ImportError: without matplotlib (``pip install 'bifork[plot]'``).
        """
        plot.draw(self, Path(path))

    def __repr__(self) -> str:
        return (
            f"<Profile {self.target}: {self.total_us:.2f} us ({self.low_us:.2f} to "
            f"{self.high_us:.2f}), bound by {self.bound}>"
        )


def profile(
    kernel: Any,
    *arrays: Any,
    target: str | Target = "trn1",
    lnc: int = 1,
    shapes_only: bool = False,
    **options: Any,
) -> Profile:
    """Predict how long a kernel takes on a NeuronCore, and why.

    Args:
        kernel: a function, an ``@nki.jit`` kernel of ours or of the SDK, or a ``partial`` of one.
        arrays: its positional arguments: NumPy arrays, torch CPU tensors, plain values.
        target: trn1, inf2, gen2, trn2, gen3, trn3 or gen4.
        lnc: physical cores.
        shapes_only: record instructions without computing; the arrays' contents are not looked at
            (``numpy.empty`` will do), and nothing is written to them.
        options: keyword arguments of the kernel.

    Raises:
        ValueError: for an unknown target, or a kernel that issues no instruction.
        ShapesOnlyError: with ``shapes_only`` where control flow or an address depends on data.
        SimulatorError: whatever else stops the kernel in simulation.
        NotImplementedError: for an instruction without a cost model.
    """
    generation = get_target(target)
    trace = Trace()
    while isinstance(kernel, functools.partial):
        arrays = (*kernel.args, *arrays)
        options = {**kernel.keywords, **options}
        kernel = kernel.func
    bound = rebound(kernel)
    if lnc != 1:
        bound = bound[lnc]
    with warnings.catch_warnings():
        if shapes_only:  # what was never computed is never written either
            warnings.simplefilter("ignore", UnwrittenReadWarning)
            warnings.simplefilter("ignore", AdviceWarning)
        Simulation(bound, generation, trace, shapes_only=shapes_only)(*arrays, **options)
    return Profile(trace, generation)


def faster(a: Profile, b: Profile) -> tuple[bool, bool]:
    """(whether a is faster than b, whether that holds at low and at high constants alike)."""
    verdicts = [
        a.low_us < b.low_us,
        a.total_us < b.total_us,
        a.high_us < b.high_us,
    ]
    return verdicts[1], len(set(verdicts)) == 1


def instruction_order(trace: Trace) -> Sequence[Sequence[int]]:
    """For each instruction, the indices of those that must finish before it starts."""
    before = dependencies(trace).before
    return [[d.producer for d in before[i.index]] for i in trace.instructions]


def _estimate(trace: Trace, before: Sequence[Sequence[int]], t: Timing) -> Estimate:
    s = schedule(trace, before, t)
    return Estimate(s.total / 1000, t.launch_ns / 1000, limiting(trace, s))
