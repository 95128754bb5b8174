"""What the answers to prompts were worth: pass@k, and the best of a ranking.

pass@k is the unbiased estimate of Chen et al. (arXiv 2107.03374); pass@top3 asks whether one of the
three distinct answers with the highest mean log-probability is right (arXiv 2403.08845, section
5.3); names that end in `_ended` leave out the answers that were cut before they ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.generation import Sample, pass_at_k, pass_at_top, rank

KS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOPS = (1, 3)


@dataclass(frozen=True)
class Outcome:
    """What the answers to one prompt were.

    Attributes:
        samples: answers.
        right: of them.
        ended: of them, before they were cut.
        distinct: texts.
        best: whether the best answers of a ranking hold a right one.
        right_tokens: length of each right answer, its end included.
    """

    samples: int
    right: int
    ended: int
    distinct: int
    best: dict[str, bool]
    right_tokens: list[int]


def judge(samples: Sequence[Sample], texts: Sequence[str], right: Sequence[bool]) -> Outcome:
    """Ranks the answers to a prompt.

    Args:
        samples: of it, in the order of their index.
        texts: of each sample; answers with the same text are one.
        right: of each sample.
    """

    def text(sample: Sample) -> str:
        return texts[sample.index]

    def passes(sample: Sample) -> bool:
        return right[sample.index]

    ended = [sample for sample in samples if sample.finish in ("eos", "stop")]
    everything, whole = rank(samples, text), rank(ended, text)
    return Outcome(
        samples=len(samples),
        right=sum(right),
        ended=len(ended),
        distinct=len(everything),
        best={
            f"pass@top{k}{suffix}": pass_at_top(ranked, passes, k)
            for suffix, ranked in (("", everything), ("_ended", whole))
            for k in TOPS
        },
        right_tokens=[len(sample.tokens) for sample in samples if passes(sample)],
    )


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over prompts, and the lengths of right answers."""
    samples = outcomes[0].samples
    ks = sorted({k for k in KS if k <= samples} | {samples})
    lengths = [n for outcome in outcomes for n in outcome.right_tokens]
    return {
        **{f"pass@{k}": _mean([pass_at_k(samples, o.right, k) for o in outcomes]) for k in ks},
        **{name: _mean([o.best[name] for o in outcomes]) for name in outcomes[0].best},
        "ended": _mean([o.ended / samples for o in outcomes]),
        "distinct": _mean([o.distinct for o in outcomes]),
        "right_answer_tokens": {
            "mean": round(float(np.mean(lengths)), 2) if lengths else None,
            "largest": max(lengths, default=None),
        },
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)
