from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.pretrained.countdown import data, train
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

RUN = train.Run(steps=4, batch=1, lr=1e-3, warmup=2, seed=0)


def start(out: Path, run: train.Run = RUN, resume: bool = False) -> dict[str, Any]:
    cpu = torch.device("cpu")
    return train.train(run, out, resume=resume, compiled=False, workers=0, save_every=2, device=cpu)


def test_learning_rate_warms_up_and_falls() -> None:
    run = train.Run(steps=100, batch=1, lr=1.0, warmup=10, seed=0)
    rates = [train.learning_rate(run, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = start(tmp_path / "whole")
    assert log["curve"][-1]["step"] == 4
    assert log["curve"][-1]["loss"] < log["curve"][0]["loss"]

    batch = data.batch

    def killed(seed: int, step: int, size: int, split: data.task.Split) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return batch(seed, step, size, split)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data, "batch", killed)
        start(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    state = tmp_path / "cut.state.pt"
    assert torch.load(state, weights_only=True)["step"] == 2

    with pytest.raises(InputError, match="was made with"):
        start(tmp_path / "cut", train.Run(5, 1, 1e-3, 2, 0), resume=True)

    resumed = start(tmp_path / "cut", resume=True)
    assert [p["step"] for p in resumed["curve"]] == [1, 2, 3, 4]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert not state.exists()
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "task.json"),
        *("tokenizer.json", "tokenizer_config.json", "training_log.json"),
    }
    assert json.loads((tmp_path / "cut" / "task.json").read_text()) == {"task": "countdown"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_state_that_fails_to_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.state.pt"
    train.save_state(path, {"step": 1})

    def full(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        train.save_state(path, {"step": 2})
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--batch", "-3"], "--batch is -3; it must be at least 1"),
        (["--resume"], "start without --resume"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train.main(["--out", str(tmp_path / "new"), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "exists" in capsys.readouterr().err
