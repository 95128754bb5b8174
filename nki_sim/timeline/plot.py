"""A profile as a picture: engine lanes over time, and a roofline. Needs matplotlib."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nki_sim.timeline.profiling import Profile

COLOURS = {
    "dma": "#ccb974",
    "tensor": "#4c72b0",
    "vector": "#55a868",
    "scalar": "#c44e52",
    "gpsimd": "#8172b2",
    "sync": "#937860",
}
ORDER = tuple(COLOURS)  # lanes from top to bottom, core by core
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
    figure = figures.Figure(figsize=(14, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    _lanes(left, p)
    _roofline(right, p)
    certain = "" if p.bound_certain else f" (low: {p.low.bound}, high: {p.high.bound})"
    figure.suptitle(
        f"{p.target}, predicted: low {p.low_us:,.1f}, nominal {p.total_us:,.1f}, "
        f"high {p.high_us:,.1f} us; bound by {p.bound}{certain}"
        + ("" if p.validated else "; unvalidated")
    )
    figure.savefig(path, format="png", dpi=120)


def _lanes(axes: Any, p: Profile) -> None:
    """A row for each engine and DMA queue, DMA on top, each with the share of time it is busy."""
    s = p.schedule
    intervals: dict[tuple[int, int, str], list[tuple[float, float]]] = {}
    labels: dict[tuple[int, int, str], str] = {}

    def add(core: int, kind: str, name: str, span: tuple[float, float]) -> None:
        key = (core, ORDER.index(kind), name)
        labels[key] = name if core == 0 else f"core {core} {name}"
        intervals.setdefault(key, []).append(span)

    for k, i in enumerate(p.trace.instructions):
        span = s.moves[k] if i.engine == "dma" else (s.start[k], s.start[k] + s.busy[k])
        add(i.core, i.engine, s.lane[k].removeprefix(f"{i.core} "), span)
    for core, maker, start, end, _ in s.descriptors:
        add(core, maker, f"{maker} descriptors", (start, end))
    keys = sorted(intervals)
    near = s.total / PIXELS
    ticks = []
    for row, key in enumerate(keys):
        bars = [(a / 1000, (b - a) / 1000) for a, b in _joined(intervals[key], near)]
        axes.broken_barh(bars, (row - 0.38, 0.76), color=COLOURS[ORDER[key[1]]], linewidth=0)
        share = 100 * sum(b - a for a, b in _joined(intervals[key], 0.0)) / s.total
        ticks.append(f"{labels[key]}\n{share:.0f} %")
    axes.set_yticks(range(len(keys)), ticks)
    axes.set_ylim(len(keys) - 0.4, -0.6)
    axes.set_xlim(0, p.total_us)
    axes.set_xlabel("us (nominal)")
    axes.set_title("what runs when, and its share of the time", fontsize=10)


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
    """Work of one engine against HBM bytes: TensorE's, or the busiest other engine's.

    The peaks are those of the cores of the launch together.
    """
    t, cores = p.timing, max(1, p.trace.cores)
    clocks = {"vector": t.vector_ghz, "scalar": t.scalar_ghz, "gpsimd": t.gpsimd_ghz}
    others = [name for name in clocks if p.resources.get(name)]
    rate = t.dma_core_bytes_per_ns * cores  # GB/s
    if not p.bytes_first_touched or not (p.flops or others):
        axes.axis("off")
        axes.text(0.5, 0.5, "no roofline: nothing is computed", ha="center")
        return
    if p.flops:
        peak = 2 * 128 * 128 * t.tensor_ghz * cores  # GFLOP/s, 16-bit
        roofs = [("TensorE, 16-bit", peak, "-"), ("TensorE, fp32", peak / 4, ":")]
        work, unit, scale = float(p.flops), "FLOP", 1000.0
    else:
        name = max(others, key=lambda other: p.resources[other])
        peak = 128 * clocks[name] * cores  # elements a ns
        roofs = [(f"{name}, an element a lane and cycle", peak, "-")]
        work, unit, scale = p.resources[name] * 1000 * peak, " elements", 1.0
    intensity = work / p.bytes_first_touched
    nominal, low, high = (work / us / 1000 / scale for us in (p.total_us, p.low_us, p.high_us))
    left, right = min(intensity, peak / rate / 4) / 4, max(intensity, peak / rate) * 8
    for label, roof, style in roofs:
        xs = [left, roof / rate, right]
        ys = [min(roof, x * rate) / scale for x in xs]
        text = f"{label}: {roof / scale:,.4g} {'T' if scale > 1 else 'G'}{unit}/s"
        axes.loglog(xs, ys, color="#4c72b0", linestyle=style, label=text)
    axes.plot([], [], " ", label=f"slope, DMA: {rate:,.0f} GB/s")
    axes.plot([intensity] * 2, [high, low], color="#c44e52", linewidth=2)
    axes.plot([intensity], [nominal], "o", color="#c44e52", label="this kernel, high to low")
    axes.set_xlim(left, right)
    axes.set_xlabel(f"{unit.strip()} a byte of HBM touched once")
    axes.set_ylabel(f"{'T' if scale > 1 else 'G'}{unit}/s")
    cores_text = "one core" if cores == 1 else f"{cores} cores"
    axes.set_title(f"roofline of {cores_text}, nominal rates", fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
