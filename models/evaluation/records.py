"""What is finished of a long evaluation, in a file that a later run goes on from.

The first line holds the settings, every other one a finished prompt. A line is written at once and
flushed; a last line that was cut by a crash is dropped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nki_kernels.errors import InputError

_HEAD = b'{"settings": '


class Records:
    """The finished prompts of an evaluation, by id.

    Args:
        path: the file, made if it is not there; None keeps nothing.
        settings: what determines the results; a file with others is refused.

    Raises:
        InputError: the file is that of another evaluation, is none, or cannot be written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.finished: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        if not (content.startswith(_HEAD) or _HEAD.startswith(content)):
            raise InputError(f"{path} holds no records of an evaluation; name another file")
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            head, *rest = self._parse(whole)
            self._compare(head.get("settings"), settings)
            self.finished = {str(each["id"]): each for each in rest}
        try:
            with path.open("r+b" if path.exists() else "x+b") as file:
                file.truncate(len(whole))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        if not whole:
            self._append({"settings": settings})

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a finished prompt; it has an "id"."""
        self.finished[str(record["id"])] = record
        self._append(record)

    def _append(self, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _parse(self, content: bytes) -> list[dict[str, Any]]:
        try:
            records = [json.loads(line) for line in content.splitlines()]
        except ValueError as error:
            raise InputError(f"{self.path} holds no records of an evaluation: {error}") from error
        head, rest = records[0], records[1:]
        if not isinstance(head, dict) or not isinstance(head.get("settings"), dict):
            raise InputError(f"{self.path} holds no records of an evaluation; name another file")
        if not all(isinstance(each, dict) and "id" in each for each in rest):
            raise InputError(f"{self.path} holds a line that is no finished prompt")
        return records

    def _compare(self, there: Any, settings: dict[str, Any]) -> None:
        here = json.loads(json.dumps(settings))
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if names:
            raise InputError(
                f"{self.path} is of an evaluation with other settings: "
                + "; ".join(f"{n} {there.get(n)!r} there, {here.get(n)!r} here" for n in names)
            )
