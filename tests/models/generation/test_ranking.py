from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.generation.ranking import pass_at_k, pass_at_top, rank
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


@dataclass(frozen=True)
class Answer:
    text: str
    mean_logprob: float


answers = st.lists(
    st.builds(
        Answer,
        text=st.sampled_from("abcdef"),
        mean_logprob=st.one_of(
            st.sampled_from([-1.0, -0.5, math.nan, -math.inf]), st.floats(-9, 0)
        ),
    ),
    max_size=20,
)


def text(answer: Answer) -> str:
    return answer.text


@given(answers)
def test_distinct_best_first_and_complete(given_answers: list[Answer]) -> None:
    ranked = rank(given_answers, text)
    names = [each.answer.text for each in ranked]
    assert len(set(names)) == len(names)
    assert set(names) == {answer.text for answer in given_answers}
    assert sum(each.count for each in ranked) == len(given_answers)
    scores = [each.answer.mean_logprob for each in ranked]
    numbers = [score for score in scores if not math.isnan(score)]
    assert numbers == sorted(numbers, reverse=True)
    for each in ranked:
        same = [answer for answer in given_answers if answer.text == each.answer.text]
        assert each.count == len(same)
        known = [answer.mean_logprob for answer in same if not math.isnan(answer.mean_logprob)]
        assert not known or each.answer.mean_logprob == max(known)


@given(answers)
def test_equals_go_to_the_earlier(given_answers: list[Answer]) -> None:
    ranked = rank(given_answers, text)
    position = {id(answer): i for i, answer in reversed(list(enumerate(given_answers)))}
    for one, next_one in itertools.pairwise(ranked):
        if one.answer.mean_logprob == next_one.answer.mean_logprob:
            assert position[id(one.answer)] < position[id(next_one.answer)]


def test_best_three_are_distinct() -> None:
    given_answers = [
        Answer("wrong", -0.1),
        Answer("wrong", -0.2),
        Answer("also wrong", -0.3),
        Answer("wrong", -0.1),
        Answer("right", -0.4),
        Answer("late", -0.5),
    ]
    ranked = rank(given_answers, text)
    assert [(each.answer.text, each.count) for each in ranked] == [
        ("wrong", 3),
        ("also wrong", 1),
        ("right", 1),
        ("late", 1),
    ]
    assert pass_at_top(ranked, lambda answer: answer.text == "right")
    assert not pass_at_top(ranked, lambda answer: answer.text == "right", k=2)
    assert not pass_at_top(ranked, lambda answer: answer.text == "late")


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_mean_over_subsets(samples: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    subsets = list(itertools.combinations(range(samples), k))
    passed = sum(any(i < right for i in subset) for subset in subsets)
    assert pass_at_k(samples, right, k) == pytest.approx(passed / len(subsets))


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_out_of_range(samples: int, right: int, k: int) -> None:
    with pytest.raises(InputError):
        pass_at_k(samples, right, k)
