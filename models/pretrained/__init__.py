"""The checkpoints that ship with the project, and the programs that check their answers.

    answers_right = checker(DEFAULT_MODEL)       # (prompt, answer) -> True, False, or None
    prompt = example_prompt()

A checkpoint says in `task.json` which task it was trained for; one without that file has none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from models.pretrained.countdown import task as countdown
from nki_kernels.errors import InputError

__all__ = ["CHECKERS", "DEFAULT_MODEL", "Checker", "checker", "example_prompt"]

# (prompt, answer) -> whether the answer is right; None where the prompt is not the task's.
Checker = Callable[[str, str], bool | None]

DEFAULT_MODEL = Path(__file__).resolve().parent / "countdown" / "checkpoint"
CHECKERS: dict[str, Checker] = {"countdown": countdown.check}


def checker(model_dir: Path | str) -> Checker | None:
    """The checker of a checkpoint's task, None where it names no task.

    Raises:
        InputError: `task.json` is malformed, or names a task that there is no checker for.
    """
    path = Path(model_dir) / "task.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    name = content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str) or name not in CHECKERS:
        raise InputError(f"{path}: task is {name!r}; it must be one of {', '.join(CHECKERS)}")
    return CHECKERS[name]


def example_prompt(seed: int = 0) -> str:
    """A prompt for `DEFAULT_MODEL`: twelve solved problems, then one that training never saw."""
    return countdown.example_prompt(seed)
