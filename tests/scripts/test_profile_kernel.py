"""`scripts/profile_kernel.py` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nki_kernels.errors import InputError
from scripts import profile_kernel

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]

KERNEL = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def double(x, factor=2.0):
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=tile, src=x)
    nisa.tensor_scalar(dst=tile, data=tile, op0=nl.multiply, operand0=factor)
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out, src=tile)
    return out
"""


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "profile_kernel.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_decode_kernel(tmp_path: Path) -> None:
    found = run(
        "bifurcated_attention", "--target", "trn1", "--samples", "16", "--heads", "4", "--groups",
        "4", "--head-dim", "128", "--context", "1024", "--suffix", "128", "--dtype", "bf16",
        "--json", str(tmp_path / "out.json"), "--perfetto", str(tmp_path / "trace.json"),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "speed of light" in found.stdout and "critical path" in found.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    assert {
        "target", "shape", "total_us", "launch_us", "low_us", "high_us", "bound_us",
        "bound_resource", "fraction", "bytes", "instructions", "path",
    } <= set(result)  # fmt: skip
    assert result["low_us"] <= result["total_us"] <= result["high_us"]
    assert result["fraction"] == pytest.approx(result["bound_us"] / result["total_us"])
    assert result["shape"]["m_c"] == 1024 and result["bytes"] > 2 * 4 * 128 * 1024 * 2
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.slow
def test_prefill_kernel(tmp_path: Path) -> None:
    found = run("flash_attention", "--target", "trn2", "--context", "512", "--heads", "2")
    assert found.returncode == 0, found.stderr
    assert "gen3" in found.stdout


@pytest.mark.slow
def test_features_of_the_decode_kernel(tmp_path: Path) -> None:
    """What moves half the bytes takes less time; what adds work takes more."""
    shape = ("bifurcated_attention", "--context", "2048", "--heads", "1")
    took = {}
    for options in ((), ("--kv-dtype", "fp8"), ("--softcap", "50", "--window", "9", "--sinks")):
        out = tmp_path / "out.json"
        found = run(*shape, *options, "--json", str(out))
        assert found.returncode == 0, found.stderr
        took[options[:1]] = json.loads(out.read_text())["total_us"]
    assert took["--kv-dtype",] < took[()] < took["--softcap",]


def test_anybodys_kernel(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KERNEL)
    out = tmp_path / "out.json"
    found = run(
        f"{tmp_path}/mine.py:double", "--array", "128x512:fp32", "--set", "factor=3.0", "--target",
        "trn3", "--json", str(out),
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "unvalidated" in found.stdout
    result = json.loads(out.read_text())
    assert result["instructions"] == 3 and result["bound_us"] is None
    assert result["bytes"] == 2 * 128 * 512 * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paged_attention"], "neither bifurcated_attention"),
        (["bifurcated_attention", "--target", "trn9"], "trn9"),
        (["bifurcated_attention", "--groups", "3"], "no multiple of g = 3"),
        (["bifurcated_attention", "--head-dim", "272"], "--head-dim must be at most 256"),
        (["bifurcated_attention", "--kv-dtype", "fp8", "--dtype", "fp32"], "queries of 16 bits"),
        (["bifurcated_attention", "--suffix", "0"], "--suffix 0 must hold"),
        (["nowhere.py:kernel"], "there is no file nowhere.py"),
        (["setup:kernel", "--array", "12"], "there is no file"),
        (["bifurcated_attention", "--json", "/nowhere/x.json"], "there is no folder /nowhere"),
    ],
)
@pytest.mark.slow
def test_mistakes_are_one_sentence(arguments: list[str], words: str) -> None:
    found = run(*arguments)
    assert found.returncode == 2
    assert words in found.stderr and found.stderr.count("\n") == 1


@pytest.mark.slow
def test_mistakes_in_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KERNEL)
    kernel = f"{tmp_path}/mine.py:double"
    for arguments, words in (
        ([f"{tmp_path}/mine.py:triple"], "has no triple"),
        ([kernel, "--array", "256x512:fp32"], "the kernel does not run"),
        ([kernel, "--array", "128x512:complex"], "dtype 'complex' is none of"),
        ([kernel, "--array", "128x512:fp32", "--set", "3"], "write NAME=VALUE"),
    ):
        found = run(*arguments)
        assert found.returncode == 2, found.stderr
        assert words in found.stderr and found.stderr.count("\n") == 1


def test_against_a_device(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    summary.write_text('[{"total_time": 9e-05, "dma_active_time": 7e-05}]')
    size = ("--samples", "2", "--context", "256", "--heads", "1", "--against")
    found = run("bifurcated_attention", *size, str(summary))
    assert found.returncode == 0, found.stderr
    table = found.stdout.splitlines()[-3:]
    assert table[0].split() == ["predicted", "us", "device", "us", "ratio"]
    assert table[1].startswith("whole") and " 90.00" in table[1]
    assert table[2].startswith("dma") and " 70.00" in table[2]
    summary.write_text("{}")
    with pytest.raises(InputError, match="summary has no total_time"):
        profile_kernel.read_summary(summary)
    with pytest.raises(InputError, match="cannot be read"):
        profile_kernel.read_summary(tmp_path / "none")
