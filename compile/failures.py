"""What the compiler or the runtime said, translated into a cause and a next step."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from compile.known_failures import KNOWN, STATUS, STATUS_SOURCE

_CODE = re.compile(r"NCC_([A-Z]{4}\d{3})")
_STATUS = re.compile(r"\b(nrt_\w+)\b[^\n]*?status[=:]\s*(\d+)|completed with err: (\d+)")
_PAGE = "https://awsdocs-neuron.readthedocs-hosted.com/en/latest/compiler/error-codes/{}.html"
TAIL = 200
"""Lines at the end of a log that are read."""


@dataclass(frozen=True)
class Explanation:
    """Why something failed.

    Attributes:
        cause: in words.
        advice: what to do next.
        source: where it is documented or was reported.
        line: the line of the log that says so.
    """

    cause: str
    advice: str
    source: str
    line: str


class NeuronFailure(RuntimeError):
    """Compiling, loading or running a graph failed; the message says which, why, and what next.

    Attributes:
        graph: its name, or None where no single one failed.
        explanation: None where the failure is not a known one.
    """

    def __init__(
        self,
        did: str,
        text: str,
        *,
        graph: str | None = None,
        flags: str | None = None,
        log: Path | None = None,
    ) -> None:
        self.graph = graph
        self.explanation = explain(text)
        parts = [did if graph is None else f"{did}, graph {graph}"]
        if self.explanation is None:
            parts.append(f"not a failure known here: {_last_line(text)}")
        else:
            parts += [
                self.explanation.cause,
                f"next: {self.explanation.advice}",
                f"see: {self.explanation.source}",
                f"it said: {self.explanation.line}",
            ]
        if flags is not None:
            parts.append(f"flags: {flags}")
        if log is not None:
            parts.append(f"log: {log}")
        super().__init__("\n  ".join(parts))


def explain(text: str) -> Explanation | None:
    """The known failure in `text`, a log or a message; None where there is none."""
    for known in KNOWN:
        found = re.search(known.pattern, text)
        if found:
            return Explanation(known.cause, known.advice, known.source, _line(text, found))
    found = _CODE.search(text)
    if found:
        page = _PAGE.format(found[1])
        advice = f"read {page}; --lower shows what the graph holds; report it with model/graph.hlo"
        return Explanation(f"the compiler's error {found[0]}", advice, page, _line(text, found))
    found = _STATUS.search(text)
    if found:
        status = int(found[2] or found[3])
        call = found[1] or "nrt_execute"
        cause = f"the runtime's {call} gave status {status}: {STATUS.get(status, 'unknown')}"
        advice = "NEURON_RT_LOG_LEVEL=INFO says more; the lines before this one name the core"
        return Explanation(cause, advice, STATUS_SOURCE, _line(text, found))
    return None


def read_log(folder: Path) -> tuple[str, Path | None]:
    """The end of the newest compiler log under `folder`, and its path; "" and None without one."""
    logs = sorted(folder.rglob("log-neuron-cc.txt"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return "", None
    with logs[-1].open(encoding="utf-8", errors="replace") as file:
        return "".join(deque(file, maxlen=TAIL)), logs[-1]


def whole_message(error: BaseException) -> str:
    """`error` and what it came from: neuronx-distributed wraps the compiler's words twice."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    return "\n".join(said)


def _line(text: str, found: re.Match[str]) -> str:
    start = text.rfind("\n", 0, found.start()) + 1
    end = text.find("\n", found.end())
    line = text[start : end if end >= 0 else len(text)].strip()
    return line if len(line) <= 400 else line[:397] + "..."


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else "nothing was said"
