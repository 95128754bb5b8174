"""Prompts to evaluate, a JSON object a line.

    {"prompt": "...", "check": ["{python}", "{here}/check.py", "{answer}"], "id": "a name"}

`check` is a command (see `commands`), in which `{here}` also stands for the folder of this file;
where it is missing the one given for all prompts holds. `id` defaults to the line's number. Other
fields are left to whoever wrote them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from models.evaluation.commands import check_command
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """What is asked, and the command that checks an answer; None leaves it to the checkpoint."""

    id: str
    text: str
    check: tuple[str, ...] | None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file.

    Raises:
        InputError: a file that cannot be read or holds none, or a line that is no prompt, by its
            number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _read(line, number, path)
        if prompt.id in prompts:
            raise InputError(f"{path}, line {number}: id {prompt.id!r} stands there twice")
        prompts[prompt.id] = prompt
    if not prompts:
        raise InputError(f"{path} holds no prompts")
    return list(prompts.values())


def _read(line: str, number: int, path: Path) -> Prompt:
    where = f"{path}, line {number}"
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    text = raw.get("prompt") if isinstance(raw, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: it must be an object with a prompt that is not empty")
    name, check = str(raw.get("id", number)), raw.get("check")
    if check is None:
        return Prompt(name, text, None)
    if isinstance(check, list):
        here = str(path.resolve().parent)
        check = [each.replace("{here}", here) if isinstance(each, str) else each for each in check]
    return Prompt(name, text, check_command(check, where))
