"""The text of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nki_sim.timeline.profiling import Profile

LINES = 8  # source lines of the critical path that the summary shows


def summary(p: Profile) -> str:
    """Times, engines, memory, critical path."""
    certain = "certain" if p.bound_certain else f"low: {p.low.bound}, high: {p.high.bound}"
    lines = [
        f"{p.target}: {_us(p.total_us)} predicted, {_us(p.low_us)} to {_us(p.high_us)}"
        f" (launch apart: {_us(p.launch_us)})",
        f"bound by {p.bound} ({certain}); busiest resource {p.busiest},"
        f" {_us(p.resources[p.busiest])} of work",
    ]
    if not p.validated:
        lines.append(f"{p.target} is unvalidated: fewer than four published measurements")
    lines += [
        f"{p.instructions:,} instructions; DMA {_bytes(p.bytes)} at {p.bandwidth:.1f} GB/s"
        f" ({p.dma_bandwidth:.1f} while active), HBM touched once {_bytes(p.bytes_first_touched)}",
        f"SBUF {p.sbuf_peak:,} of {p.sbuf_capacity:,} bytes a partition,"
        f" PSUM {p.psum_peak:,} of {p.psum_capacity:,}"
        + (" (more than there is)" if p.sbuf_peak > p.sbuf_capacity else ""),
        "",
        f"{'engine':<12}{'busy us':>11}{'%':>7}{'stalled':>11}{'idle':>11}  waits for",
    ]
    for name, lane in p.engines.items():
        waits = ", ".join(
            f"{cause} {us:.1f}"
            for cause, us in sorted(lane.stalls.items(), key=lambda item: -item[1])[:3]
        )
        lines.append(
            f"{name:<12}{lane.busy:>11.2f}{100 * lane.utilisation(p.total_us):>6.1f}%"
            f"{lane.stalled:>11.2f}{lane.idle:>11.2f}  {waits}"
        )
    lines += ["", "critical path"]
    for step in p.critical_path[:LINES]:
        file, _, line = step.line.rpartition(":")
        lines.append(
            f"{step.us:>11.2f} us {100 * step.share:>5.1f}%  {step.lane:<10}"
            f" {Path(file).name}:{line} ({step.count} instructions)"
        )
    return "\n".join(lines)


def _us(us: float) -> str:
    return f"{us / 1000:,.3f} ms" if us >= 10_000 else f"{us:,.2f} us"


def _bytes(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} bytes"
