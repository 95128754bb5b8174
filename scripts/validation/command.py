"""What both validating scripts share: options, the report's file, the last line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from compile import flags
from models.files import output_path
from nki_kernels.errors import require
from nki_sim.targets import OVERRIDE
from scripts import command_line
from scripts.validation import machine
from scripts.validation.clock import Clock
from scripts.validation.report import Report
from scripts.validation.runner import Job, open_report, run

FAILED = 1
TARGETS = ("trn1", "inf2", "trn2", "trn3")


def parser(doc: str | None, stages: Sequence[str]) -> command_line.Parser:
    """Options of both; `stages` are the script's, in order."""
    made = command_line.Parser(
        description=(doc or "").splitlines()[0], epilog="Exit code 0: all passed. 1: something "
        "did not. 2: the command is wrong, or what it needs is not here."
    )  # fmt: skip
    add = made.add_argument
    add("--out", required=True, metavar="FILE", help="the report; a run that finds it goes on")
    add("--target", choices=TARGETS, default="trn1", help="core generation (%(default)s)")
    add("--stages", default=",".join(stages), metavar="S,...", help="what to do (%(default)s)")
    add("--only", default="", metavar="TEXT", help="kernel cases whose name holds TEXT")
    add(
        "--cases",
        choices=("few", "all"),
        default="few",
        help="of each kernel what neuronx-cc compiles: one a dtype, or all (%(default)s)",
    )
    add("--work", metavar="DIR", help="folder of compiled graphs (OUT with .work behind)")
    add("--again", action="store_true", help="run what failed or ended once more")
    add("--rehearse", action="store_true", help="simulator and timeline in the machine's roles")
    return made  # fmt: skip


def stages_of(
    options: argparse.Namespace, known: Sequence[str], compiling: Sequence[str]
) -> list[str]:
    """The stages asked for, in the script's order.

    Args:
        options: of the command line.
        known: the script's stages.
        compiling: those of them that hand graphs to neuronx-cc by name of the target.

    Raises:
        InputError: an unknown one, or one that compiles for a target that neuronx-cc does not name.
    """
    asked = options.stages.split(",")
    for name in asked:
        require(name in known, f"--stages {name!r} is none of {', '.join(known)}")
    found = [name for name in known if name in asked]
    refused = [name for name in found if name in compiling]
    require(
        options.target in flags.TARGETS or not refused,
        f"--target {options.target}: neuronx-cc documents {', '.join(flags.TARGETS)}, and stages "
        f"{', '.join(refused)} compile for a target; give --stages "
        f"{','.join(name for name in known if name not in compiling)}",
    )
    return found


def begin(options: argparse.Namespace) -> tuple[Path, Path]:
    """The report's path and the folder for graphs; sets the target that `nki` goes by."""
    path = output_path(options.out, "--out")
    folder = Path(options.work) if options.work else path.with_name(f"{path.name}.work")
    os.environ[OVERRIDE] = options.target
    return path, folder.resolve()


def finish(
    options: argparse.Namespace,
    role: str,
    path: Path,
    make_jobs: Callable[[], list[Job]],
    clock: Clock | None = None,
) -> None:
    """Open the report, run the jobs, say what came out, leave with the exit code."""
    found = machine.environment(options.rehearse)
    report = open_report(
        path, role, options.rehearse, machine.versions_key(found), found,
        None if clock is None else {"name": clock.name, "source": clock.source},
    )  # fmt: skip
    jobs = make_jobs()
    require(bool(jobs), f"--only {options.only!r} leaves no case")
    try:
        run(jobs, report, path, options.again)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {path} holds {len(report.cases)} cases, the same command goes on",
              file=sys.stderr)  # fmt: skip
        sys.exit(command_line.INTERRUPTED)
    print(summary(report, path))
    if any(case.outcome != "passed" for case in report.cases.values()):
        sys.exit(FAILED)


def summary(report: Report, path: Path) -> str:
    """A line a stage, a line for each case that did not pass."""
    lines = []
    cases = list(report.cases.values())
    for stage in dict.fromkeys(case.stage for case in cases):
        mine = [case for case in cases if case.stage == stage]
        passed = sum(case.outcome == "passed" for case in mine)
        evidence = ", ".join(dict.fromkeys(case.evidence for case in mine))
        lines.append(f"{stage:<8} {passed:>4} of {len(mine)} passed   ({evidence})")
    lines += [
        f"{case.outcome:<8} {case.name}: {case.message}"
        for case in cases
        if case.outcome != "passed"
    ]
    if report.rehearsal:
        lines.append("a rehearsal: nothing here was compiled by neuronx-cc or measured")
    return "\n".join([*lines, f"written  {path}"])
