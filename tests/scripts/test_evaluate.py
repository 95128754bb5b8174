"""`scripts/evaluate.py` from its command line to its figures, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.causal_lm import Tokenizer, load
from models.evaluation import perplexity
from models.pretrained import DEFAULT_MODEL, example_prompt
from models.pretrained.countdown import task as countdown
from nki_kernels.errors import InputError
from scripts import evaluate

pytestmark = pytest.mark.null

EXAMPLE = DEFAULT_MODEL.parent / "example.jsonl"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def start(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, arguments)])
        evaluate.main()
        return capsys.readouterr().out

    return start


def prompts(path: Path, *checks: list[str] | None) -> Path:
    """A file of example prompts."""
    file = path / "prompts.jsonl"
    lines = [
        {"prompt": example_prompt(i)} | ({"check": check} if check else {})
        for i, check in enumerate(checks)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.slow
def test_perplexity(run: Run, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text(example_prompt(1) + "\n" + example_prompt(2))
    said = run("--perplexity", text, "--window", 200, "--stride", 100, "--json", out)
    found = json.loads(out.read_text())["perplexity"]
    tokens = Tokenizer.load(DEFAULT_MODEL).encode(text.read_text())
    model = load(DEFAULT_MODEL, dtype="float32")
    assert found["nats"] == perplexity(model, tokens, window=200, stride=100).nats
    assert found["tokens"] == len(tokens) - 1
    assert f"{found['nats_per_token']:.5f} nats a token over {len(tokens) - 1} tokens" in said
    assert "a demonstration" in said
    # numbers of a problem are uniform, so most of the text cannot be predicted
    assert 5 < found["perplexity"] < 200
    assert found["unknown"] == 0 and "unknown" not in said
    text.write_text("1 + 2 = x", encoding="utf-8")
    assert "unknown to the tokenizer: 1;" in run("--perplexity", text)


@pytest.mark.slow
def test_checks_by_commands(run: Run, tmp_path: Path) -> None:
    """A check a line, one for the rest, answers on stdin and as files; and what it says of none."""
    ends = "import sys; text = sys.stdin.read(); sys.exit(not text.strip().endswith(';'))"
    file = prompts(
        tmp_path, ["{python}", "-c", ends], ["{python}", "-c", "import time; time.sleep(60)"], None
    )
    out = tmp_path / "out.json"
    task = ["{python}", DEFAULT_MODEL.parent / "task.py", "{prompt}", "{answer}"]
    said = run(
        "--prompts", file, "-n", 4, "--json", out, "--time-limit", 2, "--checks-at-once", 2,
        "--check", *task,
    )  # fmt: skip
    result = json.loads(out.read_text())["answers"]
    first, late, rest = result["prompts"]
    for answer in first["answers"]:
        assert answer["right"] == answer["text"].endswith(";")
    assert late["right"] == 0
    assert late["complaint"] == "the time was up"
    for answer in rest["answers"]:
        assert answer["right"] == countdown.check(example_prompt(2), answer["text"])
    solved = sum(each["right"] > 0 for each in (first, rest))
    assert result["pass@4"] == pytest.approx(solved / 3, abs=1e-4)
    assert f"pass@top3        {result['pass@top3']:.4f}" in said


def test_a_run_goes_on_from_its_records(run: Run, tmp_path: Path) -> None:
    """Interrupted behind the second prompt, and with the same result as in one go."""
    file = prompts(tmp_path, None, None, None)
    records, whole, out = (tmp_path / name for name in ("records.jsonl", "whole", "out"))
    options = ("--prompts", file, "-n", 3, "--max-new-tokens", 8, "--records", records, "--json")
    run(*options, whole)
    lines = records.read_text().splitlines(keepends=True)
    records.write_text("".join(lines[:3]) + lines[3][:20])
    assert "2 of 3 prompts are finished" in run(*options, out)

    def untimed(path: Path) -> Any:
        answers = json.loads(path.read_text())["answers"]
        return [{k: v for k, v in each.items() if k != "seconds"} for each in answers["prompts"]]

    assert untimed(out) == untimed(whole)
    with pytest.raises(InputError, match="max_new_tokens 8 there, 9 here"):
        run(*options, out, "--max-new-tokens", 9)


def test_no_answer_passes(run: Run, tmp_path: Path) -> None:
    check = ["{python}", "-c", "raise SystemExit('no such library')"]
    said = run("--prompts", prompts(tmp_path, check), "-n", 1, "--max-new-tokens", 2)
    assert "no answer passed; a check said: no such library" in said


def test_the_example_is_whole() -> None:
    assert len(evaluate.read_prompts(EXAMPLE)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure"),
        (["--perplexity", "no/such"], "--perplexity no/such: No such file"),
        (["--perplexity", "{empty}"], "the text is empty"),
        (["--perplexity", "{binary}"], "is not UTF-8"),
        (["--perplexity", "{one}", "--window", "513"], "window is 513; it must be 2 to 512"),
        (["--perplexity", "{one}", "--stride", "0"], "stride is 0"),
        (["--prompts", "{empty}"], "holds no prompts"),
        (["--prompts", "{one}", "-n", "0"], r"prompt '1': samples \(n\) is 0"),
        (["--prompts", "{one}", "--max-new-tokens", "500"], "takes 512 together"),
        (["--prompts", "{one}", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--prompts", "{one}", "--stop", "é"], "can never match"),
        (["--prompts", "{one}", "--check", "no-such-program"], "--check: there is no program"),
        (["--prompts", "{one}", "--time-limit", "0"], "--time-limit is 0"),
        (["--prompts", "{one}", "--checks-at-once", "0"], "--checks-at-once is 0"),
        (["--prompts", "{one}", "--records", "{empty}/x"], "cannot be"),
        (["--prompts", "{one}", "--json", "no/such/folder/x"], "there is no folder"),
        (["--prompts", "{one}", "--temperature", "-1"], "temperature is -1.0"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_weights_are_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *args, **options: pytest.fail("loaded"))
    files = {name: tmp_path / name for name in ("empty", "binary", "one")}
    files["empty"].write_text("\n")
    files["binary"].write_bytes(b"\xff\xfe\x00")
    files["one"].write_text(json.dumps({"prompt": example_prompt()}))
    with pytest.raises(InputError, match=message):
        run(*(each.format(**files) for each in arguments))


def test_a_prompt_without_a_check_and_a_model_without_a_task(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in DEFAULT_MODEL.iterdir():
        if file.name != "task.json":
            (model / file.name).symlink_to(file)
    with pytest.raises(InputError, match="prompt '1' has no check"):
        run("--model", model, "--prompts", prompts(tmp_path, None))
