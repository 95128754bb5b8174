"""An artefact's folder: written whole or not at all, refused when it is not what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compile.artifact import CHECKPOINT, MANIFEST, exclusive, open_artifact, seal, writing
from models.causal_lm.directory import read_json
from models.files import write_json
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

VERSIONS = {"torch": "2.9.0"}
WHAT = {"device": "cpu", "versions": VERSIONS, "tp": 2, "graphs": []}


def fill(folder: Path, text: str = "one") -> None:
    (folder / CHECKPOINT).mkdir(exist_ok=True)
    for rank in range(2):
        (folder / CHECKPOINT / f"rank-{rank:05}-of-00002.safetensors").write_text(text)
    (folder / CHECKPOINT / "config.json").write_text("{}")
    seal(folder, WHAT)


def made(folder: Path) -> Path:
    with writing(folder) as staged:
        fill(staged)
    return folder


def test_written_and_replaced(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    with writing(out) as staged:
        fill(staged, "two")
        assert (out / CHECKPOINT / "rank-00000-of-00002.safetensors").read_text() == "one"
    assert (out / CHECKPOINT / "rank-00001-of-00002.safetensors").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    open_artifact(out, "cpu", VERSIONS)


def test_what_fails_changes_nothing(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    with pytest.raises(OSError, match="full"), writing(out) as staged:
        (staged / "x").write_text("half")
        raise OSError("full")
    open_artifact(out, "cpu", VERSIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), writing(out) as staged:
        (staged / "x").write_text("half")
        raise KeyboardInterrupt
    assert not out.exists()
    with writing(out) as staged:
        assert (staged / "x").read_text() == "half"
        (staged / "x").unlink()
        fill(staged)
    open_artifact(out, "cpu", VERSIONS)


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("")
    for name, message in (
        ("file", "is a file"),
        ("other", "something else than an artefact"),
        ("no/out", "there is no folder"),
    ):
        with pytest.raises(InputError, match=message), writing(tmp_path / name):
            pass
    assert (tmp_path / "other" / "mine").is_file()
    with (
        exclusive(tmp_path / ".bifork-out.lock", "mine"),
        pytest.raises(InputError, match="another process is writing"),
        writing(tmp_path / "out"),
    ):
        pass


def rewrite(change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def damage(out: Path) -> None:
        content = read_json(out / MANIFEST)
        change(content)
        write_json(out / MANIFEST, content)

    return damage


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda out: (out / MANIFEST).unlink(), "is no artefact"),
    "no JSON": (lambda out: (out / MANIFEST).write_text("{"), "cannot be read|JSON"),
    "another format": (rewrite(lambda c: c.update(format=2)), "has format 2; this version reads 1"),
    "manifest changed": (rewrite(lambda c: c.update(tp=1)), "its checksum is another"),
    "missing": (
        lambda out: (out / CHECKPOINT / "rank-00001-of-00002.safetensors").unlink(),
        "misses files or has others",
    ),
    "extra": (lambda out: (out / "x").touch(), "misses files or has others than its own: x"),
    "a byte": (
        lambda out: (out / CHECKPOINT / "rank-00001-of-00002.safetensors").write_text("onf"),
        "is damaged; changed since it was made: checkpoint/rank-00001",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_damage_is_one_sentence(tmp_path: Path, name: str) -> None:
    out = made(tmp_path / "out")
    damage, message = WRONG[name]
    damage(out)
    with pytest.raises(InputError, match=message) as told:
        open_artifact(out, "cpu", VERSIONS).check_weights(1)
    assert "\n" not in str(told.value)


def test_another_device_or_version(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    with pytest.raises(InputError, match="was made for cpu, not for neuron"):
        open_artifact(out, "neuron", VERSIONS)
    with pytest.raises(InputError, match=r"made with torch 2\.9\.0 \(here 2\.10\)"):
        open_artifact(out, "cpu", {"torch": "2.10"})


def test_a_rank_verifies_its_own_weights(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    (out / CHECKPOINT / "rank-00001-of-00002.safetensors").write_text("onf")
    artifact = open_artifact(out, "cpu", VERSIONS)
    artifact.check_weights(0)
    with pytest.raises(InputError, match="rank-00001"):
        artifact.check_weights(1)
