from __future__ import annotations

import pytest

from models.evaluation import judge, summarise
from models.generation import Sample, pass_at_k

pytestmark = pytest.mark.null


def samples(*answers: tuple[float, str]) -> list[Sample]:
    return [
        Sample(i, [7] * 5, [logprob] * 5, finish)  # type: ignore[arg-type]
        for i, (logprob, finish) in enumerate(answers)
    ]


def test_judging() -> None:
    drawn = samples((-0.1, "length"), (-0.2, "eos"), (-0.3, "stop"), (-0.3, "eos"), (-0.4, "eos"))
    outcome = judge(
        drawn, ["cut", "wrong", "right", "right", "other"], [False, False, True, True, True]
    )
    assert (outcome.samples, outcome.right, outcome.ended, outcome.distinct) == (5, 3, 4, 4)
    assert outcome.best == {
        "pass@top1": False,
        "pass@top3": True,
        "pass@top1_ended": False,
        "pass@top3_ended": True,
    }
    assert outcome.right_tokens == [5, 5, 5]


def test_summary() -> None:
    drawn = samples((-0.1, "eos"), (-0.2, "length"))
    half = judge(drawn, ["right", "cut"], [True, False])
    none = judge(drawn, ["wrong", "cut"], [False, False])
    result = summarise([half, none])
    assert result["pass@1"] == pass_at_k(2, 1, 1) / 2 == 0.25
    assert result["pass@2"] == 0.5
    assert "pass@4" not in result
    assert result["pass@top3"] == 0.5
    assert result["ended"] == 0.5
    assert result["right_answer_tokens"] == {"mean": 5.0, "largest": 5}
    assert summarise([none])["right_answer_tokens"] == {"mean": None, "largest": None}


def test_all_samples_count_whatever_their_number() -> None:
    drawn = samples(*[(-0.1, "eos")] * 5)
    result = summarise([judge(drawn, list("abcde"), [False] * 4 + [True])])
    assert [name for name in result if name[5:].isdigit()] == [
        "pass@1",
        "pass@2",
        "pass@4",
        "pass@5",
    ]
    assert (result["pass@1"], result["pass@5"]) == (0.2, 1.0)
