from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.pretrained.countdown import task
from models.pretrained.countdown.task import Problem, Step

pytestmark = pytest.mark.null

PROMPT = "12 5 3 40 7 -> 51 :"


def splitmix64(x: int) -> int:
    """SplitMix64 of a counter in Python's integers."""
    mask = (1 << 64) - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "heldout"]))
def test_drawn_problems_keep_the_rules(seed: int, split: task.Split) -> None:
    for problem in task.draw_problems(seed, 40, split):
        assert len(problem.numbers) == 5
        assert all(1 <= n <= 50 for n in problem.numbers)
        assert 10 <= problem.target <= 100
        assert problem.target not in problem.numbers
        assert task.is_heldout(problem.numbers) == (split == "heldout")
        assert 2 <= len(problem.steps) <= 4
        table = list(problem.numbers)
        for step in problem.steps:
            table.remove(step.left)
            table.remove(step.right)
            table.append(step.result)
            exact = {
                "+": step.left + step.right,
                "-": step.left - step.right,
                "*": step.left * step.right,
                "/": step.left / step.right,
            }
            assert exact[step.operator] == step.result
            assert 1 <= step.result <= 255
            assert step.left >= step.right
            assert step.operator in "+-" or step.right > 1
        assert problem.steps[-1].result == problem.target
        # Every result but the last is used, so no step is idle.
        assert len(table) == 5 - len(problem.steps)
        assert task.check(problem.question, problem.answer) is True


def test_draw_is_a_function_of_its_seed() -> None:
    assert task.draw_problems(7, 50, "train") == task.draw_problems(7, 50, "train")
    assert task.draw_problems(7, 50, "train") != task.draw_problems(8, 50, "train")


def test_drawn_answers_use_every_length_and_operator() -> None:
    problems = task.draw_problems(0, 500, "train")
    assert {len(p.steps) for p in problems} == {2, 3, 4}
    assert {s.operator for p in problems for s in p.steps} == set("+-*/")


@given(numbers=st.lists(st.integers(1, 50), min_size=5, max_size=5), data=st.data())
def test_heldout_is_a_stable_hash_of_the_sorted_numbers(
    numbers: list[int], data: st.DataObject
) -> None:
    packed = sum(n << (8 * (4 - i)) for i, n in enumerate(sorted(numbers)))
    expected = splitmix64(packed) % 20 == 0
    assert bool(task.is_heldout(numbers)) is expected
    assert bool(task.is_heldout(data.draw(st.permutations(numbers)))) is expected


def test_splitmix64_is_the_published_one() -> None:
    # First output for seed 0 in the reference implementation by Vigna.
    assert splitmix64(0) == 0xE220A8397B1DCDAF


def test_one_set_of_numbers_in_twenty_is_held_out() -> None:
    numbers = np.random.default_rng(0).integers(1, 51, size=(40000, 5))
    assert task.is_heldout(numbers).mean() == pytest.approx(1 / 20, abs=0.004)


@pytest.mark.parametrize(
    "answer",
    [
        "12 + 5 = 17 ; 17 * 3 = 51",
        "5 + 12 = 17 ; 3 * 17 = 51",  # the order of + and * is free
        " 12 + 5 = 17 ; 17 * 3 = 51\n",
        "12+5=17;17*3=51",
        "40 + 12 = 52 ; 7 - 5 = 2 ; 3 - 2 = 1 ; 52 - 1 = 51",
        "40 - 7 = 33 ; 12 + 5 = 17 ; 17 * 3 = 51",  # a result may stay on the table
    ],
)
def test_right_answers(answer: str) -> None:
    assert task.check(PROMPT, answer) is True


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "nothing"),
        ("51", "no step"),
        ("12 + 5 = 18 ; 18 * 3 = 54", "wrong sum, other target"),
        ("12 + 5 = 17 ; 17 * 3 = 50", "wrong product"),
        ("12 + 5 = 17 ; 17 + 3 = 51", "the target written over a wrong result"),
        ("12 + 5 = 17", "another number than the target"),
        ("17 * 3 = 51", "17 is not on the table"),
        ("12 + 5 = 17 ; 17 + 17 = 34 ; 34 + 17 = 51", "a result used twice"),
        ("12 * 3 = 36 ; 36 + 12 = 48 ; 48 + 3 = 51", "numbers used twice"),
        ("40 + 7 = 47 ; 47 + 12 = 59 ; 59 - 5 = 54 ; 54 - 3 = 51 ; ", "a step cut off"),
        ("40 + 7 = 47 ; 47 + 12 = 59 ; 59 - 5 = 54 ; 54 - 3 =", "a result cut off"),
        ("12 + 5 = 17 ; 17 * 3 = 51 ; 7 * 7 = 49", "goes on past the target"),
        ("12 + 5 = 17 , 17 * 3 = 51", "another separator"),
        ("12 + 5 = 17 ; 17 * 3 = 51 yes", "something behind it"),
        ("12 + 5 = 17 ; 17 * 3 = 51\n1 2 3 4 5 -> 6 :", "a second line"),
        ("12 + 5 = 17 = 17 ; 17 * 3 = 51", "two equal signs"),
    ],
)
def test_wrong_answers(answer: str, why: str) -> None:
    assert task.check(PROMPT, answer) is False, why


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("5 5 10 3 4 -> 10 :", "5 - 5 = 0 ; 10 + 0 = 10"),
        ("5 8 20 3 4 -> 17 :", "5 - 8 = -3 ; 20 + -3 = 17"),
        ("7 2 20 3 4 -> 23 :", "7 / 2 = 3 ; 20 + 3 = 23"),
        ("50 6 4 3 20 -> 75 :", "50 * 6 = 300 ; 300 / 4 = 75"),
        ("50 6 4 3 20 -> 300 :", "50 * 6 = 300"),
    ],
)
def test_results_outside_the_game_are_wrong(prompt: str, answer: str) -> None:
    assert task.check(prompt, answer) is False


def test_every_one_step_answer() -> None:
    """All single steps over small numbers, judged by rules written out a second time."""
    numbers = (2, 6, 3, 3)
    for target in (1, 2, 6, 9, 18):
        prompt = f"{' '.join(map(str, numbers))} -> {target} :"
        for a in range(8):
            for b in range(8):
                for operator in "+-*/":
                    on_table = sorted([a, b]) in ([2, 6], [2, 3], [3, 6], [3, 3])
                    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}
                    expected = on_table and value[operator] == target
                    answer = f"{a} {operator} {b} = {target}"
                    assert task.check(prompt, answer) is expected, (prompt, answer)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_changing_one_integer_of_an_answer_makes_it_wrong(seed: int, data: st.DataObject) -> None:
    """Any one integer changed breaks a step: its arithmetic, its operand, or the target."""
    problem = task.draw_problems(seed, 1, "train")[0]
    words = problem.answer.split()
    place = data.draw(st.sampled_from([i for i, w in enumerate(words) if w.isdigit()]))
    words[place] = str(int(words[place]) + data.draw(st.sampled_from([-1, 1, 100])))
    assert task.check(problem.question, " ".join(words)) is False


def test_prompt_and_parse_round_trip() -> None:
    problem = Problem((1, 2, 3, 4, 5), 15)
    example = Problem((9, 9, 1, 1, 2), 18, (Step(9, "+", 9, 18),))
    text = task.prompt(problem, [example])
    assert text == "9 9 1 1 2 -> 18 : 9 + 9 = 18\n1 2 3 4 5 -> 15 :"
    assert task.parse_prompt(text) == problem
    assert task.parse_prompt(text + " \n") == problem


@pytest.mark.parametrize(
    "text", ["", " \n", "What is 2 + 2?", "1 2 3 4 5 -> 15", "1 2 3 -> 6 : 1 + 2 = 3", "-> 3 :"]
)
def test_other_prompts_are_not_judged(text: str) -> None:
    assert task.parse_prompt(text) is None
    assert task.check(text, "1 + 2 = 3") is None


def test_example_prompt_is_one_unseen_problem_after_twelve_solved_ones() -> None:
    text = task.example_prompt()
    assert text == task.example_prompt()
    assert text != task.example_prompt(1)
    *examples, question = text.split("\n")
    assert len(examples) == 12
    for line in examples:
        head, answer = line.split(":")
        assert task.check(head + ":", answer) is True
        solved = task.parse_prompt(head + ":")
        assert solved is not None
        assert not task.is_heldout(solved.numbers)
    asked = task.parse_prompt(question)
    assert asked is not None
    assert task.is_heldout(asked.numbers)


@pytest.mark.parametrize(
    ("answer", "status"), [("12 + 5 = 17 ; 17 * 3 = 51", 0), ("12 + 5 = 17", 1)]
)
def test_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    prompt, given = tmp_path / "prompt", tmp_path / "answer"
    prompt.write_text("12 5 3 40 7 -> 51 :")
    given.write_text(answer)
    monkeypatch.setattr("sys.argv", ["task.py", str(prompt), str(given)])
    assert task.main() == status
    monkeypatch.setattr("sys.argv", ["task.py"])
    assert task.main() == 2
