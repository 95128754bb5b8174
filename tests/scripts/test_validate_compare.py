"""Reports read back: failures, disagreements, ratios, and rows that the timeline's fit takes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nki_kernels.errors import InputError
from nki_sim.timeline.rows import read
from scripts import compare_reports
from scripts.validation import compare
from scripts.validation.clock import TimelineClock
from scripts.validation.report import Report, Result, Times, load
from scripts.validation.sweep import grid, take_time

pytestmark = pytest.mark.sim

INSTANCE = {"instance": "trn1.2xlarge", "sdk": "2.31", "driver": "2.29.0.0",
            "packages": {"nki": "0.5.0"}, "git": {"commit": "0123abcdef"}}  # fmt: skip


def result(name: str, outcome: str = "passed", **fields: Any) -> Result:
    return Result(name, "kernels", name, "trn1", "computed", outcome, **fields)


def timed(name: str, us: float, bound: str = "dma", **fields: Any) -> Result:
    times = Times((us,), 80.0, 100.0, 130.0, bound, 60.0, False)
    return Result(f"times/{name}", "times", name.split("/")[0], "trn1", "measured", "passed",
                  times=times, **fields)  # fmt: skip


def report(*cases: Result, rehearsal: bool = False, **about: Any) -> Report:
    made = Report("device", rehearsal, "v", INSTANCE | about, {"name": "c", "source": "s"})
    made.cases = {case.name: case for case in cases}
    made.planned = len(cases)
    return made


def go(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare_reports.py", *arguments])
    try:
        compare_reports.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_two_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = report(result("a"), result("b"), timed("flash/x", 90), timed("flash/y", 150))
    other = report(
        result("a", "failed", message="is wrong", margin=float("inf")),
        timed("flash/x", 110),
        timed("flash/z", 60, bound="tensor"),
    )
    for name, each in (("one", one), ("other", other)):
        each.save(tmp_path / f"{name}.json")
        assert load(tmp_path / f"{name}.json") == each
    assert go(monkeypatch, *(str(tmp_path / f"{name}.json") for name in ("one", "other"))) == 1
    said = capsys.readouterr().out
    assert "Not passed: 1" in said and "a (failed): is wrong" in said
    assert "The reports disagree: 1" in said and "a: passed in" in said
    assert "trn1.2xlarge, SDK 2.31, nki 0.5.0, commit 0123abcd, 4 of 4 cases passed" in said
    both = [("one", one), ("other", other)]
    ratios = {each.bound: each for each in compare.ratios(compare.measured(both))}
    assert ratios["dma"] == compare.Ratio("flash", "gen2", "dma", 3, 1.1, 0.9, 1.5, 2)
    assert ratios["tensor"] == compare.Ratio("flash", "gen2", "tensor", 1, 0.6, 0.6, 0.6, 0)


def test_a_rehearsal_is_not_counted_as_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = replace(timed("flash/x", 90), evidence="predicted")
    report(case, rehearsal=True).save(tmp_path / "r.json")
    assert go(monkeypatch, str(tmp_path / "r.json")) == 0
    said = capsys.readouterr().out
    assert "1 times are predictions" in said and "Measured over predicted" not in said
    with pytest.raises(InputError, match="no report holds a measured time"):
        go(monkeypatch, str(tmp_path / "r.json"), "--rows", str(tmp_path / "rows.json"))
    assert not (tmp_path / "rows.json").exists()


def test_what_compiling_took_and_how_far_simulators_are_apart() -> None:
    cases = [
        replace(result(name), evidence="compiled", seconds=seconds,
                details={"largest_child_gib": seconds / 10})
        for name, seconds in (("a", 30.0), ("b", 50.0), ("c", 100.0))
    ]  # fmt: skip
    mine = report(*cases, result("d", agreement=0.25), result("e", agreement=0.5))
    assert compare.compiling([("r", mine)]) == [
        "r: 3 graphs, median 50 s, longest 100 s, 10.0 GiB of memory at most"
    ]
    assert compare.agreements([("r", mine)]) == {"d": 0.25, "e": 0.5}
    assert compare.compiling([("r", report())]) == [] and compare.agreements([]) == {}


def test_engines_are_held_against_each_other_where_they_work_at_all() -> None:
    engines = {"clock": {"dma": 50.0, "scalar": 3.0}, "predicted": {"dma": 40.0, "scalar": 0.2}}
    case = timed("flash/x", 90, engines=engines)
    found = compare.engine_ratios(compare.measured([("r", report(case))]))
    assert found == {("gen2", "dma"): [1.25]}


def test_rows_are_what_the_fit_reads(tmp_path: Path) -> None:
    """A time taken 15 % over the prediction comes back as a row, and the timeline records it."""
    each = next(each for each in grid("trn1", (1,), (256,), (), ("gqa",)) if "write" in each.name)
    found = take_time(each, "trn1", TimelineClock(), tmp_path)
    assert found.times is not None
    slow = replace(found.times, us=(1.15 * found.times.nominal_us,))
    case = Result(f"times/{each.name}", "times", each.kernel, "trn1", "measured", "passed",
                  times=slow, engines=found.engines, call=found.call)  # fmt: skip
    made = compare.rows(compare.measured([("r", report(case))]), {"r": report(case)})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": made}))
    rows = read(path)
    assert rows[0].kind == "counted" and {row.kind for row in rows[1:]} == {"shown"}
    assert "trn1.2xlarge, SDK 2.31, driver 2.29.0.0" in rows[0].source
    from nki_sim.timeline.constants import timing

    predicted = rows[0].record().predict(timing("gen2"))
    assert rows[0].value / predicted == pytest.approx(1.15, rel=1e-3)
    assert "dma_start_ns" in compare.constants(path, []) + _leaning(rows[0])


def _leaning(row: Any) -> str:
    from nki_sim.timeline.rows import leanings

    return " ".join(lean.name for lean in leanings([row.record()], "gen2"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.json"], "report nowhere.json cannot be read: No such file"),
        (["pyproject.toml"], "pyproject.toml is not JSON"),
        (["a", "a"], "a report is named twice"),
    ],
)
def test_bad_input(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=message):
        go(monkeypatch, *arguments)
