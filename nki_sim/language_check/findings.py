"""What the check reports, and the collector that the checks write into."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from nki_sim.language_check.rules import Evidence, rule


@dataclass(frozen=True, order=True)
class Finding:
    """One place that the compiler of the named versions refuses.

    Attributes:
        file: the file as it was named to the check.
        line: 1-based line.
        column: 1-based column.
        rule: id of the rule, see `nki_sim.language_check.RULES`.
        message: one sentence.
        versions: the NKI versions asked about that refuse it, oldest first.
        source: the public document that says so.
        evidence: "stated", "published" or "inferred", as in `Rule`.
    """

    file: str
    line: int
    column: int
    rule: str
    message: str
    versions: tuple[str, ...]
    source: str
    evidence: Evidence

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        refused = f"NKI {', '.join(self.versions)}; {self.evidence}: {self.source}"
        return f"{place}: {self.rule}: {self.message} [{refused}]"


class Report:
    """Collects findings for the versions asked about, each place and rule once."""

    def __init__(self, versions: tuple[str, ...]) -> None:
        self.versions = versions
        self._findings: dict[tuple[str, str, int, int], Finding] = {}

    def add(
        self,
        rule_id: str,
        file: str,
        node: ast.AST,
        message: str,
        versions: Iterable[str] | None = None,
        source: str | None = None,
        evidence: Evidence | None = None,
    ) -> None:
        """Record `rule_id` at `node`, unless none of the versions asked about refuses it."""
        broken = rule(rule_id)
        refused = broken.versions if versions is None else tuple(versions)
        asked = tuple(version for version in self.versions if version in refused)
        line = getattr(node, "lineno", 1)
        column = getattr(node, "col_offset", 0) + 1
        if asked:
            self._findings.setdefault(
                (rule_id, file, line, column),
                Finding(
                    file,
                    line,
                    column,
                    rule_id,
                    message,
                    asked,
                    source or broken.source,
                    evidence or broken.evidence,
                ),
            )

    def findings(self) -> list[Finding]:
        """All findings, by place."""
        return sorted(self._findings.values())
