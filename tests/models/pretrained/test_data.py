from __future__ import annotations

import numpy as np
import pytest

from models.pretrained.countdown import data, task, tokenizer
from models.pretrained.countdown.train import MAX_POSITIONS

pytestmark = pytest.mark.null


def test_sequences_are_the_text_of_their_problems() -> None:
    problems = task.draw(np.random.default_rng(3), 4 * data.PROBLEMS, "train")
    tokens, labels = data.encode(problems)
    encoder = tokenizer.build()
    for i, (row, label) in enumerate(zip(tokens, labels, strict=True)):
        solved = [problems.problem(i * data.PROBLEMS + j) for j in range(data.PROBLEMS)]
        text = "\n".join(f"{p.question} {p.answer}" for p in solved)
        expected = [*encoder.encode(text).ids, tokenizer.EOS]
        assert row[: len(expected)].tolist() == expected
        assert (row[len(expected) :] == tokenizer.PAD).all()
        # What is learned: the answers and their ends, nothing else.
        learned = encoder.decode(label[label != data.IGNORED].tolist(), skip_special_tokens=False)
        assert learned.removesuffix(" <eos>") == "\n".join(p.answer for p in solved)
        assert (label[label != data.IGNORED] == row[label != data.IGNORED]).all()


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first = data.batch(0, 5, 3, "train")
    again = data.batch(0, 5, 3, "train")
    other = data.batch(0, 6, 3, "train")
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
    assert first[0].shape == first[1].shape == (3, data.LENGTH)


def test_the_longest_prompt_and_answer_fit_the_model() -> None:
    longest = 1 + task.EXAMPLES * (data.QUESTION_TOKENS + data.ANSWER_TOKENS)
    assert longest + data.QUESTION_TOKENS + data.ANSWER_TOKENS == data.LENGTH <= MAX_POSITIONS


def test_training_never_sees_heldout_numbers() -> None:
    tokens, _ = data.batch(1, 0, 8, "train")
    text = tokenizer.build().decode_batch(tokens.tolist())
    for line in "\n".join(text).split("\n"):
        numbers = [int(n) for n in line.split("->")[0].split()]
        assert not task.is_heldout(numbers)
