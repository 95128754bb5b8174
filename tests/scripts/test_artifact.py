"""From `scripts/compile.py` to `scripts/generate.py --artifact`, by several processes as typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models import generation
from models.causal_lm import Tokenizer, load
from models.pretrained import DEFAULT_MODEL, example_prompt
from scripts import generate

pytestmark = [pytest.mark.null, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", "2"]
COMPILE = ["scripts/compile.py", "--model", str(DEFAULT_MODEL), "--instance", "trn1.32xlarge"]
COMPILE += ["--tp", "2", "--device", "cpu", "--dtype", "fp32", "--kernels", "torch"]
COMPILE += ["--context", "384", "--samples", "4", "--max-new-tokens", "24", "--top-k", "20"]


def begun(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    process = begun(*arguments)
    out, error = process.communicate()
    return process.returncode, out, error


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes that compile the default model into one cache at once: `one` and `two`."""
    made = tmp_path_factory.mktemp("artefacts")
    started = []
    for name in ("one", "two"):
        where = ["--cache", str(made / "cache"), "--out", str(made / name)]
        started.append(begun(*COMPILE, *where, "--json", str(made / f"{name}.json")))
    for process in started:
        _, error = process.communicate()
        assert process.returncode == 0, error
    return made


def test_two_compilations_at_once_share_what_each_made(folder: Path) -> None:
    graphs = [told(folder / f"{name}.json")["graphs"] for name in ("one", "two")]
    assert [[each["name"] for each in found] for found in graphs] == [
        ["prefill_384", "decode_1x4_384_23"]
    ] * 2
    for each in zip(*graphs, strict=True):
        assert sorted(graph["cached"] for graph in each) == [False, True]
    manifests = [told(folder / name / "manifest.json") for name in ("one", "two")]
    assert manifests[0]["files"] == manifests[1]["files"]
    assert len([each for each in (folder / "cache").iterdir() if each.is_dir()]) == 2


def test_two_processes_serve_the_tokens_of_eager_code(folder: Path) -> None:
    out = folder / "served.json"
    serve = ["scripts/generate.py", "--artifact", str(folder / "one"), "-n", "3", "--top-k", "20"]
    code, said, error = run(*TORCHRUN, *serve, "--seed", "3", "--json", str(out))
    assert code == 0, error
    assert said.count("bucket    G = 1, r = 4, S_ctx = 384") == 1  # one of them speaks
    content, tokenizer = told(out), Tokenizer.load(DEFAULT_MODEL)
    eager = generation.generate(
        load(DEFAULT_MODEL, dtype="float32"),
        tokenizer.encode(example_prompt(generate.EXAMPLE)),
        samples=3,
        max_new_tokens=24,
        sampling=generation.Sampling(**content["sampling"]),
        seed=3,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    assert [each["tokens"] for each in content["samples"]] == [s.tokens for s in eager.samples]


def test_a_rank_tells_of_its_damaged_weights(folder: Path) -> None:
    weights = folder / "two" / "checkpoint" / "rank-00001-of-00002.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    serve = ["scripts/generate.py", "--artifact", str(folder / "two"), "-n", "2", "--top-k", "20"]
    code, said, error = run(*TORCHRUN, *serve)
    weights.write_bytes(before)
    assert code != 0 and "answer" not in said
    lines = [line for line in error.splitlines() if line.startswith("generate.py: error: ")]
    assert len(lines) == 1
    assert "changed since it was made: checkpoint/rank-00001-of-00002.safetensors" in lines[0]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence(disk: Path) -> None:
    where = ["--out", str(disk / "out"), "--cache", str(disk / "cache")]
    code, _, error = run(*COMPILE, *where)
    assert code == 2
    told = [line for line in error.splitlines() if "error" in line]
    assert len(told) == 1 and "No space left on device" in told[0]
    assert [each.name for each in disk.iterdir()] == ["cache"]
    assert list((disk / "cache").iterdir()) == []
