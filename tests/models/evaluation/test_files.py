"""Files of prompts, and files of what is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.evaluation import Prompt, Records, read_prompts
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

SETTINGS: dict[str, Any] = {"samples": 4, "seed": 0, "ids": [1, 2]}


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a\nb", "check": ["true"], "more": 1}, {"prompt": "c", "id": "x"}]
    path.write_text("\ufeff" + json.dumps(lines[0]) + "\n\n" + json.dumps(lines[1]))
    assert read_prompts(path) == [Prompt("1", "a\nb", ("true",)), Prompt("x", "c", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ("\n{", "line 2: not valid JSON"),
        ('["a"]', "line 1: it must be an object with a prompt"),
        ('{"prompt": " "}', "a prompt that is not empty"),
        ('{"text": "a"}', "a prompt that is not empty"),
        ('{"prompt": "a", "check": "true"}', "line 1: a command is a list of strings"),
        ('{"prompt": "a", "check": ["no/such"]}', "line 1: there is no program 'no/such'"),
        ('{"prompt": "a", "id": 2}\n{"prompt": "b"}', "line 2: id '2' stands there twice"),
    ],
)
def test_prompts_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "none")


def test_a_later_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    first = Records(path, SETTINGS)
    first.add({"id": "a", "right": 1})
    first.add({"id": "b", "right": 0})
    again = Records(path, SETTINGS)
    assert again.finished == {"a": {"id": "a", "right": 1}, "b": {"id": "b", "right": 0}}
    again.add({"id": "c"})
    assert list(Records(path, SETTINGS).finished) == ["a", "b", "c"]


@pytest.mark.parametrize("lost", range(1, 30, 7))
def test_a_line_that_a_crash_has_cut_is_done_again(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "done.jsonl"
    records = Records(path, SETTINGS)
    for name in "abc":
        records.add({"id": name, "answers": ["x" * 40]})
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    again = Records(path, SETTINGS)
    assert list(again.finished) == ["a", "b"]
    again.add({"id": "c", "answers": ["x" * 40]})
    assert path.read_bytes() == whole


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    Records(path, SETTINGS)
    with pytest.raises(InputError, match="other settings: samples 4 there, 8 here"):
        Records(path, SETTINGS | {"samples": 8})


@pytest.mark.parametrize(
    "content", ["[]\n", "{}\n", "some text\n", "no end", '{"settings": {}}\n{"a": 1}\n']
)
def test_files_of_something_else_are_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine"
    path.write_text(content)
    with pytest.raises(InputError):
        Records(path, {})
    assert path.read_text() == content


def test_nothing_is_kept_without_a_file() -> None:
    records = Records(None, SETTINGS)
    records.add({"id": "a"})
    assert list(records.finished) == ["a"]
