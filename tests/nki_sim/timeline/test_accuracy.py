"""The model against what others have measured and published."""

from __future__ import annotations

import math
from statistics import median

import pytest

from nki_sim.timeline.constants import ESTIMATES, Timing, table, timing
from nki_sim.timeline.fit import CONSTANTS, Fit
from nki_sim.timeline.profiling import VALIDATION_ROWS
from nki_sim.timeline.published import ROWS, Result, compare
from nki_sim.timeline.schedule import schedule

pytestmark = pytest.mark.sim

MEDIAN, WORST = 0.15, 0.35

LARGE = [row for row in ROWS if row.small is not None]
SMALL = [row for row in ROWS if row.small is None and row.kind != "shown"]


def check(results: list[Result]) -> None:
    for r in results:
        if r.row.kind != "shown":
            assert abs(r.error) <= WORST, f"{r.row.name}: {r}"
        if r.row.kind == "high":  # what the later run contradicts is still within the range
            assert r.nominal < r.row.value <= r.high, f"{r.row.name}: {r}"


def test_kernels_that_run_in_microseconds() -> None:
    results = compare(SMALL)
    check(results)
    for generation in ("gen2", "gen3"):
        errors = [
            abs(r.error)
            for r in results
            if r.row.generation == generation and r.row.kind == "counted"
        ]
        assert median(errors) <= MEDIAN


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["gen2", "gen3"])
def test_every_counted_row(generation: str) -> None:
    """Median and worst error over the counted rows; large kernels do part of their work."""
    rows = [row for row in ROWS if row.generation == generation and row.kind != "shown"]
    results = compare(rows, small=True)
    check(results)
    counted = [abs(r.error) for r in results if r.row.kind == "counted"]
    assert median(counted) <= MEDIAN
    assert len(counted) == VALIDATION_ROWS[generation] >= 4


@pytest.mark.long
def test_every_row_at_full_size() -> None:
    check(compare(LARGE))


@pytest.mark.long
@pytest.mark.parametrize("generation", sorted(CONSTANTS))
def test_the_fit(generation: str) -> None:
    """The constants in use are the fitted ones, and rows left out of the fit are predicted too."""
    fit = Fit(generation)
    found = fit.fit(fit.counted())
    assert found == {name: getattr(timing(generation), name) for name in found}
    errors = [abs(error) for _, error in fit.leave_one_out()]
    assert median(errors) <= MEDIAN and max(errors) <= WORST


@pytest.mark.parametrize("generation", ["gen2", "gen3", "gen4"])
def test_every_constant_has_a_unit_a_kind_and_a_source(generation: str) -> None:
    for name, entry in table(generation).items():
        assert entry["unit"] and entry["source"], name
        assert entry["kind"] in ("documented", "measured", "fitted", "assumed", "carried over")
        low, nominal, high = (entry[e] for e in ESTIMATES)
        assert min(low, high) <= nominal <= max(low, high), name
    fitted = {n for n, e in table(generation).items() if e["kind"] == "fitted"}
    assert fitted >= set(CONSTANTS.get(generation, {}))


@pytest.mark.parametrize("generation", ["gen2", "gen3", "gen4"])
def test_low_is_the_fast_end_and_high_the_slow_one(generation: str) -> None:
    """Constant by constant: its high alone never makes a small kernel faster, its low slower."""
    row = next(r for r in ROWS if r.name == "gelu, 4 KiB rows")
    recorded = row.record()
    nominal = timing(generation)

    def total(t: Timing) -> float:
        return schedule(recorded.trace, recorded.before, t).total

    base = total(nominal)
    for name, entry in table(generation).items():
        if name == "dma_engines":
            continue
        # Anomalies of list scheduling may turn a longer step into a slightly shorter whole.
        assert total(nominal.with_(**{name: entry["low"]})) <= base * 1.001, name
        assert total(nominal.with_(**{name: entry["high"]})) >= base * 0.999, name


def test_a_wrong_constant_is_noticed() -> None:
    """Half the DMA rate puts DMA-bound rows beyond what is allowed: the table can fail."""
    row = next(r for r in ROWS if r.name == "gelu, 4 KiB rows")
    t = timing("gen3")
    slow = t.with_(dma_bytes_per_ns=t.dma_bytes_per_ns / 2)
    assert math.log(row.record().predict(slow) / row.value) > math.log(1 + WORST)
