"""A profile as a picture: engine lanes over time, and a roofline. Needs matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nki_sim.timeline.profiling import Profile

COLOURS = {
    "tensor": "#4c72b0",
    "vector": "#55a868",
    "scalar": "#c44e52",
    "gpsimd": "#8172b2",
    "sync": "#937860",
    "dma": "#ccb974",
}
PIXELS = 1200  # intervals closer than this part of the picture are drawn as one


def draw(p: Profile, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise ImportError(
            "drawing a profile needs matplotlib: pip install 'bifork[plot]'"
        ) from None
    figure = figures.Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    _lanes(left, p)
    _roofline(right, p)
    figure.suptitle(
        f"{p.target}, predicted: {p.total_us:,.1f} us ({p.low_us:,.1f} to {p.high_us:,.1f}), "
        f"bound by {p.bound}"
    )
    figure.savefig(path, format="png", dpi=120)


def _lanes(axes: Any, p: Profile) -> None:
    s = p.schedule
    intervals: dict[str, list[tuple[float, float]]] = {}
    kinds: dict[str, str] = {}
    for k, i in enumerate(p.trace.instructions):
        name = s.lane[k]
        kinds[name] = i.engine
        span = s.moves[k] if i.engine == "dma" else (s.start[k], s.start[k] + s.busy[k])
        intervals.setdefault(name, []).append(span)
    for core, maker, start, end, _ in s.descriptors:
        name = f"{maker} descriptors" if core == 0 else f"{core} {maker} descriptors"
        kinds[name] = maker
        intervals.setdefault(name, []).append((start, end))
    names = sorted(intervals, reverse=True)
    near = s.total / PIXELS
    for row, name in enumerate(names):
        bars = [(a / 1000, (b - a) / 1000) for a, b in _joined(intervals[name], near)]
        axes.broken_barh(bars, (row - 0.38, 0.76), color=COLOURS.get(kinds[name], "#888888"))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, p.total_us)
    axes.set_xlabel("us")
    axes.set_title("what runs when (gaps narrower than a pixel are closed)", fontsize=10)


def _joined(spans: list[tuple[float, float]], near: float) -> list[tuple[float, float]]:
    """Intervals with those closer than ``near`` made one, so that large records stay drawable."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start - found[-1][1] <= near:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, max(end, start)))
    return [(a, max(b, a + near)) for a, b in found]


def _roofline(axes: Any, p: Profile) -> None:
    """TensorE work against HBM bytes; without matmuls, the record's work by resource."""
    t = p.timing
    if not p.flops or not p.bytes_first_touched:
        names = sorted(p.resources, key=lambda n: p.resources[n])
        axes.barh(names, [p.resources[n] for n in names], color="#4c72b0")
        axes.axvline(p.total_us, color="#c44e52", linestyle="--", label="predicted total")
        axes.set_xlabel("us of work at full rate")
        axes.set_title("work by resource (no matmul, no roofline)", fontsize=10)
        axes.legend(fontsize=8)
        return
    peak = 2 * 128 * 128 * t.tensor_ghz / 1000  # TFLOP/s, 16-bit
    rate = t.dma_core_bytes_per_ns / 1000  # TB/s
    intensity = p.flops / p.bytes_first_touched
    achieved = p.flops / (p.total_us * 1e6)
    low, high = min(intensity, 1.0) / 4, max(intensity, peak / rate) * 8
    xs = [low, peak / rate, high]
    axes.loglog(xs, [min(peak, x * rate) for x in xs], color="#4c72b0", label="16-bit")
    xs = [low, peak / 4 / rate, high]
    axes.loglog(
        xs, [min(peak / 4, x * rate) for x in xs], color="#4c72b0", linestyle=":", label="fp32"
    )
    axes.plot([intensity], [achieved], "o", color="#c44e52", label="this kernel, predicted")
    axes.set_xlabel("FLOP per byte of HBM touched once")
    axes.set_ylabel("TFLOP/s")
    axes.set_title("roofline of one core", fontsize=10)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="lower right")
