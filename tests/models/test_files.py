"""Output files: refused before the work, written whole, links and devices left what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.files import output_path, write_json
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to("target.json")
    write_json(output_path(str(link), "--json"), {"a": 1})
    assert link.is_symlink()
    assert json.loads((tmp_path / "target.json").read_text()) == {"a": 1}


def test_a_device_stays_a_device() -> None:
    write_json(output_path("/dev/null", "--json"), {"a": 1})
    assert Path("/dev/null").is_char_device()


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = output_path(tmp_path / "out.json", "--json")
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "--json is empty"),
        (".", "is a folder"),
        ("no/such/folder/x", "there is no folder"),
        ("x" * 300, "File name too long"),
        ("/proc/x.json", "cannot be written"),
    ],
)
def test_a_bad_name_is_refused_before_the_work(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        output_path(name, "--json")


def test_a_long_legal_name_is_written(tmp_path: Path) -> None:
    path = output_path(tmp_path / ("x" * 255), "--json")
    write_json(path, [])
    assert path.read_text() == "[]\n"
