"""Published measurements, the kernel behind each, and what the model predicts for it.

A row counts where its kernel is known. Rows "high" are three older AWS numbers that a later
third-party run of the same kernel contradicts (20.99 ms where AWS printed 51.80): they are held
against the high estimate. Rows "later" came after the model was fixed: no constant and no mechanism
was chosen with them, they are held to the same worst error and counted apart. Rows "shown" come
without their kernels, or measure what the model defines otherwise, and count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from nki_sim.kernel import Kernel, Simulation
from nki_sim.timeline import benchmarks
from nki_sim.timeline.constants import Timing, timing
from nki_sim.timeline.profiling import instruction_order
from nki_sim.timeline.schedule import Schedule, schedule
from nki_sim.trace import Trace

MATMUL = (
    "aws-neuron-sdk, SDK 2.26 (commit 49ee15c5) general/nki/tutorials/matrix_multiplication.rst"
)
OPTIMIZATION = "aws-neuron-sdk nki/guides/tutorials/kernel-optimization.rst"
MAMBA = "aws-neuron-sdk nki/guides/tutorials/fused_mamba.rst, clock as of gen2"
OVERVIEW = "aws-neuron-sdk nki/get-started/about/nki-dma-overview.rst (figures)"
PROFILES = "github.com/aws-neuron/neuron-agentic-development, profiler notes"

BF16, FP32 = ml_dtypes.bfloat16, np.float32

Measure = Callable[[Trace, Schedule, Timing], float]


@dataclass(frozen=True)
class Row:
    """One published number.

    Attributes:
        name, generation, value, unit, source: as published.
        kernel: called with ``shapes`` (shape, dtype) arrays; recorded without arithmetic.
        measure: the predicted number, in ``unit``, from the schedule.
        kind: "counted", "high" (held against the high estimate), "later" or "shown".
        constants: fitted constants that it responds to.
        part: the share of the published work that ``small`` shapes do, for quick checks and fits.
    """

    name: str
    generation: str
    value: float
    unit: str
    source: str
    kernel: Callable[..., Any]
    shapes: Sequence[tuple[tuple[int, ...], Any]]
    measure: Measure
    kind: str = "counted"
    constants: tuple[str, ...] = ()
    small: Sequence[tuple[tuple[int, ...], Any]] | None = None
    part: float = 1.0

    def record(self, small: bool = False) -> Recorded:
        """The kernel's record, ready to be timed again and again."""
        use_small = small and self.small is not None
        shapes = self.small if use_small and self.small is not None else self.shapes
        trace = Trace()
        arrays = [np.empty(shape, dtype) for shape, dtype in shapes]
        simulation = Simulation(Kernel(self.kernel), self.generation, trace, shapes_only=True)
        simulation(*arrays)
        return Recorded(self, trace, instruction_order(trace), self.part if use_small else 1.0)


@dataclass(frozen=True)
class Recorded:
    """A row with the record of its kernel."""

    row: Row
    trace: Trace
    before: Sequence[Sequence[int]]
    part: float

    def predict(self, t: Timing) -> float:
        """What the model says, in the row's unit, for the whole published work."""
        s = schedule(self.trace, self.before, t)
        value = self.row.measure(self.trace, s, t)
        return value / self.part


# ---------------------------------------------------------------------- what is measured


def total(unit_ns: float) -> Measure:
    """Kernel and launch, in units of ``unit_ns``."""

    def measure(trace: Trace, s: Schedule, t: Timing) -> float:
        return (s.total + t.launch_ns) / unit_ns

    return measure


def busy(engine: str, unit_ns: float = 1000.0) -> Measure:
    """Time that an engine executes."""

    def measure(trace: Trace, s: Schedule, t: Timing) -> float:
        return sum(b for b, lane in zip(s.busy, s.lane, strict=True) if lane == engine) / unit_ns

    return measure


def interval(engine: str) -> Measure:
    """ns from one instruction of an engine to the next, in the middle of the kernel."""

    def measure(trace: Trace, s: Schedule, t: Timing) -> float:
        starts = [a for a, lane in zip(s.start, s.lane, strict=True) if lane == engine]
        return (starts[-1] - starts[1]) / (len(starts) - 2)

    return measure


def load(trace: Trace, s: Schedule, t: Timing) -> float:
    """ns from the first byte of the first DMA to its semaphore."""
    return s.end[0] - s.moves[0][0]


def first_engine(trace: Trace, s: Schedule, t: Timing) -> float:
    """ns that one DMA engine works on the first DMA."""
    return s.busy[0]


def dma_outstanding(trace: Trace, s: Schedule, t: Timing) -> float:
    """ms in which at least one DMA is under way, from its trigger to its semaphore."""
    at = covered = 0.0
    spans = [
        (start, end)
        for start, end, i in zip(s.start, s.end, trace.instructions, strict=True)
        if i.engine == "dma"
    ]
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, at))
        at = max(at, end)
    return covered / 1e6


def dma_rate(trace: Trace, s: Schedule, t: Timing) -> float:
    """GB/s while DMA is active."""
    return trace.dma_bytes / s.dma_busy[0]


# ---------------------------------------------------------------------- rows


def _matmul(m: int, dtype: Any) -> list[tuple[tuple[int, ...], Any]]:
    return [((8192, m), dtype), ((8192, 8192), dtype)]


def _mamba(channels: int, seq: int) -> list[tuple[tuple[int, ...], Any]]:
    sizes = ((channels, seq), (channels, seq), (channels, 16), (16, seq), (16, seq))
    return [(size, FP32) for size in sizes]


def _rows() -> list[Row]:
    ms = total(1e6)
    us = total(1e3)
    dma2, dma3 = ("dma_row_ns",), ("dma_row_ns", "swdge_ns")
    issue = ("tensor_issue_cycles",)
    bf, small_bf = _matmul(4096, BF16), _matmul(512, BF16)
    fp, small_fp = _matmul(4096, FP32), _matmul(512, FP32)
    v5 = partial(benchmarks.matmul_optimised, packed=False)
    gelu = benchmarks.gelu_streamed
    image = [((2048, 8192), FP32)]
    notes = f"{PROFILES} (gelu)"
    return [
        Row("matmul tiled (autocomp)", "gen2", 20.99, "ms",
            "autocomp's baseline of the same kernel, trn1.2xlarge, p99 of 10 runs",
            benchmarks.matmul_tiled, bf, ms, "counted", dma2, small_bf, 1 / 8),
        Row("matmul fully optimised", "gen2", 6.97, "ms", MATMUL, benchmarks.matmul_optimised, bf,
            ms, "counted", ("tensor_sustained",), _matmul(2048, BF16), 1 / 2),
        Row("fused Mamba, first kernel", "gen2", 172.93, "us",
            MAMBA, benchmarks.mamba, _mamba(256, 512), us),
        Row("fused Mamba, first kernel, 4,096 channels", "gen2", 2.34, "ms", MAMBA,
            benchmarks.mamba, _mamba(4096, 512), ms),
        Row("fused Mamba, second kernel, 4,096 channels", "gen2", 1.61, "ms", MAMBA,
            partial(benchmarks.mamba, reload=False), _mamba(4096, 512), ms),
        Row("fused Mamba, third kernel, sequence of 2,048", "gen2", 6.6, "ms", MAMBA,
            partial(benchmarks.mamba, reload=False, chunk=512), _mamba(4096, 2048), ms, "counted",
            (), _mamba(1024, 2048), 1 / 4),
        *[
            Row(f"fused Mamba, second kernel, sequence of {seq:,}", "gen2", value, "ms", MAMBA,
                partial(benchmarks.mamba, reload=False), _mamba(4096, seq), ms, "later", (),
                _mamba(256, seq), 1 / 16)
            for seq, value in ((1024, 4.4), (2048, 8.9), (3072, 13.1), (4096, 17.6))
        ],
        *[
            Row(f"fused Mamba, third kernel, sequence of {seq:,}", "gen2", value, "ms", MAMBA,
                partial(benchmarks.mamba, reload=False, chunk=512), _mamba(4096, seq), ms, "later",
                (), _mamba(256, seq), 1 / 16)
            for seq, value in ((1024, 3.3), (3072, 10.1), (4096, 13.3), (8192, 27.8))
        ],
        Row("chain of one-element activations", "gen2", 189.0, "ns",
            "aws-neuron-sdk nki/deep-dives/nki_perf_guide.rst",
            partial(benchmarks.activation_chain, length=64), [((128, 1), FP32)],
            interval("scalar")),
        Row("matmul tiled (AWS)", "gen2", 51.80, "ms", MATMUL, benchmarks.matmul_tiled, bf, ms,
            "high", (), small_bf, 1 / 8),
        Row("matmul hoisted load (AWS)", "gen2", 42.96, "ms", MATMUL, benchmarks.matmul_hoisted,
            bf, ms, "high", (), small_bf, 1 / 8),
        Row("matmul block M, N (AWS)", "gen2", 22.07, "ms", MATMUL, benchmarks.matmul_blocked, bf,
            ms, "high", (), small_bf, 1 / 8),
        Row("GEMM found by search (autocomp)", "gen2", 6.96, "ms",
            "autocomp, trn1.2xlarge, p99 of 10 runs; kernel not at hand",
            benchmarks.matmul_optimised, bf, ms, "shown", (), _matmul(2048, BF16), 1 / 2),
        Row("attention of 4,096 tokens, head 64, before the search", "gen2", 558.0, "us",
            "autocomp, trn1.2xlarge, p99 of 10 runs; kernel not at hand", benchmarks.attention,
            [((64, 4096), FP32), ((64, 4096), FP32), ((4096, 64), FP32)], us, "shown"),
        Row("DMA rate, 4 KiB rows", "gen2", 263.0, "GB/s", "AccelOpt, profile on trn1",
            partial(gelu, rows=128, columns=1024), image, dma_rate, "shown", dma2),
        Row("matmul v2 tiled, fp32", "gen3", 39.89, "ms", OPTIMIZATION, benchmarks.matmul_tiled,
            fp, ms, "counted", dma3, small_fp, 1 / 8),
        Row("matmul v3 hoisted, fp32", "gen3", 28.20, "ms", OPTIMIZATION,
            benchmarks.matmul_hoisted, fp, ms, "counted", dma3, small_fp,
            1 / 8),
        Row("matmul v4 block M, N, fp32", "gen3", 28.41, "ms", OPTIMIZATION,
            benchmarks.matmul_blocked, fp, ms, "counted", dma3, small_fp,
            1 / 8),
        Row("matmul v5 block all, fp32", "gen3", 28.30, "ms", OPTIMIZATION, v5, fp, ms, "counted",
            dma3, _matmul(2048, FP32), 1 / 2),
        Row("matmul v2, TensorE active (waits included)", "gen3", 34.82, "ms", OPTIMIZATION,
            benchmarks.matmul_tiled, fp, busy("tensor", 1e6), "shown", (), small_fp, 1 / 8),
        Row("matmul v3, TensorE active", "gen3", 28.16, "ms", OPTIMIZATION,
            benchmarks.matmul_hoisted, fp, busy("tensor", 1e6), "counted", issue, small_fp, 1 / 8),
        Row("matmul v5, TensorE active", "gen3", 28.16, "ms", OPTIMIZATION, v5, fp,
            busy("tensor", 1e6), "counted", issue, _matmul(2048, FP32), 1 / 2),
        Row("matmul v5, VectorE active", "gen3", 2.99, "ms", OPTIMIZATION, v5, fp,
            busy("vector", 1e6), "counted", (), _matmul(2048, FP32), 1 / 2),
        Row("matmul v2, DMA under way", "gen3", 39.87, "ms", OPTIMIZATION,
            benchmarks.matmul_tiled, fp, dma_outstanding, "shown", (), small_fp, 1 / 8),
        Row("matmul v3, DMA under way", "gen3", 28.12, "ms", OPTIMIZATION,
            benchmarks.matmul_hoisted, fp, dma_outstanding, "shown", (), small_fp, 1 / 8),
        Row("matmul v4, DMA under way", "gen3", 27.19, "ms", OPTIMIZATION,
            benchmarks.matmul_blocked, fp, dma_outstanding, "shown", (), small_fp, 1 / 8),
        Row("matmul v5, DMA under way", "gen3", 6.10, "ms", OPTIMIZATION, v5, fp,
            dma_outstanding, "shown", (), _matmul(2048, FP32), 1 / 2),
        Row("2,048 resident matmuls, TensorE active", "gen3",
            2 * 128 * 128 * 512 * 2048 / 77.2e6, "us", f"{PROFILES}: 77.2 TFLOP/s",
            partial(benchmarks.matmul_resident, products=2048), [((128, 128), BF16),
            ((128, 512), BF16)], busy("tensor"), "counted", issue),
        Row("load of A[4, 4096] bf16", "gen3", 1416.0, "ns", OVERVIEW, benchmarks.copy_through,
            [((4, 4096), BF16)], load, "counted", ("dma_row_ns",)),
        Row("2 KiB of A[128, 128] bf16 on one engine", "gen3", 97.0, "ns", OVERVIEW,
            benchmarks.copy_through, [((128, 128), BF16)], first_engine, "counted",
            ("dma_row_ns",)),
        Row("load of A[128, 128] bf16, all engines", "gen3", 468.0, "ns", OVERVIEW,
            benchmarks.copy_through, [((128, 128), BF16)], load),  # start-up: no part of the fit
        Row("exp of 4,096 elements", "gen3", 3.71, "us", OVERVIEW,
            partial(benchmarks.gelu_streamed, rows=128, columns=4096), [((128, 4096), FP32)],
            busy("scalar"), "counted", ("scalar_stream",)),
        Row("gelu, 32 KiB rows", "gen3", 332.17, "us", notes,
            partial(gelu, rows=128, columns=8192), image, us, "counted", dma3),
        Row("gelu, 32 KiB rows, ScalarE active", "gen3", 118.00, "us", notes,
            partial(gelu, rows=128, columns=8192), image, busy("scalar"), "counted",
            ("scalar_stream",)),
        Row("gelu, 4 KiB rows", "gen3", 361.18, "us", notes,
            partial(gelu, rows=128, columns=1024), image, us, "counted", dma3),
        Row("gelu, 2 KiB rows", "gen3", 407.82, "us", notes, partial(gelu, rows=128, columns=512),
            image, us, "counted", dma3),
        Row("DMA rate, 1 KiB rows", "gen3", 259.0, "GB/s", PROFILES,
            partial(gelu, rows=128, columns=512), [((2048, 8192), BF16)], dma_rate, "shown"),
        Row("DMA rate, 4 KiB rows", "gen3", 354.0, "GB/s", PROFILES,
            partial(gelu, rows=128, columns=2048), [((2048, 8192), BF16)], dma_rate, "shown"),
    ]  # fmt: skip


ROWS = tuple(_rows())


@dataclass(frozen=True)
class Result:
    """A row beside its prediction; ``error`` is predicted / published - 1."""

    row: Row
    low: float
    nominal: float
    high: float

    @property
    def error(self) -> float:
        """Relative error, against the high estimate where the row says so."""
        held = self.high if self.row.kind == "high" else self.nominal
        return held / self.row.value - 1


def compare(rows: Sequence[Row] = ROWS, small: bool = False) -> list[Result]:
    """Predict every row at all three estimates; ``small`` does part of the large kernels' work."""
    results = []
    for row in rows:
        recorded = row.record(small)
        values = [
            recorded.predict(timing(row.generation, estimate))
            for estimate in ("low", "nominal", "high")
        ]
        results.append(Result(row, *values))
    return results


def table(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| generation | kernel | published | predicted | low | high | error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        row = r.row
        note = {
            "counted": "",
            "high": "held against high",
            "later": "held out",
            "shown": "not counted",
        }[row.kind]
        lines.append(
            f"| {row.generation} | {row.name} | {row.value:.4g} {row.unit} | {r.nominal:.4g} "
            f"| {r.low:.4g} | {r.high:.4g} | {100 * r.error:+.1f} % | {note} |"
        )
    return "\n".join(lines)
