"""How much SBUF and PSUM a kernel needs: lifetimes, high-water marks, and what occupied them.

A tensor lives from the first instruction that touches it to the last. The compiler decides where
tensors go, so three numbers are given: ``peak`` adds the bytes per partition of all tensors alive
at once, as if each started at partition 0; ``needed`` adds only the share of the 128 partitions
they span, which no placement can beat; and a report also says what one simple placement needs.
Tensors placed at one address by ``address=`` count once. A kernel whose ``needed`` exceeds the
memory even without the tensors that could be loaded again cannot fit and is refused; one that lies
between may or may not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nki_sim import rules
from nki_sim.errors import RuleError
from nki_sim.lifetimes import Idle, Tenant, first_fit, idle, tenants
from nki_sim.memory import PSUM, SBUF, Allocation, MemoryRegion
from nki_sim.targets import PSUM_PARTITION_BYTES, Target, get_target
from nki_sim.trace import Finding, Trace


@dataclass(frozen=True, slots=True)
class Usage:
    """The fullest moment of one memory of one core.

    Attributes:
        space, core: which memory.
        capacity: bytes per partition that a kernel may use.
        peak: bytes per partition alive at once.
        needed: bytes per partition that no placement can do without.
        index: instruction at which ``needed`` is largest.
        occupants: tensors alive there, largest first.
    """

    space: MemoryRegion
    core: int
    capacity: int
    peak: int
    needed: int
    index: int
    occupants: tuple[Allocation, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.space.value} of core {self.core}: {self.peak} of {self.capacity} bytes per "
            f"partition at instruction {self.index}"
        ]
        lines += [f"  {a.partition_bytes:8d}  {a!r} {_where(a)}" for a in self.occupants]
        return "\n".join(lines)


def _where(a: Allocation) -> str:
    file, line = a.source
    return f"[{Path(file).name}:{line}]"


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a kernel's tensors need on chip; ``str`` of it is a table.

    Attributes:
        usage: the fullest moment of each memory of each core.
        first_fit: bytes per partition that a first-fit placement needs, for each of ``usage``.
        idle: tensors that were declared, written or read in vain.
    """

    usage: tuple[Usage, ...]
    first_fit: tuple[int, ...]
    idle: Idle

    def __str__(self) -> str:
        lines = [f"{'memory':12}{'capacity':>10}{'peak':>10}{'needed':>10}{'first fit':>11}"]
        for u, placed in zip(self.usage, self.first_fit, strict=True):
            name = f"{u.space.value} {u.core}"
            lines.append(f"{name:12}{u.capacity:10}{u.peak:10}{u.needed:10}{placed:11}")
        lines += [str(u) for u in self.usage if u.occupants]
        for what, found in (
            ("never touched", self.idle.untouched),
            ("written but never read", self.idle.never_read),
            ("read but never written", self.idle.never_written),
        ):
            lines += [f"{what}: {a!r} {_where(a)}" for a in found]
        return "\n".join(lines)


def memory_report(trace: Trace) -> MemoryReport:
    """Peaks, a first-fit placement and idle tensors of a finished launch.

    Raises:
        ValueError: where nothing was launched with the trace.
    """
    if trace.target is None:
        raise ValueError("trace: no launch has filled it")
    usage = memory_usage(trace, get_target(trace.target))
    placements = [first_fit(tenants(trace, u.space, u.core)) for u in usage]
    return MemoryReport(tuple(usage), tuple(placements), idle(trace))


def memory_usage(trace: Trace, target: Target) -> list[Usage]:
    """Usage of SBUF and PSUM by each core of a finished launch."""
    result = []
    for core in range(trace.cores):
        for space, capacity in (
            (SBUF, target.sbuf_usable_bytes_per_partition),
            (PSUM, PSUM_PARTITION_BYTES),
        ):
            result.append(_peak(tenants(trace, space, core), space, core, capacity))
    return result


def _peak(inhabitants: list[Tenant], space: MemoryRegion, core: int, capacity: int) -> Usage:
    events: list[tuple[int, int, Tenant]] = []
    for t in inhabitants:
        events.append((t.first, 1, t))
        events.append((t.last + 1, 0, t))
    events.sort(key=lambda e: (e[0], e[1]))
    total = area = peak = needed = at = 0
    placed: list[Tenant] = []
    placed_bytes = placed_area = 0
    for index, starts, t in events:
        if t.info.byte0 is not None:
            if starts:
                placed.append(t)
            else:
                placed.remove(t)
            placed_bytes, placed_area = _union(placed)
        else:
            sign = 1 if starts else -1
            total += sign * t.nbytes
            area += sign * t.nbytes * t.quadrants
        peak = max(peak, total + placed_bytes)
        if area + placed_area > needed:
            needed, at = area + placed_area, index
    there = [t.info for t in inhabitants if t.first <= at <= t.last]
    there.sort(key=lambda a: -a.partition_bytes)
    return Usage(space, core, capacity, peak, -(-needed // 4), at, tuple(there))


def _union(placed: list[Tenant]) -> tuple[int, int]:
    """Bytes per partition, and bytes times quadrants, that placed tensors cover together."""
    cover: list[list[tuple[int, int]]] = [[] for _ in range(4)]
    for t in placed:
        a = t.info
        assert a.partition0 is not None and a.byte0 is not None
        for quadrant in range(a.partition0 // 32, -(-(a.partition0 + a.partitions) // 32)):
            cover[quadrant].append((a.byte0, a.byte0 + a.partition_bytes))
    return _length([one for row in cover for one in row]), sum(map(_length, cover))


def _length(ranges: list[tuple[int, int]]) -> int:
    covered = reach = 0
    for low, high in sorted(ranges):
        covered += max(0, high - max(low, reach))
        reach = max(reach, high)
    return covered


def _surely_fits(trace: Trace, target: Target) -> bool:
    """Whether a sum over all tensors that live in their own bytes is already small enough.

    Every launch is checked, so this has to be cheap; it says no where the sum does not apply.
    """
    count = len(trace.instructions)
    capacities = {SBUF: target.sbuf_usable_bytes_per_partition, PSUM: PSUM_PARTITION_BYTES}
    lives: dict[tuple[MemoryRegion, int], tuple[list[int], list[int], list[int]]] = {}
    for a in trace.allocations:
        if not a.partitions or a.first is None or a.last is None:
            continue
        if a.slot is not None or a.byte0 is not None or a.last >= count:
            return False
        life = lives.get((a.space, a.core))
        if life is None:
            life = lives[(a.space, a.core)] = ([], [], [])
        life[0].append(a.first)
        life[1].append(a.last + 1)
        life[2].append(a.partition_bytes)
    for (space, _), (first, end, nbytes) in lives.items():
        change = np.bincount(first, nbytes, count + 1) - np.bincount(end, nbytes, count + 1)
        if change.cumsum().max() > capacities[space]:
            return False
    return True


def _loaded(trace: Trace) -> set[int]:
    """Tensors that hold nothing but copies of HBM.

    The compiler may load them again instead of keeping them, as it must in AWS's own
    kernel-optimization tutorial (version 4).
    """
    computed = {
        access.allocation.id
        for i in trace.instructions
        for _, access in i.writes
        if i.opcode != "dma_copy" or any(read.allocation.partitions for _, read in i.reads)
    }
    return {a.id for a in trace.allocations} - computed


def check_capacity(trace: Trace, target: Target) -> None:
    """Refuse a kernel whose tensors cannot all be where they must be at once.

    Where it is only too full with tensors that could be loaded again, the trace gets a finding.

    Raises:
        RuleError: naming the instruction, the sum, and the largest tensors.
    """
    if _surely_fits(trace, target):
        return
    loaded: set[int] | None = None
    for usage in memory_usage(trace, target):
        if usage.needed > usage.capacity:
            by_index = {i.index: i for i in trace.instructions}
            file, line = by_index[usage.index].source
            largest = ", ".join(
                f"{a!r} {_where(a)}: {a.partition_bytes} bytes" for a in usage.occupants[:4]
            )
            where = f"{usage.space.value} of core {usage.core}"
            loaded = _loaded(trace) if loaded is None else loaded
            kept = [t for t in tenants(trace, usage.space, usage.core) if t.info.id not in loaded]
            least = _peak(kept, usage.space, usage.core, usage.capacity)
            if least.needed <= usage.capacity:
                text = (
                    f"{where}: {usage.needed} of {usage.capacity} bytes per partition are alive in "
                    f"program order; it fits only if tensors are loaded more than once ({largest})"
                )
                trace.findings.append(Finding("capacity", text, usage.index, f"{file}:{line}"))
                continue
            rule = rules.MEMORY_CAPACITY
            raise RuleError(
                rule.id,
                rule.text,
                rule.source,
                where,
                f"{usage.needed} of {usage.capacity} bytes per partition",
                f"{file}:{line}",
                f"{len(usage.occupants)} tensors alive, the largest {largest}",
            )
