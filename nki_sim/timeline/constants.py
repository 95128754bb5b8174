"""The constants of the timeline, one data file a generation, each with a low, a nominal and a high.

``data/timing_<generation>.json`` says for every constant its unit, where it comes from and of what
kind it is (documented, measured, fitted, assumed). "low" is the end of its range that makes kernels
faster, "high" the one that makes them slower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

ESTIMATES = ("low", "nominal", "high")


@dataclass(frozen=True, slots=True)
class Timing:
    """All constants of one generation at one estimate; names end in their unit.

    Cycles are those of the engine that the name starts with; ``*_stream`` are cycles an element.
    """

    generation: str
    tensor_ghz: float
    vector_ghz: float
    scalar_ghz: float
    gpsimd_ghz: float
    tensor_sustained: float
    tensor_min_cycles: float
    tensor_issue_cycles: float
    tensor_latency_cycles: float
    load_stationary_cycles: float
    vector_issue_cycles: float
    vector_dependent_cycles: float
    vector_stream: float
    scan_stream: float
    scalar_issue_cycles: float
    scalar_dependent_cycles: float
    scalar_stream: float
    min_cycles: float
    dynamic_cycles: float
    accumulator_cycles: float
    gpsimd_start_cycles: float
    gpsimd_stream: float
    table_load_ns: float
    semaphore_ns: float
    dma_row_ns: float
    dma_bytes_per_ns: float
    dma_engines: float
    dma_trigger_ns: float
    dma_start_ns: float
    dma_finish_ns: float
    swdge_ns: float
    hwdge_ns: float
    dma_transpose_rate: float
    dma_transpose_sbuf_rate: float
    dma_compute_rate: float
    launch_ns: float
    barrier_ns: float
    repeat_cost: float
    reorder_window: float

    @property
    def version(self) -> int:
        """2, 3 or 4."""
        return int(self.generation[-1])

    @property
    def dma_core_bytes_per_ns(self) -> float:
        """Asymptotic DMA rate of a core, all engines together."""
        return self.dma_engines * self.dma_bytes_per_ns

    def with_(self, **changes: Any) -> Timing:
        """The same constants but for some."""
        return replace(self, **changes)


@cache
def table(generation: str) -> Mapping[str, Mapping[str, Any]]:
    """Constant name -> {low, nominal, high, unit, kind, source}.

    Raises:
        ValueError: for a generation without a file.
    """
    path = Path(__file__).parent.parent / "data" / f"timing_{generation}.json"
    if not path.is_file():
        raise ValueError(f"generation = {generation!r} has no timing constants")
    constants: Mapping[str, Mapping[str, Any]] = json.loads(path.read_text())["constants"]
    return constants


@cache
def timing(generation: str, estimate: str = "nominal") -> Timing:
    """The constants of a generation at "low", "nominal" or "high"."""
    if estimate not in ESTIMATES:
        raise ValueError(f"estimate = {estimate!r} is none of {', '.join(ESTIMATES)}")
    rows = table(generation)
    names = [f.name for f in fields(Timing) if f.name != "generation"]
    missing = [n for n in names if n not in rows]
    if missing or len(rows) != len(names):
        extra = sorted(set(rows) - set(names))
        raise ValueError(f"timing_{generation}.json lacks {missing} and has unknown {extra}")
    return Timing(generation, **{n: float(rows[n][estimate]) for n in names})
