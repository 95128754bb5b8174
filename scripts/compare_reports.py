#!/usr/bin/env python
"""Read reports of validate_on_sdk.py and validate_on_device.py back and compare them.

python scripts/compare_reports.py device.json
python scripts/compare_reports.py mine.json yours.json --rows rows.json
python -m nki_sim.timeline.fit --generation gen2 --rows rows.json      what the fit makes of them

Exit code 0: all cases passed. 1: some did not, or reports disagree. 2: a file is not a report.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.files import output_path, write_json
from nki_kernels.errors import InputError, require
from nki_sim.targets import get_target
from scripts import command_line
from scripts.validation import compare
from scripts.validation.report import load

DIFFERS = 1


def main() -> None:
    """Print the comparison; write rows and say what they would change where asked."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="one or more")
    parser.add_argument(
        "--rows", metavar="FILE", help="write measured times for the timeline's fit, and say which "
        "of its constants they would move (a minute)"
    )  # fmt: skip
    options = parser.parse_args()
    require(len(set(options.reports)) == len(options.reports), "a report is named twice")
    out = None if options.rows is None else output_path(options.rows, "--rows")
    reports = [(name, load(Path(name))) for name in options.reports]
    print(compare.text(reports))
    if out is not None:
        times = compare.measured(reports)
        found = compare.rows(times, dict(reports))
        if not found:
            raise InputError(
                "--rows: no report holds a measured time; a rehearsal's are predictions, and the "
                "fit would be held against itself"
            )
        write_json(out, {"rows": found})
        print(f"\nwritten  {out}: {len(found)} rows")
        generations = dict.fromkeys(get_target(case.target).generation for _, case in times)
        print(compare.constants(out, list(generations)))
    if compare.failing(reports) or compare.disagreeing(reports):
        sys.stdout.flush()
        sys.exit(DIFFERS)


if __name__ == "__main__":
    command_line.run(main)
