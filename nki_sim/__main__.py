"""``python -m nki_sim``: list the rules, check a kernel, or run a script that imports ``nki``."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from nki_sim import binding, rules
from nki_sim.check import CheckError, check
from nki_sim.errors import BindingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m nki_sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("rules", help="every rule the simulator enforces, with its public source")
    run = commands.add_parser("run", help="run a Python script with `import nki` on the simulator")
    run.add_argument("script", type=Path)
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    test = commands.add_parser("check", help="run one kernel on made-up arrays and report findings")
    test.add_argument("kernel", metavar="FILE.py:FUNCTION")
    test.add_argument(
        "--args",
        nargs="*",
        default=[],
        metavar="ARG",
        help="arguments in order: 128x512:float32 is an array, others are numbers or strings",
    )
    test.add_argument("--target", help="trn1, inf2, trn2 or trn3")
    test.add_argument("--lnc", type=int, default=1, help="cores (1 or 2)")
    test.add_argument(
        "--nki",
        default="",
        metavar="VERSIONS",
        help="also check the source for these, as in 0.3,0.6",
    )
    options = parser.parse_args(argv)
    if options.command == "rules":
        for rule in rules.ALL.values():
            print(f"{rule.id}\n    {rule.text}\n    [{rule.source}]")
        return 0
    if options.command == "check":
        try:
            return check(
                options.kernel,
                options.args,
                options.target,
                options.lnc,
                tuple(filter(None, options.nki.split(","))),
            )
        except CheckError as error:
            print(error, file=sys.stderr)
            return 2
    return _run(options.script, options.arguments)


def _run(script: Path, arguments: list[str]) -> int:
    if not script.is_file():
        print(f"{script} is not a file", file=sys.stderr)
        return 2
    try:
        binding.install()
    except BindingError as error:
        print(error, file=sys.stderr)
        return 2
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
