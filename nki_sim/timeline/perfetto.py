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


def events(p: Profile) -> list[dict[str, Any]]:
    """The trace events: one track an engine and queue, one slice an instruction.

    A DMA's slice spans the time its bytes move; on a queue's track slices do not overlap.
    """
    s = p.schedule
    tracks: dict[tuple[int, str], int] = {}
    slices: list[tuple[int, int, float, float, Instruction]] = []
    for k, i in enumerate(p.trace.instructions):
        name = s.lane[k].removeprefix(f"{i.core} ")
        track = tracks.setdefault((i.core, name), len(tracks) + 1)
        if i.engine == "dma":
            start, end = s.moves[k]
        else:
            start, end = s.start[k], s.start[k] + s.busy[k]
        slices.append((i.core, track, start, end, i))
    for core, maker, start, end, k in s.descriptors:
        track = tracks.setdefault((core, f"{maker} descriptors"), len(tracks) + 1)
        slices.append((core, track, start, end, p.trace.instructions[k]))
    found: list[dict[str, Any]] = []
    for core in sorted({c for c, _ in tracks}):
        found.append(_name("process_name", core, 0, f"core {core} ({p.target}, predicted)"))
    for (core, name), track in tracks.items():
        found.append(_name("thread_name", core, track, name))
    free: dict[int, float] = {}
    for core, track, start, end, i in sorted(slices, key=lambda x: (x[2], x[3])):
        start = max(start, free.get(track, 0.0))  # classes of DMA engines may overlap a little
        end = max(start, end)
        free[track] = end
        found.append(
            {
                "name": i.name or i.opcode,
                "cat": i.engine,
                "ph": "X",
                "ts": start / 1000,
                "dur": (end - start) / 1000,
                "pid": core,
                "tid": track,
                "args": _arguments(i),
            }
        )
    return found


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
