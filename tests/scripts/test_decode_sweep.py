"""`scripts/profile_kernel.py sweep` as a user types it, and the extrapolation behind it."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nki_kernels import predict as prediction
from nki_kernels.errors import InputError
from nki_kernels.predict import options_of, predict, shape_of
from nki_kernels.speed_of_light import Decode
from scripts import decode_sweep

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "profile_kernel.py"), "sweep", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_sweep_writes_everything_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    asked = ("--samples", "1,4", "--context", "256", "--shape", "gqa", "--out", str(out))
    found = run(*asked, "--target", "trn1")
    assert found.returncode == 0, found.stderr
    rows = decode_sweep.read(out.with_suffix(".csv"))
    assert [(row.b, row.target) for row in rows] == [(1, "trn1"), (4, "trn1")]
    for row in rows:
        assert row.low_us <= row.us <= row.high_us
        assert row.fraction == pytest.approx(row.bound_us / row.us, rel=1e-2)
        assert row.speedup == pytest.approx(row.baseline_us / row.us, rel=1e-2)
        assert row.kv_write_us > 0 and row.rest_of_layer_us > 50
    assert json.loads(out.with_suffix(".json").read_text())[0]["m_c"] == 256
    assert "### 8B GQA, trn1" in out.with_suffix(".md").read_text()
    # A row of the same kernels is kept as it stands, another's is made again.
    kept = replace(rows[0], us=1.5)
    stale = replace(rows[1], us=2.5, kernels="00000000")
    out.with_suffix(".csv").write_text(decode_sweep.as_csv([kept, stale]))
    again = run(*asked, "--target", "trn1,inf2")
    assert again.returncode == 0, again.stderr
    second = {(row.b, row.target): row for row in decode_sweep.read(out.with_suffix(".csv"))}
    assert second[1, "trn1"].us == 1.5 and second[4, "trn1"] == rows[1]
    assert second[1, "inf2"] == replace(rows[0], target="inf2")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("--samples", "1,x"), "--samples 1,x: write whole numbers"),
        (("--shape", "mla"), "--shape 'mla' is none of mha, gqa"),
        (("--target", "trn9"), "--target 'trn9' is none of trn1"),
        (("--suffix", "0"), "--suffix must be at least 1, got 0"),
        (("--out", "/no/where"), "there is no folder"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        decode_sweep.main(["--out", str(tmp_path / "x"), *arguments])
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], [1, 2]])
    with pytest.raises(InputError, match="is not a sweep of this version"):
        decode_sweep.read(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["ordinary", "bifurcated"])
def test_extrapolation_agrees_with_the_whole_record(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over samples and over context, within 2 %.

    Sizes are such that what is extrapolated from stands behind the start of a call, as it does
    where the sweep extrapolates.
    """
    many = Decode(G=1, r=1024, n=1, h=4, g=1, d=128, m_c=1024, m_d=128)
    if path == "ordinary":
        many = replace(many, G=64, r=1)
    long = Decode(G=1, r=16, n=1, h=2, g=2, d=128, m_c=16384, m_d=128)
    if path == "ordinary":
        long = replace(long, G=2, r=1)
    for work in (many, long):
        options = options_of(path, shape_of(work), 2, "trn1")
        whole = prediction._recorded(path, work, "trn1", options)
        size = prediction._size(path, work)
        monkeypatch.setitem(prediction.WORK, path, size / 2)
        monkeypatch.setitem(prediction.SHORT_CONTEXT, path, (4096, 8192))
        guess = predict(path, work, "trn1")
        assert guess.extrapolated and not whole.extrapolated
        assert guess.us == pytest.approx(whole.us, rel=0.02)
        assert guess.high_us == pytest.approx(whole.high_us, rel=0.05)
