"""scripts/verify_checkpoint.py on small checkpoints: verdicts, exit codes, what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.causal_lm import checkpoint, comparison, directory
from models.causal_lm.comparison import (
    TOLERANCE,
    Run,
    compare,
    memory_needed,
    run_ours,
    run_transformers,
)
from models.causal_lm.convert import quantise, split
from models.causal_lm.families import FAMILIES
from models.pretrained import DEFAULT_MODEL, example_prompt
from nki_kernels.errors import InputError
from scripts import command_line, verify_checkpoint
from tests.models.causal_lm import families
from tests.models.causal_lm.families import MODELS

pytestmark = pytest.mark.null

PROMPT = [3, 41, 5, 27, 9, 33, 1, 0, 12, 58, 44, 20, 7, 31, 2, 60, 17, 8, 50, 6, 11]
PROBLEM = "use 3, 5, 7 to make 22"


def numbers(directory: Path, by_layer: bool, dtype: torch.dtype = torch.float32) -> Any:
    theirs = run_transformers(directory, PROMPT, 6, dtype, by_layer)
    ours = run_ours(directory, PROMPT, theirs.tokens[:-1], dtype, by_layer)
    return compare(theirs, ours, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "name",
    [
        "gemma-2",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mixtral", "phi-3.5", "granite")),
    ],
)
def test_families_are_equal(name: str, tmp_path: Path) -> None:
    families.make(name).save_pretrained(tmp_path)
    found = numbers(tmp_path, by_layer=False)
    assert found.equal
    assert found.first_wrong_layer is None
    assert len(found.layers) == 3
    assert len(found.logits) == len(found.theirs) == 7
    assert max(found.logits) > 0  # two networks, not one


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_layer_by_layer_gives_the_same_figures(name: str, tmp_path: Path) -> None:
    import transformers

    families.make(name).save_pretrained(tmp_path)
    if name == "mixtral" and not transformers.__version__.startswith("4."):
        with pytest.raises(InputError, match="can only be compared as a whole"):
            numbers(tmp_path, by_layer=True)
        return
    one, whole = numbers(tmp_path, by_layer=True), numbers(tmp_path, by_layer=False)
    assert one.equal
    assert one.theirs == whole.theirs
    assert one.layers == pytest.approx(whole.layers, abs=1e-6)
    assert one.logits == pytest.approx(whole.logits, abs=1e-6)


def test_layer_by_layer_holds_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.make("llama-2").save_pretrained(tmp_path)
    real: list[int] = []
    read = checkpoint.read_weights

    def counted(parts: Any, *args: Any, **options: Any) -> Any:
        real.append(len(parts))
        return read(parts, *args, **options)

    monkeypatch.setattr(comparison, "read_weights", counted)
    run = run_ours(tmp_path, PROMPT, [5, 6], torch.float32, by_layer=True)
    assert len(run.logits) == 3
    assert real == [3] + [9] * 3 * 3  # the rest once, a layer for each layer of each pass
    whole, layer = (memory_needed(tmp_path, torch.float32, each) for each in (False, True))
    weights = load_file(tmp_path / "model.safetensors")
    assert whole == sum(w.nbytes for w in weights.values())
    assert layer == sum(w.nbytes for n, w in weights.items() if ".layers." not in n
                        or ".layers.0." in n)  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "layer"),
    [
        ({"windows": (None, None, families.WINDOW)}, 0),
        ({"windows": (families.WINDOW, families.WINDOW + 1, families.WINDOW)}, 1),
        ({"rms_norm_eps": 1e-2}, 0),
    ],
)
def test_the_first_wrong_layer_is_named(
    fault: dict[str, Any], layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.make("mistral").save_pretrained(tmp_path)
    read = directory.load_config
    monkeypatch.setattr(checkpoint, "load_config", lambda d: replace(read(d), **fault))
    found = numbers(tmp_path, by_layer=False)
    assert not found.equal
    assert found.first_wrong_layer == layer


def test_swapped_names_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.make("llama-3").save_pretrained(tmp_path)
    wrong = replace(FAMILIES["llama"], names={"k_proj": "v_proj", "v_proj": "k_proj"})
    monkeypatch.setattr(checkpoint, "FAMILIES", {"llama": wrong})
    assert not numbers(tmp_path, by_layer=False).equal


def test_bfloat16_is_rounding_and_no_more(tmp_path: Path) -> None:
    families.make("llama-3").save_pretrained(tmp_path)
    found = numbers(tmp_path, by_layer=False, dtype=torch.bfloat16)
    assert found.equal
    assert max(found.logits) > 1e-4


def test_a_tie_is_no_difference_and_a_nan_is_one() -> None:
    theirs = Run(logits=[torch.tensor([1.0, 1.0 + 1e-6, 0.0])])
    ours = Run(logits=[torch.tensor([1.0 + 1e-6, 1.0, 0.0])])
    assert compare(theirs, ours, 1e-4).equal
    apart = Run(logits=[torch.tensor([1.0, 0.9, 0.0])])
    assert compare(apart, ours, 1e-4).wrong_tokens == []
    assert not compare(apart, ours, 1e-4).equal
    nan = Run(logits=[torch.tensor([float("nan"), 1.0, 0.0])])
    assert not compare(theirs, nan, 1e-4).equal


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verify_checkpoint.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        command_line.run(verify_checkpoint.main)
    return int(end.value.code or 0)


def copy(target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The default model with changed weights."""
    target.mkdir()
    for path in DEFAULT_MODEL.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_default_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "out.json"
    arguments = ["--model", DEFAULT_MODEL, "--prompt", PROBLEM, "--tokens", 4, "--json", out]
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "56 weights, every name and shape as config.json says" in said
    assert "272 tokens for 272 rows" in said
    assert "5 of 5 tokens the same" in said
    assert "\nequal, in" in said
    report = json.loads(out.read_text())
    assert report["equal"] is True
    assert len(report["layers"]) == 6
    assert max(report["logits"]) < 1e-4
    assert report["theirs"] == report["ours"]


def test_a_difference_is_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    read = directory.load_config
    monkeypatch.setattr(checkpoint, "load_config", lambda d: replace(read(d), rms_norm_eps=1e-2))
    assert run(monkeypatch, "--model", DEFAULT_MODEL, "--prompt", PROBLEM, "--tokens", 2) == 1
    said = capsys.readouterr().out
    assert "DIFFERENT" in said
    assert "<- the first that differs" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "there is no directory"),
        (["--model", DEFAULT_MODEL, "--tokens", -1], "--tokens is -1"),
        (["--model", DEFAULT_MODEL, "--tokens", 5000], "are more than the model's 512 positions"),
        (["--model", DEFAULT_MODEL, "--dtype", "int8"], "invalid choice"),
        (["--model", DEFAULT_MODEL, "--checksums"], "has no checksum for model.safetensors"),
        ([], "--model"),
    ],
)
def test_bad_input(
    arguments: list[object], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_missing_and_extra_tensors_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["more"] = weights.pop("model.norm.weight")

    assert run(monkeypatch, "--model", copy(tmp_path / "m", change)) == 2
    error = capsys.readouterr().err
    assert "1 missing (model.norm.weight); 1 unexpected (more)" in error


def test_too_little_memory_is_said_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(verify_checkpoint, "available_memory", lambda: 1 << 20)
    assert run(monkeypatch, "--model", DEFAULT_MODEL, "--memory", "whole") == 2
    captured = capsys.readouterr()
    assert "GiB of memory are needed" in captured.err
    assert "--memory layer needs" in captured.err
    monkeypatch.setattr(verify_checkpoint, "available_memory", lambda: 16 << 20)
    assert run(monkeypatch, "--model", DEFAULT_MODEL, "--prompt", PROBLEM, "--tokens", 1) == 0
    assert "one layer's at a time" in capsys.readouterr().out


def test_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model = copy(tmp_path / "m", lambda weights: None)
    digest = directory.sha256(model / "model.safetensors")
    (model / "SHA256SUMS").write_text(f"{digest}  model.safetensors\n")
    arguments = ["--model", model, "--checksums", "--prompt", PROBLEM, "--tokens", 1]
    assert run(monkeypatch, *arguments) == 0
    (model / "SHA256SUMS").write_text(f"{digest[::-1]}  model.safetensors\n")
    assert run(monkeypatch, *arguments) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_a_tokenizer_of_another_model(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(verify_checkpoint.Tokenizer, "vocabulary", 273)
    assert run(monkeypatch, "--model", DEFAULT_MODEL, "--prompt", PROBLEM) == 2
    assert "the tokenizer has 273 tokens and the model 272" in capsys.readouterr().err


def test_what_was_converted_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    quantise(DEFAULT_MODEL, tmp_path / "q", "int8")
    split(DEFAULT_MODEL, tmp_path / "two", 2)
    for name in ("q", "two"):
        assert run(monkeypatch, "--model", tmp_path / name) == 2
        assert "give the checkpoint that it was made of as --against" in capsys.readouterr().err


def test_against_another_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    quantise(DEFAULT_MODEL, tmp_path / "q", "int8", "fp8")
    arguments = ["--model", tmp_path / "q", "--against", DEFAULT_MODEL]
    arguments += ["--prompt", example_prompt(4)]
    assert run(monkeypatch, *arguments) == 1
    assert run(monkeypatch, *arguments, "--tolerance", 0.3, "--tokens", 2, "--memory", "layer") == 0
    assert "up to 3.0e-01 counts as none" in capsys.readouterr().out
    same = ["--model", DEFAULT_MODEL, "--against", DEFAULT_MODEL, "--prompt", PROBLEM]
    assert run(monkeypatch, *same) == 0
    assert "logits    prefill 0.0e+00" in capsys.readouterr().out
    assert run(monkeypatch, *same, "--tolerance", 0) == 2
