"""Measurements of anybody's kernels as rows for the fit, from a JSON file.

    {"rows": [{"name": "my kernel, 4096 keys", "generation": "gen2", "value": 87.0, "unit": "us",
               "source": "inf2.xlarge, neuron-explorer", "kernel": "my_module:my_kernel",
               "arrays": [[[128, 4096], "bfloat16"]], "keywords": {"scale": 0.5},
               "measure": "total", "kind": "counted"}]}

`measure` is "total" (with the launch), or "busy ENGINE" with tensor, vector, scalar, gpsimd or dma.
A row of kind "counted" takes part in the fit, one of kind "shown" does not.
"""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from nki_sim import binding
from nki_sim.errors import AdviceWarning, UnwrittenReadWarning
from nki_sim.kernel import Simulation
from nki_sim.rebind import rebound
from nki_sim.timeline.constants import Timing, table, timing
from nki_sim.timeline.profiling import instruction_order
from nki_sim.timeline.published import Measure, Recorded, Row, busy, total
from nki_sim.trace import Trace

GENERATIONS = ("gen2", "gen3", "gen4")
UNITS = {"ns": 1.0, "us": 1e3, "ms": 1e6}
KINDS = ("counted", "shown")
ENGINES = ("tensor", "vector", "scalar", "gpsimd", "dma")


@dataclass(frozen=True)
class MeasuredRow(Row):
    """A row whose kernel is named, with keyword arguments besides its arrays."""

    keywords: Mapping[str, Any] = field(default_factory=dict)

    def record(self, small: bool = False) -> Recorded:
        """The kernel's record; there is no smaller one."""
        trace = Trace()
        arrays = [np.empty(shape, dtype) for shape, dtype in self.shapes]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnwrittenReadWarning)
            warnings.simplefilter("ignore", AdviceWarning)
            simulation = Simulation(rebound(self.kernel), self.generation, trace, shapes_only=True)
            simulation(*arrays, **self.keywords)
        return Recorded(self, trace, instruction_order(trace), 1.0)


def read(path: Path) -> list[MeasuredRow]:
    """The rows of a file.

    Raises:
        ValueError: the file or one of its rows is not what the module's docstring shows, or names
            a kernel that cannot be imported.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of rows: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a file of rows: rows is no list")
    binding.bind()
    return [_row(path, entry) for entry in entries]


def _row(path: Path, entry: Any) -> MeasuredRow:
    try:
        name, value, unit = str(entry["name"]), float(entry["value"]), str(entry["unit"])
        generation, kind = str(entry["generation"]), str(entry.get("kind", "counted"))
        shapes = [(tuple(map(int, shape)), _dtype(dtype)) for shape, dtype in entry["arrays"]]
        keywords = dict(entry.get("keywords", {}))
        what, source, kernel = str(entry["measure"]), str(entry["source"]), str(entry["kernel"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: a row is not whole: {type(error).__name__} {error}") from error
    for word, known in ((unit, tuple(UNITS)), (generation, GENERATIONS), (kind, KINDS)):
        if word not in known:
            raise ValueError(f"{path}: row {name!r} has {word!r}; known are {', '.join(known)}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{path}: row {name!r} has the value {value}; it must be above 0")
    measure = _measure(path, name, what, UNITS[unit])
    module, _, function = kernel.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: row {name!r} names the kernel {kernel!r}: {error}") from error
    return MeasuredRow(
        name, generation, value, unit, source, found, shapes, measure, kind, keywords=keywords
    )


def _dtype(name: str) -> Any:
    return getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else np.dtype(name)


def _measure(path: Path, name: str, what: str, unit_ns: float) -> Measure:
    if what == "total":
        return total(unit_ns)
    engine = what.removeprefix("busy ")
    if what == engine or engine not in ENGINES:
        raise ValueError(
            f"{path}: row {name!r} measures {what!r}; write total, or busy and one of "
            f"{', '.join(ENGINES)}"
        )
    if engine == "dma":
        return lambda trace, s, t: s.dma_busy[0] / unit_ns
    return busy(engine, unit_ns)


def responding(recorded: Recorded, names: Iterable[str], values: Mapping[str, Sequence[float]],
               least: float = 0.002) -> tuple[str, ...]:  # fmt: skip
    """The constants that change a row's prediction by at least this share at one of `values`."""
    nominal = timing(recorded.row.generation)
    before = recorded.predict(nominal)
    return tuple(
        name
        for name in names
        if any(
            abs(recorded.predict(nominal.with_(**{name: value})) / before - 1) >= least
            for value in (min(values[name]), max(values[name]))
        )
    )


class Leaning(NamedTuple):
    """A constant, where it stands, the end of its range that fits rows better, errors at both."""

    name: str
    nominal: float
    end: float
    before: float
    after: float


def leanings(recorded: Sequence[Recorded], generation: str) -> list[Leaning]:
    """Constants of which one end of the documented range fits the rows better than the nominal.

    One constant moves at a time; errors are root mean squares of log(predicted / measured), best
    first. It says where to look, not what to write: several may explain the same rows.
    """
    nominal = timing(generation)
    before = _error(recorded, nominal)
    found = []
    for name, entry in table(generation).items():
        ends = {float(entry[end]) for end in ("low", "high")} - {float(entry["nominal"])}
        for end in sorted(ends):
            after = _error(recorded, nominal.with_(**{name: end}))
            if after < before - 1e-4:
                found.append(Leaning(name, float(entry["nominal"]), end, before, after))
    return sorted(found, key=lambda leaning: leaning.after)


def _error(recorded: Sequence[Recorded], t: Timing) -> float:
    squares = [math.log(r.predict(t) / r.row.value) ** 2 for r in recorded]
    return math.sqrt(sum(squares) / len(squares))
