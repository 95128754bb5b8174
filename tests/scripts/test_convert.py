"""scripts/convert.py: what it writes and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from models.causal_lm import convert as converting
from models.causal_lm import load
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from scripts import command_line, convert

pytestmark = pytest.mark.null


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.run(convert.main)
    return int(end.value.code or 0)


def test_quantise_then_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    text, q, two = tmp_path / "text", tmp_path / "q", tmp_path / "two"
    text.write_text("37 48 45 26 48 -> 82 : 48 + 45 = 93 ; 93 - 48 = 45 ; 45 + 37 = 82\n")
    eight = ["--weights", "int8", "--kv-dtype", "fp8", "--calibration", text]
    assert run(monkeypatch, "--model", DEFAULT_MODEL, "--out", q, *eight) == 0
    assert f"written   {q}: 1 files" in capsys.readouterr().out
    raw = json.loads((q / "config.json").read_text())
    assert raw["quantization_config"] == {
        "quant_method": "bifork", "weights": "int8", "kv_dtype": "fp8", "kv_scales": True,
    }  # fmt: skip
    assert load(q, verify=True).config.kv_scales
    whole = (DEFAULT_MODEL / "model.safetensors").stat().st_size
    assert (q / "model.safetensors").stat().st_size < 0.53 * whole
    assert run(monkeypatch, "--model", q, "--out", two, "--tp", 2) == 0
    assert f"written   {two}: 2 files" in capsys.readouterr().out
    with pytest.raises(InputError, match="split for tp = 2"):
        load(two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --tp, or --weights or --kv-dtype"),
        (["--tp", 2, "--weights", "int8"], "give either --tp"),
        (["--tp", 3], "tp is 3; 4 query heads and 2 key/value heads can be split over 1, 2, 4, 8"),
        (["--tp", 2, "--dtype", "float16"], "dtype is 'float16'; supported: float32, bfloat16"),
        (["--weights", "int4"], "invalid choice: 'int4'"),
        (["--weights", "int8", "--calibration", "x"], "--calibration is for --kv-dtype"),
        (["--kv-dtype", "fp8", "--calibration", "/nowhere"], "--calibration /nowhere cannot be"),
    ],
)
def test_bad_input(
    arguments: list[object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    base = ["--model", DEFAULT_MODEL, "--out", tmp_path / "out"]
    assert run(monkeypatch, *base, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "mine").write_text("x")
    assert run(monkeypatch, "--model", DEFAULT_MODEL, "--out", tmp_path, "--tp", 2) == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(converting.Save, "accompany", stop)
        arguments = ["--model", DEFAULT_MODEL, "--out", tmp_path / "out", "--tp", 2]
        assert run(patch, *arguments) == 130
    assert "the same command goes on in" in capsys.readouterr().err
    assert run(monkeypatch, *arguments) == 0
