"""Which answer most samples agree on: self-consistency (Wang et al., arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from models.generation.ranking import Answer, Ranked, rank


def vote(
    answers: Sequence[Answer], key: Callable[[Answer], Hashable | None]
) -> list[Ranked[Answer]]:
    """Distinct answers, the most frequent first.

    Args:
        answers: samples of one prompt.
        key: what an answer votes for, for example the number it ends with. Answers with None do
            not vote.

    Returns:
        One entry a key, as `rank` makes it: the sample of the highest mean log-probability, which
        also decides between keys with the same number of votes, and the number of votes.
    """
    voters = [answer for answer in answers if key(answer) is not None]
    return sorted(rank(voters, key), key=lambda each: -each.count)
