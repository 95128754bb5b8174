"""Checkpoints that are split: bit for bit, refused where they do not fit, resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.causal_lm import convert, load, load_config, saving
from models.causal_lm.checkpoint import find_weights, rank_shards, read_weights
from models.causal_lm.convert import split
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from tests.models.causal_lm import families

pytestmark = pytest.mark.null


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi-3, whose projections are stored fused."""
    directory = tmp_path_factory.mktemp("phi-3")
    families.make("phi-3", vocab_size=61, intermediate_size=42).save_pretrained(directory)
    return directory


def check_parts(directory: Path, source: Path, tp: int, dtype: torch.dtype) -> None:
    """Fails unless each rank's weights in `directory` are its part of those in `source`."""
    config = load_config(source)
    whole = find_weights(source, config)
    expected = read_weights(whole, dict.fromkeys(whole, dtype))
    for rank in range(tp):
        shards = rank_shards(config, tp, rank)
        parts = find_weights(directory, config, tp, rank)
        found = read_weights(parts, dict.fromkeys(parts, dtype))
        assert set(found) == set(expected)
        for name, shard in shards.items():
            assert torch.equal(found[name], shard.take(expected[name])), f"{name} of rank {rank}"


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    "name",
    [
        "phi-3",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mixtral", "qwen2", "multi-query")),
    ],
)
def test_each_rank_reads_its_part_bit_for_bit(name: str, tp: int, tmp_path: Path) -> None:
    families.make(name).save_pretrained(tmp_path / "whole")
    check_parts(tmp_path / "whole", tmp_path / "whole", tp, torch.float32)
    for dtype in (torch.float32, torch.bfloat16)[: 2 if tp == 2 else 1]:
        out = tmp_path / str(dtype)
        split(tmp_path / "whole", out, tp, dtype)
        check_parts(out, tmp_path / "whole", tp, dtype)
        assert not list(out.glob("*unfinished*"))


def test_a_split_default_model_loads_as_before(tmp_path: Path) -> None:
    split(DEFAULT_MODEL, tmp_path / "one", tp=1)
    before, after = load(DEFAULT_MODEL), load(tmp_path / "one")
    assert after.config == before.config
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name])
    assert (tmp_path / "one" / "tokenizer.json").is_file()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def swap(directory: Path) -> None:
    first, second = sorted(directory.glob("*.safetensors"))
    first.rename(directory / "x")
    second.rename(first)
    (directory / "x").rename(second)


def edit_index(directory: Path, change: Callable[[Any], object]) -> None:
    content = json.loads((directory / "shards.json").read_text())
    change(content)
    (directory / "shards.json").write_text(json.dumps(content))


def swap_in_index(directory: Path) -> None:
    swap(directory)
    edit_index(directory, lambda c: c["files"].reverse())


RANK_0 = "rank-00000-of-00001.safetensors"
DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("a bit", lambda d: damage(d / RANK_0), "is damaged: its SHA-256 is"),
    ("cut off", lambda d: os.truncate(d / RANK_0, 500), "has 500 bytes; shards.json says"),
    ("no file", lambda d: (d / RANK_0).unlink(), f"names a file that is missing: {RANK_0}"),
    ("no config", lambda d: (d / "config.json").unlink(), "has no config.json"),
    ("index cut off", lambda d: os.truncate(d / "shards.json", 90), "is not valid JSON"),
    ("empty index", lambda d: (d / "shards.json").write_text("{}"), "not an index of shards"),
    ("later format", lambda d: edit_index(d, lambda c: c.update(format=2)), "has format 2"),
    (
        "another network",
        lambda d: edit_index(d, lambda c: c["shapes"].update({"norm.weight": [7]})),
        r"different networks: norm.weight",
    ),
    (
        "a name that leaves the folder",
        lambda d: edit_index(d, lambda c: c["files"][0].update(name="../x")),
        "names ../x for rank 0",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damaged(
    whole: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    split(whole, tmp_path / "out", tp=1)
    change(tmp_path / "out")
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path / "out")
    assert "\n" not in str(error.value)


def test_another_degree_is_refused(whole: Path, tmp_path: Path) -> None:
    split(whole, tmp_path / "out", tp=2)
    config = load_config(whole)
    for tp, rank in ((1, 0), (4, 0), (4, 3)):
        with pytest.raises(InputError, match=f"split for tp = 2 and cannot .* tp = {tp}; .*--tp"):
            find_weights(tmp_path / "out", config, tp, rank)
    with pytest.raises(InputError, match="is split already"):
        split(tmp_path / "out", tmp_path / "again", tp=2)
    with pytest.raises(
        InputError, match=r"tp is 3; .* can be split over 1, 2, 4, 8, 16, 32, 64 ranks"
    ):
        split(whole, tmp_path / "three", tp=3)
    assert not (tmp_path / "three").exists()


@pytest.mark.parametrize("fault", [swap, swap_in_index])
def test_swapped_shards_are_seen(
    whole: Path, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    split(whole, out, tp=2)
    fault(out)
    if fault is swap_in_index:
        with pytest.raises(InputError, match="for rank 0; it must be"):
            config = load_config(whole)
            find_weights(out, config, 2, 0)
        return
    with pytest.raises(AssertionError, match="of rank 0"):
        check_parts(out, whole, 2, torch.float32)
    from models.causal_lm.directory import verify_files

    with pytest.raises(InputError, match="is damaged"):
        verify_files(out, sorted(out.glob("*.safetensors")))


def test_files_of_the_hub_have_their_checksum_as_name(whole: Path, tmp_path: Path) -> None:
    """In the hub's cache a snapshot's files are links to blobs that are named by their SHA-256."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in whole.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    load(snapshot, verify=True)
    weights = (snapshot / "model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load(snapshot, verify=True)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_an_interrupted_save_is_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split(whole, tmp_path / "at once", tp=4)
    out = tmp_path / "out"
    written: list[str] = []
    write_file = saving.write_file

    def interrupted(path: Path, *args: Any, **options: Any) -> str:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return write_file(path, *args, **options)

    monkeypatch.setattr(saving, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        split(whole, out, tp=4)
    with pytest.raises(InputError, match="out was not finished: give the command"):
        load(out)
    with pytest.raises(InputError, match="another checkpoint that was not finished"):
        split(whole, out, tp=2)
    assert written == [f"rank-0000{rank}-of-00004.safetensors" for rank in (0, 1)]
    damage(out / written[0])  # a file that is not what was written is written again
    written.clear()
    monkeypatch.setattr(saving, "write_file", lambda *a, **o: written.append(a[0].name) or
                        write_file(*a, **o))  # fmt: skip
    split(whole, out, tp=4)
    assert written == [f"rank-0000{rank}-of-00004.safetensors" for rank in (0, 2, 3)]
    assert contents(out) == contents(tmp_path / "at once")


def test_a_changed_source_is_not_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(whole, source)
    with monkeypatch.context() as patch:
        patch.setattr(convert.Save, "finish", lambda *args: None)
        split(source, out, tp=2)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(InputError, match="another checkpoint that was not finished"):
        split(source, out, tp=2)


def test_a_folder_in_use_is_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        split(whole, tmp_path, tp=2)
    with pytest.raises(InputError, match="is a file"):
        split(whole, tmp_path / "file", tp=2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_save_is_resumed(whole: Path, tmp_path: Path) -> None:
    """The process dies in the middle of a file, without a chance to tidy up."""
    out = tmp_path / "out"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from models.causal_lm import convert\n"
        "from models.causal_lm.storage import Stored\n"
        "blocks, left = Stored.blocks, [40]\n"
        "def dying(self):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return blocks(self)\n"
        "Stored.blocks = dying\n"
        "convert.split(Path(sys.argv[1]), Path(sys.argv[2]), tp=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(whole), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(out.glob(".bifork-*"))
    split(whole, out, tp=2)
    split(whole, tmp_path / "at once", tp=2)
    assert contents(out) == contents(tmp_path / "at once")
