"""Fit the constants that no document gives to the published measurements.

    python -m nki_sim.timeline.fit [--generation gen2] [--leave-one-out] [--rows FILE] [--write]

Each fitted constant takes the value of its grid that makes the sum of squared log errors of the
rows that respond to it smallest, one constant after the other until nothing changes. What documents
or other sources suggest counts as well: straying from it by a constant's ``spread`` costs as much
as an error of 5 % in one row. ``--leave-one-out`` predicts every counted row with constants fitted
without it. ``--rows`` adds measurements from a file (``rows.py`` says how it looks); of those, the
constants that a row responds to are found by moving each. ``--write`` stores the values in the data
file; without it nothing changes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nki_sim.timeline.constants import Timing, timing
from nki_sim.timeline.published import ROWS, Recorded, Row
from nki_sim.timeline.rows import read, responding


class Free(NamedTuple):
    """A constant to fit: the values tried, what is expected without measurements, and how much
    straying from that is worth a 5 % error."""

    grid: tuple[float, ...]
    expected: float
    spread: float


CONSTANTS: dict[str, dict[str, Free]] = {
    "gen2": {
        # AccelOpt's 263 GB/s at 4 KiB rows
        "dma_row_ns": Free((0, 1, 2, 3, 4, 6, 8, 12, 16, 22, 30), 8, 5),
        # the documented peak
        "tensor_sustained": Free((0.80, 0.82, 0.84, 0.86, 0.88, 0.90, 0.95, 1.0), 1.0, 0.3),
    },
    "gen3": {
        # the other figures of the DMA overview
        "dma_row_ns": Free((14, 16, 18, 20, 22, 24, 26, 28, 30), 29, 15),
        # hwdge's documented cost
        "swdge_ns": Free((400, 450, 500, 550, 600, 650, 700), 600, 200),
        # the documented rate
        "scalar_stream": Free((1.0, 1.02, 1.04, 1.06, 1.074, 1.09, 1.1), 1.0, 0.2),
        # none documented
        "tensor_issue_cycles": Free((0, 2, 4, 6, 8, 10, 12, 16), 0, 30),
    },
}

FIVE_PERCENT = 0.05


class Fit:
    """The fit of one generation; predictions are remembered, so that leaving rows out is cheap.

    Args:
        generation: one that has constants to fit.
        more: rows besides the published ones; those of other generations are left out.
    """

    def __init__(self, generation: str, more: Sequence[Row] = ()) -> None:
        self.generation = generation
        self.free = CONSTANTS[generation]
        rows = [r for r in ROWS if r.generation == generation and r.kind == "counted"]
        self.rows = [r.record(small=True) for r in rows]
        self.rows += [
            self._placed(r) for r in more if r.generation == generation and r.kind == "counted"
        ]
        self._known: dict[tuple[int, tuple[float, ...]], float] = {}

    def _placed(self, row: Row) -> Recorded:
        """A row recorded, with the constants that it responds to."""
        recorded = row.record()
        grids = {name: free.grid for name, free in self.free.items()}
        return replace(recorded, row=replace(row, constants=responding(recorded, grids, grids)))

    def counted(self) -> list[Recorded]:
        """Rows that count."""
        return self.rows

    def log_error(self, recorded: Recorded, constants: dict[str, float]) -> float:
        """log(predicted / published) of one row."""
        names = recorded.row.constants
        key = (id(recorded), tuple([constants[n] for n in names]))
        if key not in self._known:
            t: Timing = timing(self.generation).with_(**{n: constants[n] for n in names})
            self._known[key] = math.log(recorded.predict(t) / recorded.row.value)
        return self._known[key]

    def fit(self, rows: Sequence[Recorded]) -> dict[str, float]:
        """Constants that fit ``rows`` best."""
        found = {name: free.expected for name, free in self.free.items()}
        for _ in range(4):
            before = dict(found)
            for name, free in self.free.items():
                responding = [r for r in rows if name in r.row.constants]
                losses = [self._loss(found, name, free, value, responding) for value in free.grid]
                found[name] = free.grid[losses.index(min(losses))]
            if found == before:
                break
        return found

    def _loss(
        self,
        constants: dict[str, float],
        name: str,
        free: Free,
        value: float,
        rows: Sequence[Recorded],
    ) -> float:
        trial = {**constants, name: value}
        strayed = (value - free.expected) / free.spread * FIVE_PERCENT
        return strayed**2 + sum(self.log_error(r, trial) ** 2 for r in rows)

    def leave_one_out(self) -> list[tuple[Recorded, float]]:
        """Each counted row with its relative error when the others alone are fitted."""
        found = []
        for out in self.counted():
            others = [r for r in self.counted() if r is not out]
            error = math.exp(self.log_error(out, self.fit(others))) - 1
            found.append((out, error))
        return found


def write(generation: str, constants: dict[str, float]) -> Path:
    """Store nominal values in the generation's data file; a range that excludes one is widened."""
    path = Path(__file__).parent.parent / "data" / f"timing_{generation}.json"
    content = json.loads(path.read_text())
    for name, value in constants.items():
        entry = content["constants"][name]
        ascending = entry["low"] <= entry["high"]
        entry["nominal"] = value
        entry["low"] = (min if ascending else max)(entry["low"], value)
        entry["high"] = (max if ascending else min)(entry["high"], value)
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m nki_sim.timeline.fit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--generation", choices=sorted(CONSTANTS), action="append")
    parser.add_argument("--leave-one-out", action="store_true")
    parser.add_argument("--rows", type=Path, metavar="FILE", help="measurements of your own")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    try:
        more = read(options.rows) if options.rows else []
    except ValueError as error:
        parser.error(str(error))
    for generation in options.generation or sorted(CONSTANTS):
        fit = Fit(generation, more)
        constants = fit.fit(fit.counted())
        print(generation)
        for name, value in constants.items():
            print(f"  {name:<26}{value:>8g}  (in use: {getattr(timing(generation), name):g})")
        errors = [(r, math.exp(fit.log_error(r, constants)) - 1) for r in fit.counted()]
        _report("fitted", errors)
        if options.leave_one_out:
            _report("leave one out", fit.leave_one_out())
        if options.write:
            print(f"  written to {write(generation, constants)}")


def _report(title: str, errors: Sequence[tuple[Recorded, float]]) -> None:
    print(f"  {title}:")
    for recorded, error in errors:
        print(f"    {recorded.row.name:<44}{100 * error:>+7.1f} %")
    sizes = sorted(abs(e) for _, e in errors)
    middle = len(sizes) // 2
    median = sizes[middle] if len(sizes) % 2 else (sizes[middle - 1] + sizes[middle]) / 2
    print(f"    median {100 * median:.1f} %, worst {100 * sizes[-1]:.1f} %")


if __name__ == "__main__":
    main()
