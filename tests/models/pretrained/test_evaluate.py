from __future__ import annotations

from pathlib import Path

import pytest

from models.causal_lm import Tokenizer
from models.generation import Sample
from models.pretrained import DEFAULT_MODEL
from models.pretrained.countdown import evaluate, task

pytestmark = pytest.mark.null

PROMPT = "12 5 3 40 7 -> 51 :"
RIGHT = "12 + 5 = 17 ; 17 * 3 = 51"
OTHER = "40 + 12 = 52 ; 7 - 5 = 2 ; 3 - 2 = 1 ; 52 - 1 = 51"
WRONG = "12 + 5 = 17"
CUT = "40 - 7 = 33 ;"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(DEFAULT_MODEL)


def drawn(tokenizer: Tokenizer, *answers: tuple[str, float, str]) -> list[Sample]:
    samples = []
    for index, (text, logprob, finish) in enumerate(answers):
        tokens = tokenizer.encode(text)[1:] + [tokenizer.eos_token_ids[0]] * (finish == "eos")
        reason = "eos" if finish == "eos" else "length"
        samples.append(Sample(index, tokens, [logprob] * len(tokens), reason))  # type: ignore[arg-type]
    return samples


def test_judging(tokenizer: Tokenizer) -> None:
    samples = drawn(
        tokenizer,
        (CUT, -0.1, "length"),
        (CUT + " 40", -0.15, "length"),
        (WRONG, -0.2, "eos"),
        (RIGHT, -0.3, "eos"),
        (RIGHT, -0.3, "eos"),
        (OTHER, -0.4, "eos"),
    )
    outcome = evaluate.judge(PROMPT, samples, tokenizer)
    assert (outcome.samples, outcome.right, outcome.ended, outcome.distinct) == (6, 3, 4, 5)
    assert outcome.best == {
        "pass@top1": False,
        "pass@top3": False,  # two cut answers and the wrong one come first
        "pass@top1_ended": False,
        "pass@top3_ended": True,
    }
    assert outcome.right_tokens == [12, 12, 24]


def test_the_problems_are_unseen_and_their_examples_differ() -> None:
    prompts = list(evaluate.unseen_prompts(5, 20))
    assert prompts == list(evaluate.unseen_prompts(5, 20))
    assert len(set(prompts)) == 20
    for text in prompts:
        asked = task.parse_prompt(text)
        assert asked is not None
        assert task.is_heldout(asked.numbers)
        assert text.count("\n") == task.EXAMPLES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "0"], "--problems is 0; it must be at least 1"),
        (["--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--json", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--temperature", "-1"], "temperature is -1.0"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped model solves unseen problems, and sampling more answers helps."""
    out = tmp_path / "result.json"
    assert evaluate.main(["--problems", "6", "--samples", "8", "--json", str(out)]) == 0
    result = evaluate.json.loads(out.read_text())
    assert f'"pass@1": {result["pass@1"]}' in capsys.readouterr().out
    assert 0.2 < result["pass@1"] < result["pass@8"]
    assert result["right_answer_tokens"]["largest"] <= 24
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
