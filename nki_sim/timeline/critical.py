"""Who kept the kernel from ending earlier: busy and stalled time, and the critical path."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from nki_sim.timeline.schedule import Schedule
from nki_sim.trace import Trace


@dataclass(slots=True)
class Lane:
    """One engine over the whole kernel; ``busy + stalled + idle`` is the kernel's time, in us.

    Attributes:
        busy: executing (GpSimd: also making descriptors; dma: at least one engine moves bytes).
        stalled: it had something left to do and waited.
        idle: it had nothing left to do.
        stalls: us waited, by what it waited for.
        instructions: how many it executed.
    """

    busy: float = 0.0
    stalled: float = 0.0
    idle: float = 0.0
    stalls: dict[str, float] = field(default_factory=dict)
    instructions: int = 0

    def utilisation(self, total: float) -> float:
        """Busy share of ``total`` us."""
        return self.busy / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """Time on the critical path that one source line's instructions account for."""

    line: str
    lane: str
    us: float
    share: float
    count: int


def lanes(trace: Trace, s: Schedule) -> dict[str, Lane]:
    """Every engine of every core, and the DMA engines of a core together as "dma"."""
    spans: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    moves: dict[int, list[tuple[float, float, str]]] = defaultdict(list)
    for k, i in enumerate(trace.instructions):
        if i.engine == "dma":
            moves[i.core].append((*s.moves[k], s.cause[k] or "start of a DMA"))
        else:
            spans[s.lane[k]].append((s.start[k], s.start[k] + s.busy[k], s.cause[k]))
            counts[s.lane[k]] += 1
    for core, maker, start, end, k in s.descriptors:
        if maker == "gpsimd":
            name = "gpsimd" if core == 0 else f"{core} gpsimd"
            spans[name].append((start, end, s.cause[k]))
            counts.setdefault(name, 0)
    found = {}
    for name in sorted(spans):
        found[name] = _lane(spans[name], s.total, counts[name])
    for core, intervals in sorted(moves.items()):
        name = "dma" if core == 0 else f"{core} dma"
        found[name] = _dma(intervals, s.dma_busy[core], s.total)
    return found


def _lane(spans: list[tuple[float, float, str]], total: float, count: int) -> Lane:
    lane = Lane(instructions=count)
    stalls: dict[str, float] = defaultdict(float)
    at = 0.0
    for start, end, cause in sorted(spans):
        if start > at:
            stalls[cause or "semaphore"] += (start - at) / 1000
            at = start
        lane.busy += max(0.0, end - at) / 1000
        at = max(at, end)
    lane.stalls = dict(sorted(stalls.items(), key=lambda item: -item[1]))
    lane.stalled = sum(stalls.values())
    lane.idle = total / 1000 - lane.busy - lane.stalled
    return lane


def _dma(moves: list[tuple[float, float, str]], active: float, total: float) -> Lane:
    """The DMA engines of a core: gaps between bytes are stalls, charged to the next transfer."""
    lane = Lane(instructions=len(moves), busy=active / 1000)
    last = max(end for _, end, _ in moves)
    stalls: dict[str, float] = defaultdict(float)
    at = 0.0
    for start, end, cause in sorted(moves):
        if start > at:
            stalls[cause] += start - at
        at = max(at, end)
    lane.stalled = (last - active) / 1000
    # A transfer's bytes may pause while other queues have their turns: scale to what is exact.
    listed = sum(stalls.values())
    if listed:
        lane.stalls = {c: v / listed * lane.stalled for c, v in stalls.items()}
    lane.idle = (total - last) / 1000
    return lane


def critical_path(trace: Trace, s: Schedule) -> list[tuple[int, float, float]]:
    """(instruction, from, to) in ns, last first: a chain without gaps from the end to time 0.

    Each piece lasts from when the instruction was taken up (a DMA that waited for its turn: from
    its first byte) to when the next one on the path was; latencies count for the one before them.
    """
    items = trace.instructions
    k = max(range(len(items)), key=s.end.__getitem__)
    at = s.total
    path = []
    for _ in range(2 * len(items)):  # a chain cannot be longer
        if k < 0 or at <= 0:
            break
        begin, previous = s.start[k], s.blocker[k]
        if items[k].engine == "dma" and s.turn[k] >= 0 and begin < s.moves[k][0] < at:
            begin, previous = s.moves[k][0], s.turn[k]
        if begin > at:
            begin = at
        path.append((k, begin, at))
        at = begin
        k = previous
    if at > 0 and path:
        last, _, end = path[-1]
        path[-1] = (last, 0.0, end)
    return path


def steps(trace: Trace, s: Schedule) -> list[Step]:
    """The critical path by source line and engine, longest first."""
    time: dict[tuple[str, str], float] = defaultdict(float)
    count: dict[tuple[str, str], int] = defaultdict(int)
    for k, begin, end in critical_path(trace, s):
        file, line = trace.instructions[k].source
        key = (f"{file}:{line}", s.lane[k])
        time[key] += (end - begin) / 1000
        count[key] += 1
    total = s.total / 1000
    ordered = sorted(time.items(), key=lambda item: -item[1])
    return [Step(*key, us, us / total if total else 0.0, count[key]) for key, us in ordered]


def limiting(trace: Trace, s: Schedule) -> str:
    """The engine (or "dma") with the most time on the critical path."""
    time: dict[str, float] = defaultdict(float)
    for k, begin, end in critical_path(trace, s):
        time[trace.instructions[k].engine] += end - begin
    return max(time, key=lambda name: time[name])
