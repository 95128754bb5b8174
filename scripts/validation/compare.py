"""What one or more reports say: what fails, where they disagree, measured against predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nki_sim.targets import get_target
from scripts.validation.report import Report, Result


@dataclass(frozen=True)
class Ratio:
    """Measured over predicted (nominal, with the launch) of one kernel, generation and bound.

    Attributes:
        times: how many.
        median, least, most: of the ratios.
        inside: how many lie between the predicted low and high.
    """

    kernel: str
    generation: str
    bound: str
    times: int
    median: float
    least: float
    most: float
    inside: int


def failing(reports: Sequence[tuple[str, Report]]) -> list[tuple[str, Result]]:
    """(report, case) of every case that did not pass."""
    return [
        (name, case)
        for name, report in reports
        for case in report.cases.values()
        if case.outcome != "passed"
    ]


def disagreeing(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """Cases that pass in one report and do not in another, a line each."""
    found = []
    for case in dict.fromkeys(name for _, report in reports for name in report.cases):
        said = {
            name: report.cases[case].outcome for name, report in reports if case in report.cases
        }
        if len(set(said.values())) > 1:
            found.append(f"{case}: " + ", ".join(f"{k} in {v}" for v, k in said.items()))
    return found


def agreements(reports: Sequence[tuple[str, Report]]) -> dict[str, float]:
    """By kernel, the largest difference of another machine from our simulator, if any was there."""
    found: dict[str, float] = {}
    for _, report in reports:
        for case in report.cases.values():
            if case.agreement is not None:
                found[case.kernel] = max(found.get(case.kernel, 0.0), case.agreement)
    return found


def compiling(reports: Sequence[tuple[str, Report]]) -> list[str]:
    """What neuronx-cc took, a line a report: the planner's estimates can be held against it."""
    found = []
    for name, report in reports:
        cases = [case for case in report.cases.values() if case.evidence == "compiled"]
        seconds = [case.seconds for case in cases if case.outcome == "passed"]
        if seconds:
            memory = max(case.details.get("largest_child_gib", 0.0) for case in cases)
            found.append(
                f"{name}: {len(seconds)} graphs, median {median(seconds):.0f} s, longest "
                f"{max(seconds):.0f} s, {memory:.1f} GiB of memory at most"
            )
    return found


def measured(reports: Sequence[tuple[str, Report]]) -> list[tuple[str, Result]]:
    """(report, case) of the times that a device's clock gave; no other time is measured."""
    return [
        (name, case)
        for name, report in reports
        if not report.rehearsal
        for case in report.cases.values()
        if case.times is not None and case.evidence == "measured" and case.outcome == "passed"
    ]


def not_measured(reports: Sequence[tuple[str, Report]]) -> int:
    """Times that are only predicted, as a rehearsal's are."""
    timed = sum(case.times is not None for _, report in reports for case in report.cases.values())
    return timed - len(measured(reports))


def ratios(times: Sequence[tuple[str, Result]]) -> list[Ratio]:
    """Measured against predicted, kernel by kernel, generation by generation, bound by bound."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for _, case in times:
        assert case.times is not None
        key = (case.kernel, get_target(case.target).generation, case.times.bound)
        groups.setdefault(key, []).append(case)
    found = []
    for key, cases in sorted(groups.items()):
        each = [case.times for case in cases if case.times is not None]
        shares = [t.median_us / t.nominal_us for t in each]
        inside = sum(t.low_us <= t.median_us <= t.high_us for t in each)
        found.append(Ratio(*key, len(each), median(shares), min(shares), max(shares), inside))
    return found


def engine_ratios(times: Sequence[tuple[str, Result]]) -> dict[tuple[str, str], list[float]]:
    """Active time by the profiler over busy time predicted, by (generation, engine)."""
    found: dict[tuple[str, str], list[float]] = {}
    for _, case in times:
        predicted = case.engines.get("predicted", {})
        for engine, us in case.engines.get("clock", {}).items():
            if predicted.get(engine, 0) >= 1:  # of less than a microsecond no ratio says much
                key = (get_target(case.target).generation, engine)
                found.setdefault(key, []).append(us / predicted[engine])
    return dict(sorted(found.items()))


def rows(times: Sequence[tuple[str, Result]], reports: dict[str, Report]) -> list[dict[str, Any]]:
    """Measured times as `nki_sim.timeline.rows` reads them.

    Totals count in the fit; engines' active times are shown, since what a profiler calls active may
    hold waiting for operands. Calls too long to be recorded whole have no row.
    """
    found = []
    for name, case in times:
        if case.call is None or case.times is None:
            continue
        about = reports[name].environment
        source = (
            f"{about.get('instance') or 'instance unknown'}, SDK {about.get('sdk') or 'unknown'}, "
            f"driver {about.get('driver') or 'unknown'}, {(reports[name].clock or {}).get('name')}"
        )
        common = {"generation": get_target(case.target).generation, "unit": "us", "source": source,
                  **case.call}  # fmt: skip
        title = case.name.removeprefix("times/")
        found.append({"name": title, "value": case.times.median_us, "measure": "total",
                      "kind": "counted", **common})  # fmt: skip
        for engine, us in case.engines.get("clock", {}).items():
            if us > 0:
                found.append({"name": f"{title}, {engine} active", "value": us,
                              "measure": f"busy {engine}", "kind": "shown", **common})  # fmt: skip
    return found


def text(reports: Sequence[tuple[str, Report]]) -> str:
    """The whole comparison."""
    lines = []
    for name, report in reports:
        about = report.environment
        what = "rehearsal" if report.rehearsal else about.get("instance") or "host"
        done = sum(case.outcome == "passed" for case in report.cases.values())
        commit = str((about.get("git") or {}).get("commit"))[:8]
        nki = (about.get("packages") or {}).get("nki", "none")
        lines.append(f"{name}: {report.role}, {what}, SDK {about.get('sdk') or 'none'}, nki {nki}, "
                     f"commit {commit}, {done} of {report.planned} cases passed")  # fmt: skip
    lines += _section("Not passed", [f"{name}: {case.name} ({case.outcome}): {case.message}"
                                     for name, case in failing(reports)])  # fmt: skip
    if len(reports) > 1:
        lines += _section("The reports disagree", disagreeing(reports))
    lines += _section("Kernels' largest difference from our simulator, of what is allowed",
                      [f"{kernel:<24}{share:.2f}"
                       for kernel, share in agreements(reports).items()])  # fmt: skip
    lines += _section("Compiling", compiling(reports))
    times = measured(reports)
    left_out = not_measured(reports)
    if left_out:
        lines += ["", f"{left_out} times are predictions of a rehearsal and are not counted as "
                  "measured"]  # fmt: skip
    if times:
        lines += ["", "Measured over predicted",
                  f"{'kernel':<24}{'core':<6}{'bound':<8}{'times':>6}{'median':>8}{'least':>8}"
                  f"{'most':>8}  within low to high"]  # fmt: skip
        lines += [
            f"{r.kernel:<24}{r.generation:<6}{r.bound:<8}{r.times:>6}{r.median:>8.2f}"
            f"{r.least:>8.2f}{r.most:>8.2f}  {r.inside} of {r.times}"
            for r in ratios(times)
        ]
        lines += ["", "Engine active over engine busy predicted"]
        lines += [
            f"{generation} {engine:<8} {median(shares):.2f} ({min(shares):.2f} to "
            f"{max(shares):.2f}, {len(shares)} times)"
            for (generation, engine), shares in engine_ratios(times).items()
        ]
    return "\n".join(lines)


def _section(title: str, found: Sequence[str]) -> list[str]:
    return ["", f"{title}: {len(found) or 'none'}", *(f"  {line}" for line in found)]


def constants(path: Path, generations: Sequence[str], longest: int = 4000) -> str:
    """Which constants of the timeline the rows of a file would move.

    Args:
        path: rows, as written by `rows`.
        generations: to look at.
        longest: rows of more instructions are left out of the search over all constants.
    """
    from nki_sim.timeline.constants import timing
    from nki_sim.timeline.fit import CONSTANTS, Fit
    from nki_sim.timeline.rows import leanings, read

    found = [row for row in read(path) if row.kind == "counted"]
    lines = []
    for generation in generations:
        mine = [row for row in found if row.generation == generation]
        if not mine:
            continue
        lines += ["", f"Constants of {generation} that these {len(mine)} times would move"]
        if generation in CONSTANTS:
            fit = Fit(generation, mine)
            for name, value in fit.fit(fit.counted()).items():
                now = getattr(timing(generation), name)
                word = "stays" if value == now else f"-> {value:g}"
                lines.append(f"  {name:<24} {now:g} {word} (fitted, with the published rows)")
        recorded = [row.record() for row in mine]
        short = [each for each in recorded if len(each.trace) <= longest]
        for lean in leanings(short, generation)[:8] if short else []:
            lines.append(
                f"  {lean.name:<24} {lean.nominal:g} leans to {lean.end:g}: error "
                f"{100 * lean.before:.0f} % -> {100 * lean.after:.0f} % (these times alone)"
            )
    return "\n".join(lines)
