"""Attention states in torch: what a softmax over some of the keys leaves behind, and how to join
two.

A state is unnormalised, so that joining is one multiply-add a term and the empty state is neutral
to the last bit. The same algebra is published as the "recursive attention" of FlashInfer and the
combine step of Hydragen (arXiv 2402.05099) and FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MASK = -3.0e38
"""The logit of a key that must not be seen, and the max of a state without keys.

Finite, because minus infinity minus itself is NaN; and so large that any finite logit below 1e31
added to it leaves it unchanged in fp32. That is what lets a kernel mask by adding.
"""

FLOOR = -1.0e30
"""The least shift an exponential is taken against. It lies between MASK and every real logit, so
that exp(MASK - FLOOR) is exactly 0: a row without keys gets weights 0, not 1."""


@dataclass(frozen=True)
class State:
    """A softmax over a set of keys, before its division.

    With s the scaled logits of the set: max = max s (MASK when the set is empty),
    sum = Σ exp(s - max), o = Σ exp(s - max) · v.
    """

    o: torch.Tensor  # [..., d]
    max: torch.Tensor  # [...]
    sum: torch.Tensor  # [...]


def empty(o: torch.Tensor) -> State:
    """The state of no keys, shaped like the output `o` [..., d]; neutral in `merge`."""
    rows = torch.zeros_like(o[..., 0])
    return State(o=torch.zeros_like(o), max=rows + MASK, sum=rows)


def scaled_logits(
    rows: torch.Tensor, keys: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """The logits of `rows` [..., rows, d] against `keys` [..., d, keys], soft-capped where asked.

    A soft cap c bends each logit s to c·tanh(s / c), within (-c, c), before anything is masked
    (Gemma 2, arXiv 2408.00118, section 2).
    """
    logits = rows @ keys * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def from_logits(logits: torch.Tensor, valid: torch.Tensor, values: torch.Tensor) -> State:
    """The state of one set of keys.

    Args:
        logits: scaled logits [..., rows, keys], finite and above FLOOR where valid.
        valid: bool, broadcastable to `logits`. What an invalid key holds, in `logits` or in
        `values`,
            changes no bit of the result as long as it is finite.
        values: [..., keys, d].
    """
    logits = logits.masked_fill(~valid, MASK)
    top = logits.amax(dim=-1)
    weights = torch.exp(logits - top.clamp_min(FLOOR).unsqueeze(-1))
    return State(o=weights @ values, max=top, sum=weights.sum(dim=-1))


def from_sinks(sinks: torch.Tensor, o: torch.Tensor) -> State:
    """The state of one logit a row that has no value: it counts in the max and in the sum alone.

    Args:
        sinks: logits, broadcastable to the rows of `o`.
        o: [..., d], of the shape and dtype wanted.
    """
    top = sinks.expand(o.shape[:-1])
    return State(o=torch.zeros_like(o), max=top, sum=torch.ones_like(top))


def merge(a: State, b: State) -> State:
    """The state of the union of two disjoint sets of keys; associative and commutative."""
    top = torch.maximum(a.max, b.max)
    weight_a = torch.exp(a.max - top)
    weight_b = torch.exp(b.max - top)
    return State(
        o=a.o * weight_a.unsqueeze(-1) + b.o * weight_b.unsqueeze(-1),
        max=top,
        sum=a.sum * weight_a + b.sum * weight_b,
    )


def finish(state: State) -> torch.Tensor:
    """The attention output [..., d]: o / sum, and 0 for a row that saw no key."""
    return state.o / torch.where(state.sum > 0, state.sum, 1.0).unsqueeze(-1)


def resume(o: torch.Tensor, max: torch.Tensor, sum: torch.Tensor) -> State:
    """The state behind what an operator returned with `return_state=True`, ready for `merge`."""
    return State(o=o.to(sum.dtype) * sum.unsqueeze(-1), max=max, sum=sum)
