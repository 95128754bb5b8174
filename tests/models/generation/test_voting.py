from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.generation import rank, vote

pytestmark = pytest.mark.null


@dataclass(frozen=True)
class Answer:
    value: int | None
    mean_logprob: float
    length: int = 0


answers = st.lists(
    st.builds(Answer, st.sampled_from([None, 1, 2, 3]), st.sampled_from([-1.0, -2.0, -0.5])),
    max_size=12,
)


@given(answers)
def test_votes_are_counted(given_answers: list[Answer]) -> None:
    voted = vote(given_answers, key=lambda answer: answer.value)
    counts = Counter(answer.value for answer in given_answers if answer.value is not None)
    assert {each.answer.value: each.count for each in voted} == counts
    keys = [(-each.count, -each.answer.mean_logprob) for each in voted]
    assert keys == sorted(keys)
    for each in voted:
        same = [a.mean_logprob for a in given_answers if a.value == each.answer.value]
        assert each.answer.mean_logprob == max(same)


def test_the_majority_outvotes_the_likeliest() -> None:
    given_answers = [Answer(7, -0.1), Answer(4, -0.9), Answer(4, -0.8), Answer(None, -0.01)]
    by_votes = vote(given_answers, key=lambda answer: answer.value)
    assert [(each.answer.value, each.count) for each in by_votes] == [(4, 2), (7, 1)]
    assert by_votes[0].answer.mean_logprob == -0.8
    assert rank(given_answers, key=lambda answer: answer.value)[0].answer.value is None


def test_no_votes() -> None:
    assert vote([Answer(None, -1.0)], key=lambda answer: answer.value) == []


def test_a_score_of_ones_own() -> None:
    given_answers = [Answer(1, -0.1, 5), Answer(2, -0.5, 9), Answer(2, -0.2, 3), Answer(3, -0.3, 9)]
    calls: list[Answer] = []

    def score(answer: Answer) -> float:
        calls.append(answer)
        return float("nan") if answer.value == 1 else float(answer.length)

    ranked = rank(given_answers, key=lambda answer: answer.value, score=score)
    assert [(each.answer.value, each.answer.length) for each in ranked] == [(2, 9), (3, 9), (1, 5)]
    assert [each.count for each in ranked] == [2, 1, 1]
    assert calls == given_answers  # once each
