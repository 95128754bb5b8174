"""Files that commands write: checked before the work, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nki_kernels.errors import InputError

TEMPORARY = ".bifork-"
"""Prefix of files that are not whole yet."""


def output_path(name: str | Path, argument: str) -> Path:
    """The file that an argument names, checked before any work is done for it.

    A link is followed, so that it stays one. What is neither file nor folder (a device, a pipe) is
    taken as it is.

    Raises:
        InputError: the name is empty or that of a folder, or its folder is missing or cannot be
            written to.
    """
    if not str(name):
        raise InputError(f"{argument} is empty; give the name of a file")
    path = Path(name)
    try:
        if path.is_dir():
            raise InputError(f"{argument} {name} is a folder; give the name of a file")
        if path.exists() and not path.is_file():
            return path
        path = path.resolve()
        if not path.parent.is_dir():
            raise InputError(f"{argument} {name}: there is no folder {path.parent}")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=TEMPORARY):
            pass
    except OSError as error:
        raise InputError(f"{argument} {name} cannot be written: {error.strerror}") from error
    return path


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON to a path that `output_path` gave.

    A file is written beside its place and then renamed, so it is whole or not there.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 as `write_json` does."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write what `path` shall hold; it takes that place when all is written and on disk.

    Whatever ends the work before, `path` is what it was and nothing else is left.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the mode that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
