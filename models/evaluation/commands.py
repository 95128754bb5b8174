"""A user's own program on one answer: an argument list, no shell, a time limit, no child left.

In the arguments `{python}` stands for the interpreter that runs this, `{prompt}` and `{answer}` for
files that hold the texts. Where no argument has `{answer}`, the answer is on standard input. The
program runs with the rights of whoever started this: a time limit is not a sandbox.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nki_kernels.errors import InputError

TIME_LIMIT = 10.0  # seconds, unless told otherwise
_KEPT = 64 * 1024  # bytes of output that are read


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        code: its exit status, negative for a signal; None where the time was up.
        output: the beginning of what it wrote to standard output.
        complaint: the same of standard error.
    """

    code: int | None
    output: str
    complaint: str

    @property
    def passed(self) -> bool:
        """Whether it ended with status 0, in time."""
        return self.code == 0


def check_command(arguments: object, where: str) -> tuple[str, ...]:
    """The arguments of a command whose program is there.

    Raises:
        InputError: not a list of strings, an empty one, or a program that cannot be found.
    """
    if (
        not isinstance(arguments, list | tuple)
        or not arguments
        or not all(isinstance(each, str) for each in arguments)
    ):
        raise InputError(
            f"{where}: a command is a list of strings, the program first, not {arguments!r}"
        )
    program = _filled(arguments[0], {})
    if shutil.which(program) is None:
        raise InputError(f"{where}: there is no program {program!r}")
    return tuple(arguments)


def run_command(
    arguments: Sequence[str], prompt: str, answer: str, time_limit: float = TIME_LIMIT
) -> Finished:
    """Runs a program on an answer.

    It gets a process group of its own, which is killed when the time is up, and when it has ended
    or this is interrupted as well, so that no child of it goes on.

    Args:
        arguments: the program and what it is given.
        prompt: what was asked.
        answer: what came back.
        time_limit: seconds.

    Raises:
        InputError: the program cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="bifork-check-") as name:
        folder = Path(name)
        files = {"prompt": folder / "prompt", "answer": folder / "answer"}
        files["prompt"].write_text(prompt, encoding="utf-8")
        files["answer"].write_text(answer, encoding="utf-8")
        filled = [_filled(each, files) for each in arguments]
        on_stdin = not any("{answer}" in each for each in arguments)
        # Files and no pipes: a grandchild that keeps a pipe open would keep us waiting.
        with (
            files["answer"].open("rb") if on_stdin else Path(os.devnull).open("rb") as stdin,
            (folder / "out").open("w+b") as out,
            (folder / "err").open("w+b") as err,
        ):
            try:
                process = subprocess.Popen(
                    filled, stdin=stdin, stdout=out, stderr=err, start_new_session=True
                )
            except OSError as error:
                raise InputError(f"{filled[0]!r} cannot be started: {error.strerror}") from error
            code: int | None = None
            try:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(time_limit)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return Finished(code, _beginning(out), _beginning(err))


def _filled(argument: str, files: dict[str, Path]) -> str:
    """An argument with its placeholders replaced; other braces stay."""
    for name, value in {"python": sys.executable, **files}.items():
        argument = argument.replace("{" + name + "}", str(value))
    return argument


def _beginning(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(_KEPT).decode(errors="replace")
