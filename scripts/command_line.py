"""Shared by all scripts: a mistake is one sentence and exit code 2, files are written whole."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nki_kernels.errors import InputError

USER_ERROR = 2
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one sentence; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`; what the user got wrong ends in one sentence and exit code 2."""
    program = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def output_path(name: str, argument: str) -> Path:
    """The file that an argument names, checked before any work is done for it.

    Raises:
        InputError: it is a folder, or its folder is missing or cannot be written to.
    """
    path = Path(name)
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{argument} {name} is a folder; give the name of a file")
    if not folder.is_dir():
        raise InputError(f"{argument} {name}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{argument} {name}: the folder {folder} cannot be written to")
    return path


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all: a temporary file beside it, then a rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        # mkstemp makes the file private; give it the mode that open() would have given.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
