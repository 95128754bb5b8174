"""Running the cases of a validation one by one, each result on disk before the next one starts.

A case is written as "running" before it starts. Where the process ends in it (a kill, the kernel's
out-of-memory killer), the next run starts it once more; ended twice, it is reported and left out,
so that one case cannot stop all that come after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from compile.failures import explain, whole_message
from nki_kernels.errors import InputError
from scripts.validation.report import Report, Result, Times, load

ATTEMPTS = 2
LONGEST = 600  # characters of a message


@dataclass(frozen=True)
class Found:
    """What running a case gave; as the fields of `Result`."""

    margin: float | None = None
    agreement: float | None = None
    wrong: str | None = None
    times: Times | None = None
    engines: dict[str, dict[str, float]] = field(default_factory=dict)
    call: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A case to run; the names are those of `Result`."""

    name: str
    stage: str
    kernel: str
    target: str
    evidence: str
    run: Callable[[], Found]


def open_report(
    path: Path, role: str, rehearsal: bool, versions: str, environment: dict[str, Any],
    clock: dict[str, str] | None,
) -> Report:  # fmt: skip
    """The report at `path` to go on with, or a new one.

    Raises:
        InputError: the file is something else, or a report of another role or of other versions.
    """
    if not path.is_file() or not path.stat().st_size:
        return Report(role, rehearsal, versions, environment, clock)
    report = load(path, "--out")
    for name, old, new in (
        ("role", report.role, role),
        ("rehearsal", report.rehearsal, rehearsal),
        ("versions", report.versions, versions),
    ):
        if old != new:
            raise InputError(
                f"--out {path} is a report with {name} {old}, and this run has {new}; a report is "
                "about one machine and one set of versions: give another file"
            )
    return report


def run(jobs: Sequence[Job], report: Report, path: Path, again: bool = False) -> Report:
    """Run the jobs that `report` does not hold yet and write it after each.

    Args:
        jobs: in the order to run.
        report: results so far.
        path: where it is written.
        again: run also those that failed or did not finish.
    """
    names = {job.name for job in jobs}
    report.planned = len(names | set(report.cases))
    with tqdm(total=len(jobs), unit="case", dynamic_ncols=True) as bar:
        for job in jobs:
            bar.set_description(job.name[:60])
            before = report.cases.get(job.name)
            if before is None or before.outcome == "running" or (again and not _passed(before)):
                _run(job, report, path, 1 if before is None or again else before.attempts + 1)
            bar.update()
    report.save(path)
    return report


def _run(job: Job, report: Report, path: Path, attempt: int) -> None:
    result = Result(
        job.name, job.stage, job.kernel, job.target, job.evidence, "running", attempts=attempt
    )
    if attempt > ATTEMPTS:
        report.cases[job.name] = replace(
            result,
            outcome="error",
            attempts=ATTEMPTS,
            message=f"the process ended {ATTEMPTS} times during this case: by hand, or for host "
            "memory if dmesg names the out-of-memory killer; --again runs it once more",
        )
        report.save(path)
        return
    report.cases[job.name] = result
    report.save(path)
    start = time.perf_counter()
    try:
        found = job.run()
    except KeyboardInterrupt:
        del report.cases[job.name]
        report.save(path)
        raise
    except Exception as error:  # a case that breaks is a finding, not the end
        after = replace(result, outcome="error", message=tell(error))
    else:
        wrong = found.wrong
        if wrong is None and found.margin is not None and not found.margin <= 1:
            wrong = f"the largest error is {found.margin:.3g} times what is allowed"
        after = replace(
            result,
            outcome="passed" if wrong is None else "failed",
            message=wrong,
            margin=found.margin,
            agreement=found.agreement,
            times=found.times,
            engines=found.engines,
            call=found.call,
            details=found.details,
        )
    report.cases[job.name] = replace(after, seconds=round(time.perf_counter() - start, 3))
    report.save(path)


def _passed(result: Result) -> bool:
    return result.outcome == "passed"


def tell(error: Exception) -> str:
    """One line: what was raised, and for a known failure its cause and what to do."""
    said = whole_message(error)
    known = explain(said)
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {first}"
    if known is not None:
        text = f"{known.cause}; next: {known.advice}; it said: {known.line}"
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
