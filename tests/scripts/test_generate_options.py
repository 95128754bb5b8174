"""Stop strings, scores, votes and drafts of `scripts/generate.py`, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.causal_lm import tokenizer as tokenizer_module
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from scripts import generate, telling

pytestmark = pytest.mark.null

DRAFT = DEFAULT_MODEL.parent / "draft"
BASE = ("-n", "6", "--seed", "2", "--max-new-tokens", "12")
Run = Callable[..., tuple[str, dict[str, Any]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def start(*arguments: object) -> tuple[str, dict[str, Any]]:
        out = tmp_path / "out.json"
        argv = ["generate.py", *BASE, *map(str, arguments), "--json", str(out)]
        monkeypatch.setattr("sys.argv", argv)
        generate.main()
        return capsys.readouterr().out, json.loads(out.read_text())

    return start


def count_minus(prompt: str, answer: str) -> int:
    return answer.count("-")


def test_kernels_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "cuda_path", lambda dtype: "triton")

    def words(device: str, kernels: str = "auto") -> str:
        return telling.describe_kernels(device, torch.bfloat16, kernels, "trn2")

    assert words("cuda") == "triton"
    assert words("cuda", "torch") == words("cpu") == "torch"
    assert words("cpu", "nki") == "nki, simulated trn2"
    assert words("xla") == words("xla", "nki") == "nki"


def test_what_a_checkpoint_recommends_in_vain_is_told(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in DEFAULT_MODEL.iterdir():
        (model / path.name).symlink_to(path)
    path = model / "generation_config.json"
    given = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(given | {"repetition_penalty": 1.05}))
    said, _ = run("--model", model, "--prompt", "3 4")
    assert "note      the checkpoint recommends repetition_penalty too, which is not done" in said
    assert "recommends" not in run()[0]


def test_drafts_change_no_token(run: Run) -> None:
    _, plain = run()
    tokens = [each["tokens"] for each in plain["samples"]]
    for way in ("prompt-lookup", DRAFT):
        said, drafted = run("--speculate", way, "--draft-tokens", 3)
        assert [each["tokens"] for each in drafted["samples"]] == tokens
        taken = sum(taken for each in drafted["samples"] for _, taken in each["drafts"])
        assert f", {taken} taken: " in said
        assert drafted["steps"] <= plain["steps"] == 11
    assert taken > 20  # by the draft model


def test_stop(run: Run) -> None:
    said, found = run("--stop", ";", "--stop", "= 11")
    assert {each["finish"] for each in found["samples"]} == {"stop"}
    assert not any(";" in each["text"] for each in found["answers"])
    assert "(cut)" not in said


def test_ranked_by_a_score(run: Run) -> None:
    command = "{python} -c \"import sys; print(sys.stdin.read().count('-'))\""
    for score in (f"{__name__}:count_minus", command):
        said, found = run("--score", score)
        assert "rank       score  mean log p  times  right  answer" in said
        for each in found["answers"]:
            shown = f"{each['rank']:>4}  {each['score']:>10.4g}  {each['mean_logprob']:>10.3f}  "
            assert shown in said
        assert [each["score"] for each in found["answers"]] == [
            each["text"].count("-") for each in found["answers"]
        ]
        minuses = [each["text"].count("-") for each in found["answers"]]
        assert minuses == sorted(minuses, reverse=True)
        assert len(set(minuses)) > 1


def test_ranked_by_votes(run: Run) -> None:
    _, found = run("--vote", r"^(\d+)", "-n", 12)
    first = [each["text"].split()[0] for each in found["answers"]]
    assert len(set(first)) == len(first) < 12
    counts = [each["count"] for each in found["answers"]]
    assert sum(counts) == 12
    assert counts == sorted(counts, reverse=True)
    _, found = run("--vote")
    assert sum(each["count"] for each in found["answers"]) == 6
    said, found = run("--vote", "no answer has this")
    assert found["answers"] == []
    assert "no answer matches the expression of --vote" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stop", "é"], "stop string 'é' can never match"),
        (["--stop", ""], "a stop string is empty"),
        (["--speculate", "no/such/folder"], "there is no directory"),
        (["--speculate", "prompt-lookup", "--draft-tokens", "0"], "draft_tokens is 0"),
        (["--vote", "("], "--vote '\\(' is no regular expression"),
        (["--score", "no.such:thing"], "--score: no.such cannot be imported"),
        (["--score", "no-such-program"], "--score: there is no program"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_weights_are_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(generate, "load", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(InputError, match=message):
        run(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 273}, "the tokenizer has 273 tokens and the model 272"),
        ({"eos_token_ids": (272,)}, "end-of-sequence token 272 is not among the model's 272"),
    ],
)
def test_a_tokenizer_of_another_model(
    run: Run, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(generate, "load", lambda *args, **options: pytest.fail("loaded"))
    for name in changes:
        monkeypatch.setattr(tokenizer_module.Tokenizer, name, changes[name])
    with pytest.raises(InputError, match=message):
        run()


def test_a_draft_model_of_another_vocabulary(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generate, "load", lambda *args, **options: pytest.fail("loaded"))
    config = json.loads((DRAFT / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 280}))
    with pytest.raises(InputError, match="draft model's vocabulary has 280 tokens and the model's"):
        run("--speculate", tmp_path)
