from __future__ import annotations

import math

import pytest

from models.evaluation import scorer
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

CALLS: list[str] = []
NOT_CALLABLE = 3


def length(prompt: str, answer: str) -> int:
    CALLS.append(answer)
    return len(prompt) + len(answer)


def raises(prompt: str, answer: str) -> float:
    raise KeyError(answer)


def text(prompt: str, answer: str) -> str:
    return "good"


def test_a_function_is_called_once_an_answer() -> None:
    CALLS.clear()
    score = scorer(f"{__name__}:length", "--score")
    assert [score("ab", each) for each in ("x", "xy", "x")] == [3.0, 4.0, 3.0]
    assert CALLS == ["x", "xy"]


def test_a_command_prints_its_score_last() -> None:
    code = "import sys; print('a note'); print(len(sys.stdin.read()) / 2)"
    assert scorer(f'{{python}} -c "{code}"', "--score")("", "abc") == 1.5
    code = "import sys; print(open(sys.argv[1]).read() == open(sys.argv[2]).read())"
    with pytest.raises(InputError, match="'True' is no number, for the answer 'abc'"):
        scorer(f"{{python}} -c '{code}' {{answer}} {{prompt}}", "--score")("abc", "abc")
    assert math.isnan(scorer("echo nan", "--score")("", ""))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no.such.module:f", "no.such.module cannot be imported"),
        (f"{__name__}:none", "has no none"),
        (f"{__name__}:NOT_CALLABLE", "is no function"),
        ("no-such-program -x", "there is no program 'no-such-program'"),
        ("echo 'open", "cannot be split into words"),
        ("", "a command is a list of strings"),
    ],
)
def test_refused_before_anything_is_drawn(what: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorer(what, "--score")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (f"{__name__}:raises", "KeyError of 'abc'"),
        (f"{__name__}:text", "'good' is no number"),
        ("false", "the command ended 1 for 'abc'"),
        ("sleep 30", r"the command took more than 0.5 s for 'abc'"),
        ("true", "'' is no number"),
    ],
)
def test_scores_that_are_none(what: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorer(what, "--score", time_limit=0.5)("", "abc")
