"""A profile as a trace in the JSON format that ui.perfetto.dev and chrome://tracing open.

The format is Google's "Trace Event Format": complete events ("X") with times in microseconds, and
metadata events ("M") that name processes (cores) and threads (engines and DMA queues).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nki_sim.trace import Access, Instruction

if TYPE_CHECKING:
    from nki_sim.timeline.profiling import Profile

TRACKS = ("dma", "tensor", "vector", "scalar", "gpsimd", "sync")
QUEUES = ("load", "store", "move", "copy")

GRID = 2.0**14
"""Times are written in multiples of 2^-14 us (61 ps): their binary sums are exact, so that a viewer
which adds a slice's duration to its start does not find it reaching into the next one."""


def events(p: Profile) -> list[dict[str, Any]]:
    """The trace events: one track an engine and queue, one slice an instruction.

    A DMA's slice spans the time its bytes move. Transfers of one queue that use different DMA
    engines run side by side; those that do not fit the queue's track stand on a second one, "dma
    load (2)", or a third.
    """
    s = p.schedule
    slices: list[tuple[float, float, int, str, Instruction]] = []
    for k, i in enumerate(p.trace.instructions):
        name = s.lane[k].removeprefix(f"{i.core} ")
        span = s.moves[k] if i.engine == "dma" else (s.start[k], s.start[k] + s.busy[k])
        slices.append((*span, i.core, name, i))
    for core, maker, start, end, k in s.descriptors:
        slices.append((start, end, core, f"{maker} descriptors", p.trace.instructions[k]))
    free: dict[tuple[int, str], list[float]] = {}  # when each track of an engine or queue is free
    found: list[dict[str, Any]] = []
    for start, end, core, name, i in sorted(slices, key=lambda x: x[:2]):
        at, until = _on_grid(start), _on_grid(end)
        tracks = free.setdefault((core, name), [])
        n = next((n for n, time in enumerate(tracks) if time <= at), len(tracks))
        if n == len(tracks):
            tracks.append(0.0)
        tracks[n] = until
        found.append(
            {
                "name": i.name or i.opcode,
                "cat": i.engine,
                "ph": "X",
                "ts": at,
                "dur": until - at,
                "pid": core,
                "tid": _track(name, n),
                "args": _arguments(i),
            }
        )
    named: list[dict[str, Any]] = []
    for core in sorted({core for core, _ in free}):
        named.append(_name("process_name", core, 0, f"core {core} ({p.target}, predicted)"))
    for core, name in sorted(free):
        for n in range(len(free[core, name])):
            track = _track(name, n)
            named.append(_name("thread_name", core, track, name if not n else f"{name} ({n + 1})"))
            order = {"ph": "M", "pid": core, "tid": track, "args": {"sort_index": track}}
            named.append({"name": "thread_sort_index", **order})
    return named + found


def _track(name: str, n: int) -> int:
    """A track's id, which is also its place: DMA queues first, then TensorE and the others."""
    kind, _, rest = name.partition(" ")
    place = TRACKS.index(kind) * 8
    if kind == "dma":
        place += QUEUES.index(rest)
    elif rest:
        place += 1  # its descriptors
    return 1 + 32 * place + n


def save(p: Profile, path: Path) -> None:
    """Write the events of a profile."""
    content = {
        "traceEvents": events(p),
        "displayTimeUnit": "ns",
        "otherData": {
            "target": p.target,
            "total_us": f"{p.total_us:.3f}",
            "evidence": "predicted",
        },
    }
    path.write_text(json.dumps(content))


def _name(kind: str, core: int, track: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": core, "tid": track, "args": {"name": name}}


def _on_grid(ns: float) -> float:
    """ns as us on the grid of exactly representable times."""
    return round(ns / 1000 * GRID) / GRID


def _arguments(i: Instruction) -> dict[str, Any]:
    file, line = i.source
    found: dict[str, Any] = {"instruction": i.index, "opcode": i.opcode}
    for label, a in (*i.writes, *i.reads):
        found[label] = _describe(a)
    found["source"] = f"{file}:{line}"
    return found


def _describe(a: Access) -> str:
    name = f" {a.allocation.name}" if a.allocation.name else ""
    return f"{list(a.shape)} {a.dtype} {a.space.value}{name}"
