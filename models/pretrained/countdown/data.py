"""Training sequences as arrays of tokens, made without a Python loop over problems.

A sequence is `<bos>`, then thirteen solved problems: the twelve examples of a prompt and the one it
asks. Twelve answers end in a line break and the last in `<eos>`; the loss is taken on the tokens of
all thirteen answers and their ends, so a prompt with fewer examples works too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.pretrained.countdown import task, tokenizer

PROBLEMS = task.EXAMPLES + 1  # in one sequence
QUESTION_TOKENS = task.COUNT + 3  # the numbers, `->`, the target, `:`
STEP_TOKENS = 6  # left, operator, right, `=`, result, then `;` or the answer's end
ANSWER_TOKENS = STEP_TOKENS * task.STEPS[1]  # at most
LENGTH = 1 + PROBLEMS * (QUESTION_TOKENS + ANSWER_TOKENS)
IGNORED = -100  # the label that torch's cross entropy leaves out

Tokens = NDArray[np.int64]

_OPERATORS = np.array([tokenizer.TOKEN[o] for o in task.OPERATORS])


def batch(seed: int, step: int, size: int, split: task.Split) -> tuple[Tokens, Tokens]:
    """Tokens and labels [size, LENGTH] of training step `step`.

    A function of its arguments alone, so that a resumed run, or one with another number of worker
    processes, sees the same data. Labels are the tokens themselves (shifted by the loss, as
    transformers does), `IGNORED` outside answers. Sequences are padded at the right.
    """
    rng = np.random.default_rng([seed, step])
    return encode(task.draw(rng, size * PROBLEMS, split))


def encode(problems: task.ProblemArrays) -> tuple[Tokens, Tokens]:
    """Tokens and labels [len(problems) / PROBLEMS, LENGTH] of solved problems, in order."""
    count = len(problems)
    size = count // PROBLEMS
    lines = np.empty((count, QUESTION_TOKENS + ANSWER_TOKENS), dtype=np.int64)
    lines[:, : task.COUNT] = problems.numbers + tokenizer.FIRST_INTEGER
    lines[:, task.COUNT] = tokenizer.TOKEN["->"]
    lines[:, task.COUNT + 1] = problems.target + tokenizer.FIRST_INTEGER
    lines[:, task.COUNT + 2] = tokenizer.TOKEN[":"]

    answers = lines[:, QUESTION_TOKENS:].reshape(count, task.STEPS[1], STEP_TOKENS)
    left, operator, right, result = np.moveaxis(problems.steps, -1, 0)  # each [count, STEPS[1]]
    answers[..., 0] = left + tokenizer.FIRST_INTEGER
    answers[..., 1] = _OPERATORS[operator]
    answers[..., 2] = right + tokenizer.FIRST_INTEGER
    answers[..., 3] = tokenizer.TOKEN["="]
    answers[..., 4] = result + tokenizer.FIRST_INTEGER
    ends = np.where(
        np.arange(count) % PROBLEMS == PROBLEMS - 1, tokenizer.EOS, tokenizer.LINE_BREAK
    )
    last = np.arange(task.STEPS[1]) == problems.lengths[:, None] - 1
    answers[..., 5] = np.where(last, ends[:, None], tokenizer.TOKEN[";"])
    lines[:, QUESTION_TOKENS:] = answers.reshape(count, ANSWER_TOKENS)

    # Close the gaps that short answers leave.
    place = np.arange(lines.shape[1])
    live = place < QUESTION_TOKENS + STEP_TOKENS * problems.lengths[:, None]
    live = live.reshape(size, -1)
    row, column = np.nonzero(live)
    position = np.cumsum(live, axis=1)[row, column]  # from 1, after <bos>
    tokens = np.full((size, LENGTH), tokenizer.PAD, dtype=np.int64)
    labels = np.full((size, LENGTH), IGNORED, dtype=np.int64)
    tokens[:, 0] = tokenizer.BOS
    tokens[row, position] = lines.reshape(size, -1)[row, column]
    answer = column % lines.shape[1] >= QUESTION_TOKENS
    labels[row[answer], position[answer]] = tokens[row[answer], position[answer]]
    return tokens, labels
