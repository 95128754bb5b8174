"""Which of many answers to show: distinct ones, by mean log-probability or a score of one's own.

The rule is that of the bifurcated attention paper (arXiv 2403.08845, section 5.3): answers are
de-duplicated and ranked by the mean log p of their tokens; pass@top3 asks whether one of the best
three is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nki_kernels.errors import InputError


class Scored(Protocol):
    """What can be ranked."""

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the answer's tokens."""


Answer = TypeVar("Answer", bound=Scored)


@dataclass(frozen=True)
class Ranked(Generic[Answer]):
    """A distinct answer: its best sample, how many samples gave it, and what ranked that one."""

    answer: Answer
    count: int
    score: float


def rank(
    answers: Sequence[Answer],
    key: Callable[[Answer], Hashable],
    score: Callable[[Answer], float] | None = None,
) -> list[Ranked[Answer]]:
    """Distinct answers, best first.

    Answers with the same `key` (their token sequence, or their text) are one; the one with the
    highest score stands for it. Among equals the earlier in `answers` comes first. NaN ranks last.

    Args:
        answers: samples of one prompt.
        key: what makes two answers the same.
        score: called once an answer, higher is better; by default its mean log-probability.
    """
    scores = [each.mean_logprob if score is None else score(each) for each in answers]
    order = sorted(range(len(answers)), key=lambda i: (*_badness(scores[i]), i))
    first: dict[Hashable, int] = {}
    counts: dict[Hashable, int] = {}
    for i in order:
        name = key(answers[i])
        first.setdefault(name, i)
        counts[name] = counts.get(name, 0) + 1
    return [Ranked(answers[i], counts[name], scores[i]) for name, i in first.items()]


def pass_at_top(
    ranked: Sequence[Ranked[Answer]], right: Callable[[Answer], bool], k: int = 3
) -> bool:
    """Whether one of the best `k` distinct answers is right (pass@top3 for k = 3)."""
    return any(right(each.answer) for each in ranked[:k])


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `right` of `samples`.

    1 - C(samples - right, k) / C(samples, k): Chen et al., arXiv 2107.03374, equation 1.

    Raises:
        InputError: k outside 1 to `samples`, or `right` outside 0 to `samples`.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise InputError(f"pass@{k} cannot be estimated from {right} right of {samples} samples")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def _badness(score: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(score) else (False, -score)
