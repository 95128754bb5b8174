"""From a position in compiled code to the line a reader can open."""

from __future__ import annotations

from types import CodeType


def source_line(code: CodeType | None, lasti: int) -> tuple[str, int]:
    """(file, line) of the statement at byte ``lasti`` of ``code``."""
    if code is None:
        return "<unknown>", 0
    for start, end, line in code.co_lines():
        if start <= lasti < end and line is not None:
            return code.co_filename, line
    return code.co_filename, code.co_firstlineno
