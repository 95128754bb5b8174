"""The report of a validation: its schema, read and written whole.

    {"schema": 1, "role": "sdk" | "device", "rehearsal": bool, "versions": digest,
     "environment": {...}, "clock": {"name", "source"} | null, "planned": N, "cases": [Result, ...]}

docs/first_hour_on_an_instance.md describes every field. One report is about one set of versions:
sources, packages, driver and instance. A run that is given it again goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from models.files import write_json
from nki_kernels.errors import InputError, require

SCHEMA = 1

ROLES = ("sdk", "device")
EVIDENCE = ("computed", "predicted", "compiled", "measured")
OUTCOMES = ("running", "passed", "failed", "error")
STAGES = ("planted", "kernels", "compile", "graphs", "tokens", "times")


@dataclass(frozen=True)
class Times:
    """Times of one case in us, beside what the timeline predicts for it.

    Attributes:
        us: what the clock said, one number a capture, from the graph's start to its end on the
            device.
        low_us, nominal_us, high_us: predicted, with the launch, as the clock has it.
        bound: the engine that the prediction calls the limit.
        bound_us: the task's speed of light.
        extrapolated: whether the prediction was grown from shorter calls.
    """

    us: tuple[float, ...]
    low_us: float
    nominal_us: float
    high_us: float
    bound: str
    bound_us: float
    extrapolated: bool

    @property
    def median_us(self) -> float:
        """The middle capture; the lower of two."""
        return sorted(self.us)[(len(self.us) - 1) // 2]


@dataclass(frozen=True)
class Result:
    """What one case showed.

    Attributes:
        name: unique in a report; stage, kernel and shape.
        stage: one of `STAGES`.
        kernel: a kernel's, a graph's or a model's name.
        target: core generation, as trn1.
        evidence: of what kind this is; "measured" is a named device's alone.
        outcome: "passed", "failed" (ran, and is wrong), "error" (did not run to its end), or
            "running" (the process ended in it).
        message: one line for what is not passed.
        margin: the largest error as a share of what is allowed.
        agreement: the largest difference from our simulator as the same share.
        seconds: of the host, all in all.
        attempts: how often it was started.
        times: of a timed case.
        engines: us each engine was active, by the clock ("clock") and predicted ("predicted").
        call: of a timed case, how to record it again: kernel, arrays, keywords.
        details: what else there is to say, flat.
    """

    name: str
    stage: str
    kernel: str
    target: str
    evidence: str
    outcome: str
    message: str | None = None
    margin: float | None = None
    agreement: float | None = None
    seconds: float = 0.0
    attempts: int = 1
    times: Times | None = None
    engines: dict[str, dict[str, float]] = field(default_factory=dict)
    call: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """A whole report; `cases` by name, in the order in which they were run."""

    role: str
    rehearsal: bool
    versions: str
    environment: dict[str, Any]
    clock: dict[str, str] | None = None
    planned: int = 0
    cases: dict[str, Result] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        content = {"schema": SCHEMA, **asdict(self)}
        content["cases"] = [_plain(case) for case in self.cases.values()]
        write_json(path, content)


def _plain(case: Result) -> dict[str, Any]:
    """A result as JSON has it: infinities, which it lacks, as text."""
    content = asdict(case)
    for name in ("margin", "agreement"):
        if content[name] is not None and content[name] == float("inf"):
            content[name] = "infinite"
    return content


def load(path: Path, argument: str = "report") -> Report:
    """A report that `Report.save` wrote.

    Raises:
        InputError: the file is missing, is something else, or is of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{argument} {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{argument} {path} is not JSON: {error}") from error
    require(
        isinstance(content, dict) and "schema" in content and "cases" in content,
        f"{argument} {path} is not a validation report: it has no schema and cases",
    )
    require(
        content["schema"] == SCHEMA,
        f"{argument} {path} has schema {content['schema']!r}; this version reads {SCHEMA}",
    )
    try:
        cases = [_case(entry) for entry in content["cases"]]
        report = Report(**{f.name: content[f.name] for f in fields(Report) if f.name != "cases"})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{argument} {path} is not a whole report: {error}") from error
    require(
        report.role in ROLES, f"{argument} {path}: role {report.role!r} is none of {_list(ROLES)}"
    )
    report.cases = {case.name: case for case in cases}
    require(len(report.cases) == len(cases), f"{argument} {path} names a case twice")
    for case in cases:
        for value, known in (
            (case.stage, STAGES), (case.evidence, EVIDENCE), (case.outcome, OUTCOMES),
        ):  # fmt: skip
            require(value in known, f"{argument} {path}: {case.name} has {value!r}; known are "
                    f"{_list(known)}")  # fmt: skip
        require(
            not (report.rehearsal and case.evidence in ("measured", "compiled")),
            f"{argument} {path}: {case.name} calls a rehearsal {case.evidence}",
        )
    return report


def _case(entry: Mapping[str, Any]) -> Result:
    values = dict(entry)
    for name in ("margin", "agreement"):
        if values.get(name) == "infinite":
            values[name] = float("inf")
    if values.get("times") is not None:
        times = dict(values["times"])
        values["times"] = Times(**{**times, "us": tuple(float(us) for us in times["us"])})
    return Result(**values)


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names)
