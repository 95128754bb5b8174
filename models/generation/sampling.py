"""How tokens are drawn: one setting for a request, and the draw from a row's logits on the host.

The algorithm is `models.causal_lm.draw`'s, which decode graphs hold too. Only where top-k is off is
the whole vocabulary put in order, by a sort; that is never done in a graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.causal_lm.draw import (
    MOST_CANDIDATES,
    Candidates,
    Settings,
    cumulate,
    draw,
    find_candidates,
)
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

    @property
    def candidates(self) -> int | None:
        """How many tokens a graph must find to draw one; None where it needs all of them."""
        if self.greedy:
            return 1
        return self.top_k if 1 <= self.top_k <= MOST_CANDIDATES else None


def choose(logits: Tensor, u: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: fp32 [rows, vocab].
        u: fp32 [rows], in [0, 1).
        sampling: how.

    Returns:
        tokens i32 [rows], and their log-probabilities fp32 [rows] under the model's own
        distribution: temperature 1, nothing cut off. That is the log p whose mean ranks answers
        (section 5.3 of arXiv 2403.08845); it does not change with the way of sampling.
    """
    return draw(_ordered(logits, sampling), u, _settings(logits, sampling))


def choose_each(
    logits: Tensor, u: Sequence[float], samplings: Sequence[Sampling]
) -> tuple[list[int], list[float]]:
    """Draws one token a row, each in its own way; see `choose`."""
    tokens, logprobs = [0] * len(samplings), [0.0] * len(samplings)
    alike: dict[Sampling, list[int]] = {}
    for i, sampling in enumerate(samplings):
        alike.setdefault(sampling, []).append(i)
    for sampling, rows in alike.items():
        mine = logits if len(alike) == 1 else logits[torch.tensor(rows, device=logits.device)]
        numbers = torch.tensor([float(u[i]) for i in rows], device=logits.device)
        for i, token, logprob in zip(
            rows, *(each.tolist() for each in choose(mine, numbers, sampling)), strict=True
        ):
            tokens[i], logprobs[i] = token, logprob
    return tokens, logprobs


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The candidates of each row in order, and their cumulative weight.

    Returns:
        ids i32 [rows, k] and cumulative fp32 [rows, k], which stays constant behind the last
        candidate that top-p keeps; k is top_k or the vocabulary.
    """
    ordered = _ordered(logits, sampling)
    return ordered.ids, cumulate(ordered.logits, _settings(logits, sampling))


def _ordered(logits: Tensor, sampling: Sampling) -> Candidates:
    vocab = logits.shape[-1]
    if sampling.candidates is not None:
        return find_candidates(logits, min(sampling.candidates, vocab), vocab)
    # A stable sort keeps equal logits in the order of their ids.
    ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
    k = sampling.top_k or vocab
    weight = torch.exp(ranked - ranked[:, :1]).sum(-1)
    return Candidates(ranked[:, :k], ids[:, :k].to(torch.int32), weight)


def _settings(logits: Tensor, sampling: Sampling) -> Settings:
    def everywhere(value: float) -> Tensor:
        return logits.new_full(logits.shape[:-1], value)

    top_k = everywhere(sampling.top_k or logits.shape[-1]).to(torch.int32)
    return Settings(everywhere(sampling.temperature), top_k, everywhere(sampling.top_p))
