"""A user's score of an answer: a Python function, or a command that prints a number.

`package.module:function` is called as `function(prompt, answer)`. Anything else is a command, split
as a shell would split it and run without one (see `commands`); the last line it prints is the
score.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable

from models.evaluation.commands import TIME_LIMIT, check_command, run_command
from nki_kernels.errors import InputError

Scorer = Callable[[str, str], float]

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def scorer(what: str, where: str, time_limit: float = TIME_LIMIT) -> Scorer:
    """What turns a prompt and an answer into a score, higher is better.

    The same answer to the same prompt is scored once.

    Args:
        what: a function or a command.
        where: the argument that named it, for errors.
        time_limit: seconds that a command has for an answer.

    Raises:
        InputError: no such module, function or program; later, of an answer: a function that
            raises, a command that fails or takes too long, or something that is no number.
    """
    match = _FUNCTION.fullmatch(what)
    score = _function(match[1], match[2], where) if match else _command(what, where, time_limit)
    known: dict[tuple[str, str], float] = {}

    def once(prompt: str, answer: str) -> float:
        if (prompt, answer) not in known:
            known[prompt, answer] = score(prompt, answer)
        return known[prompt, answer]

    return once


def _function(module: str, name: str, where: str) -> Scorer:
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise InputError(f"{where}: {module} cannot be imported: {error}") from error
    except AttributeError as error:
        raise InputError(f"{where}: {module} has no {name}") from error
    if not callable(function):
        raise InputError(f"{where}: {module}:{name} is no function")

    def call(prompt: str, answer: str) -> float:
        try:
            return _number(function(prompt, answer), where, answer)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{where}: {type(error).__name__} of {answer!r}: {error}") from error

    return call


def _command(text: str, where: str, time_limit: float) -> Scorer:
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{where}: {text!r} cannot be split into words: {error}") from error
    arguments = check_command(parts, where)

    def run(prompt: str, answer: str) -> float:
        done = run_command(arguments, prompt, answer, time_limit)
        if not done.passed:
            how = f"took more than {time_limit:g} s" if done.code is None else f"ended {done.code}"
            said = (done.complaint.strip().splitlines() or [""])[-1]
            raise InputError(f"{where}: the command {how} for {answer!r}. {said}".strip())
        return _number((done.output.strip().splitlines() or [""])[-1], where, answer)

    return run


def _number(value: object, where: str, answer: str) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{where}: {value!r} is no number, for the answer {answer!r}") from None
