"""The countdown game: problems, their text, and the program that checks an answer.

As a command, `python task.py PROMPT ANSWER` (two files) ends with 0 where the answer is right.

Five numbers and a target are given. A step takes two numbers from the table, joins them with one of
`+ - * /`, and puts the result back in their place; results are whole numbers of 1 to 255. An answer
is right when every step is right and the result of the last step is the target. So each of the five
numbers, and each result, is used **at most once**, and none has to be used. A problem is a line

    31 4 50 2 13 -> 86 : 50 - 4 = 46 ; 46 * 2 = 92 ...

and a prompt is a few solved lines, then one that stops after the colon. Problems are divided by a
hash of their sorted numbers into those that training sees and those held out, so an unseen problem
has numbers that never occurred together in training.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "heldout"]
Array = NDArray[np.int64]

COUNT = 5  # numbers on the table
LARGEST_NUMBER = 50
TARGETS = (10, 100)  # both ends included
LARGEST_RESULT = 255
STEPS = (2, 4)  # steps of a generated answer, both ends included
EXAMPLES = 12  # solved lines in a prompt
OPERATORS = "+-*/"
HELDOUT_SHARE = 20  # one set of numbers in so many is held out


@dataclass(frozen=True)
class Step:
    """One line of arithmetic, `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True)
class Problem:
    """Numbers on the table and the target; `steps` is one right answer, empty where unknown."""

    numbers: tuple[int, ...]
    target: int
    steps: tuple[Step, ...] = ()

    @property
    def question(self) -> str:
        """The line up to and with its colon."""
        return f"{' '.join(map(str, self.numbers))} -> {self.target} :"

    @property
    def answer(self) -> str:
        """The canonical text of `steps`."""
        return " ; ".join(map(str, self.steps))


@dataclass(frozen=True)
class ProblemArrays:
    """Many problems as arrays, for training: rows are problems, unused steps are zero."""

    numbers: Array  # [N, COUNT]
    target: Array  # [N]
    steps: Array  # [N, STEPS[1], 4]: left, index in OPERATORS, right, result
    lengths: Array  # [N], steps used

    def __len__(self) -> int:
        return len(self.target)

    def problem(self, row: int) -> Problem:
        """Row `row` as a `Problem`."""
        steps = self.steps[row, : self.lengths[row]].tolist()
        return Problem(
            numbers=tuple(self.numbers[row].tolist()),
            target=int(self.target[row]),
            steps=tuple(Step(a, OPERATORS[o], b, c) for a, o, b, c in steps),
        )


def is_heldout(numbers: Sequence[int] | Array) -> NDArray[np.bool_]:
    """Say which sets of numbers training must never see.

    `numbers` is [..., COUNT]. The hash is SplitMix64 (Steele, Lea and Flood 2014) of the sorted
    numbers read as base-256 digits: the same on every machine, and independent of their order.
    """
    digits = np.sort(np.asarray(numbers, dtype=np.uint64), axis=-1)
    z = np.zeros(digits.shape[:-1], dtype=np.uint64)
    for place in range(digits.shape[-1]):
        z = z * np.uint64(256) + digits[..., place]
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return np.asarray(z % np.uint64(HELDOUT_SHARE) == 0)


def draw(rng: np.random.Generator, count: int, split: Split) -> ProblemArrays:
    """Make `count` problems of a split, each with the answer that it was made from.

    Numbers are uniform in 1 to `LARGEST_NUMBER`. The answer is a random derivation: it uses 3 to 5
    of the numbers and joins random pairs with a random operator among those that are legal, larger
    operand first, never multiplying or dividing by one. Derivations whose end is not a target, or
    is one of the numbers already, are thrown away.
    """
    parts: list[ProblemArrays] = []
    found = 0
    while found < count:
        numbers = rng.integers(1, LARGEST_NUMBER + 1, size=(max(4 * (count - found), 64), COUNT))
        numbers = numbers[is_heldout(numbers) == (split == "heldout")]
        part = _derive(rng, numbers)
        parts.append(part)
        found += len(part)
    joined = (np.concatenate(a)[:count] for a in zip(*map(_columns, parts), strict=True))
    return ProblemArrays(*joined)


def draw_problems(seed: int, count: int, split: Split) -> list[Problem]:
    """Make `count` problems of a split from a seed."""
    arrays = draw(np.random.default_rng(seed), count, split)
    return [arrays.problem(row) for row in range(count)]


def _columns(a: ProblemArrays) -> tuple[Array, Array, Array, Array]:
    return a.numbers, a.target, a.steps, a.lengths


def _derive(rng: np.random.Generator, numbers: Array) -> ProblemArrays:
    """Random derivations from each row of `numbers`; rows without a legal end are left out."""
    n = len(numbers)
    rows = np.arange(n)
    lengths = rng.integers(STEPS[0], STEPS[1] + 1, size=n)
    # A random choice of lengths + 1 numbers to work with.
    order = np.argsort(rng.random((n, COUNT)), axis=1)
    pool = np.take_along_axis(numbers, order, axis=1)  # [n, COUNT]
    alive = np.arange(COUNT)[None, :] <= lengths[:, None]  # [n, COUNT]
    steps = np.zeros((n, STEPS[1], 4), dtype=np.int64)
    good = np.ones(n, dtype=bool)
    target = np.zeros(n, dtype=np.int64)
    for s in range(STEPS[1]):
        active = good & (s < lengths)
        pair = np.argsort(np.where(alive, rng.random((n, COUNT)), 2.0), axis=1)[:, :2]
        x, y = pool[rows, pair[:, 0]], pool[rows, pair[:, 1]]
        a, b = np.maximum(x, y), np.minimum(x, y)
        results = np.stack([a + b, a - b, a * b, a // b], axis=1)  # [n, 4] as in OPERATORS
        legal = (results >= 1) & (results <= LARGEST_RESULT)
        legal[:, 2] &= b > 1
        legal[:, 3] &= (b > 1) & (a % b == 0)
        operator = np.argmax(np.where(legal, rng.random((n, 4)), -1.0), axis=1)
        result = results[rows, operator]
        good &= ~active | legal[rows, operator]
        active &= good
        steps[active, s] = np.stack([a, operator, b, result], axis=1)[active]
        target[active] = result[active]
        pool[active, pair[active, 0]] = result[active]
        alive[active, pair[active, 1]] = False
    good &= (target >= TARGETS[0]) & (target <= TARGETS[1])
    good &= ~(numbers == target[:, None]).any(axis=1)
    return ProblemArrays(numbers[good], target[good], steps[good], lengths[good])


def prompt(problem: Problem, examples: Iterable[Problem]) -> str:
    """The examples solved, one a line, then the question of `problem`."""
    lines = [f"{e.question} {e.answer}" for e in examples]
    return "\n".join([*lines, problem.question])


def example_prompt(seed: int = 0) -> str:
    """A prompt of `EXAMPLES` solved problems that ends in an unseen one; the same for a seed."""
    return prompt(draw_problems(seed, 1, "heldout")[0], draw_problems(seed, EXAMPLES, "train"))


_QUESTION = re.compile(r"(?P<numbers>[0-9]+(?: +[0-9]+)+) *-> *(?P<target>[0-9]+) *: *")
_STEP = re.compile(r"([0-9]+) *([-+*/]) *([0-9]+) *= *([0-9]+)")


def parse_prompt(text: str) -> Problem | None:
    """The problem that the last line of a prompt asks, or None where it asks none."""
    lines = text.strip().splitlines()
    match = _QUESTION.fullmatch(lines[-1].strip()) if lines else None
    if match is None:
        return None
    return Problem(tuple(map(int, match["numbers"].split())), int(match["target"]))


_RESULT: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if b and a % b == 0 else None,
}


def check(prompt_text: str, answer_text: str) -> bool | None:
    """Say whether an answer solves the prompt's problem; None where the prompt asks none.

    Every step must be written `a o b = c`, be right, have a result of 1 to 255, and take its two
    operands from the table (given numbers and earlier results, each at most once); the last result
    must be the target. The order of the operands of + and * is free.
    """
    problem = parse_prompt(prompt_text)
    if problem is None:
        return None
    table = list(problem.numbers)
    last = None
    for text in answer_text.strip().split(";"):
        match = _STEP.fullmatch(text.strip())
        if match is None:
            return False
        left, operator, right, last = int(match[1]), match[2], int(match[3]), int(match[4])
        for operand in (left, right):
            if operand not in table:
                return False
            table.remove(operand)
        if _RESULT[operator](left, right) != last or not 1 <= last <= LARGEST_RESULT:
            return False
        table.append(last)
    return last == problem.target


def main() -> int:
    """Exit status: 0 right, 1 wrong or no problem of this game, 2 a mistake of the caller."""
    if len(sys.argv) != 3:
        print("usage: task.py PROMPT ANSWER, two files", file=sys.stderr)
        return 2
    prompt_text, answer_text = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
    return 0 if check(prompt_text, answer_text) else 1


if __name__ == "__main__":
    sys.exit(main())
