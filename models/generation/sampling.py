"""From logits and a uniform number to a token.

Everything is a function of one row: logits fp32 [vocab] and a number u in [0, 1). Candidates stand
in a fixed order, by logit downwards and token id upwards among equals; the token is the first at
which their cumulative probability exceeds u times the total (inverse CDF). No generator state is
involved, so the same logits and u give the same token on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature, then top-k, then top-p, in transformers' order.

    Attributes:
        temperature: divides the logits; 0 is greedy, the most likely token (lowest id among
            equals).
        top_k: candidates kept; 0 keeps all.
        top_p: the smallest set of candidates is kept whose probability (after top-k) reaches top_p.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the uniform numbers are ignored."""
        return self.temperature == 0 or self.top_k == 1


def choose(logits: Tensor, u: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: fp32 [rows, vocab].
        u: fp32 [rows], in [0, 1).
        sampling: how.

    Returns:
        tokens i64[rows], and their log-probabilities fp32 [rows] under the model's own
        distribution: temperature 1, nothing cut off. That is the log p whose mean ranks answers
        (section 5.3 of arXiv 2403.08845); it does not change with the way of sampling.
    """
    if sampling.greedy:
        tokens = logits.argmax(dim=-1)
    else:
        ids, cumulative = candidates(logits, sampling)
        # u * total < total even after rounding, because u is a multiple of 2**-24.
        aim = u[:, None] * cumulative[:, -1:]
        rank = (cumulative <= aim).sum(dim=-1, keepdim=True)  # [rows, 1]
        tokens = ids.gather(1, rank.clamp(max=ids.shape[1] - 1))[:, 0]
    logprobs = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    return tokens, logprobs


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The candidates of each row in order, and their cumulative probability.

    Returns:
        ids i64 [rows, k] and cumulative fp32 [rows, k], which stays constant behind the last
        candidate that top-p keeps; k is top_k or the vocabulary.
    """
    # A stable sort keeps equal logits in the order of their ids.
    ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ranked, ids = ranked[:, : sampling.top_k], ids[:, : sampling.top_k]
    # From the largest downwards, so that the smallest temperature cannot overflow.
    cumulative = ((ranked - ranked[:, :1]) / sampling.temperature).softmax(dim=-1).cumsum(dim=-1)
    if sampling.top_p < 1:
        # The last candidate kept is the first to reach top_p; those behind it add nothing.
        last = (cumulative < sampling.top_p).sum(dim=-1, keepdim=True)  # [rows, 1]
        last = last.clamp(max=ids.shape[1] - 1)
        cumulative = cumulative.minimum(cumulative.gather(1, last))
    return ids, cumulative
