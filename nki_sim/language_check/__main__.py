"""The command line: `python -m nki_sim.language_check FILE[:FUNCTION] [--nki 0.3,0.4]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nki_sim.language_check import RULES, VERSIONS, LanguageCheckError, check_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; 0 = nothing found, 1 = findings, 2 = bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m nki_sim.language_check",
        description="Report what the NKI compiler of each version refuses in the kernels of files.",
    )
    parser.add_argument("targets", nargs="*", metavar="FILE[:FUNCTION]")
    parser.add_argument(
        "--nki",
        default=",".join(VERSIONS),
        metavar="VERSIONS",
        help="versions to check, with commas between them (%(default)s)",
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="MODULE=FILE",
        help="follow calls into this imported module too",
    )
    parser.add_argument("--rules", action="store_true", help="list the rules and exit")
    options = parser.parse_args(arguments)
    if options.rules:
        for rule in RULES:
            until = f"to {rule.until}" if rule.until else "on"
            print(
                f"{rule.id}: {rule.refuses} [{rule.since} {until}; {rule.evidence}: {rule.source}]"
            )
        return 0
    try:
        if not options.targets:
            raise LanguageCheckError("name a file to check, or --rules")
        sources = dict(_module(entry) for entry in options.source)
        versions = options.nki.split(",")
        findings = []
        for target in options.targets:
            path, function = _target(target)
            findings += check_file(path, function, versions, sources)
    except LanguageCheckError as error:
        print(error, file=sys.stderr)
        return 2
    for finding in findings:
        print(finding)
    if not findings:
        print(f"nothing to find in {', '.join(options.targets)} for NKI {', '.join(versions)}")
    return 1 if findings else 0


def _target(text: str) -> tuple[str, str | None]:
    path, _, function = text.rpartition(":")
    return (path, function) if path and not Path(text).exists() else (text, None)


def _module(entry: str) -> tuple[str, Path]:
    name, _, path = entry.partition("=")
    if not name or not path:
        raise LanguageCheckError(f"--source {entry!r} is not MODULE=FILE")
    return name, Path(path)


if __name__ == "__main__":
    sys.exit(main())
