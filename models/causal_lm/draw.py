"""From logits and a uniform number to a token, with nothing but what a device graph can hold.

Candidates stand in a fixed order, by logit downwards and token id upwards among equals. The token
is the first at which their cumulative weight exceeds u times the total (inverse CDF), so the same
logits and the same u give the same token wherever they are computed: on the host, in a decode
graph, and with the vocabulary split over ranks.

No sort: an XLA device has top-k as an operation of its own (the Neuron compiler's AwsNeuronTopK),
of floating point numbers only, and the order of equals is nobody's promise. Token ids below 2**24
are exact as fp32, so equals are put in order by further top-k's over their ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.parallel import SINGLE, TensorParallel
from nki_kernels.attention_state.reference import MASK
from nki_kernels.errors import InputError

MOST_CANDIDATES = 4096
"""The most candidates that are put in order without a sort: products of two places are exact."""


@dataclass(frozen=True)
class Candidates:
    """The most likely tokens of each row, in order, and what their probabilities are relative to.

    Attributes:
        logits: fp32 [..., k].
        ids: i32 [..., k].
        weight: fp32 [...], the sum of exp(logit - logits[..., 0]) over the whole vocabulary.
    """

    logits: Tensor
    ids: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Settings:
    """How each row's token is drawn, tensors of the rows' shape.

    Attributes:
        temperature: fp32, divides the logits; 0 is greedy, whatever the others are.
        top_k: i32, candidates kept, 1 to k.
        top_p: fp32, the smallest set of them is kept whose probability reaches it.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor


def draw(candidates: Candidates, u: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        candidates: of each row.
        u: fp32 [...], multiples of 2**-24 in [0, 1).
        settings: of each row.

    Returns:
        tokens i32 [...], and their log-probabilities fp32 [...] under the model's own distribution:
        temperature 1, nothing cut off.
    """
    cumulative = cumulate(candidates.logits, settings)
    # u * total < total even after rounding, because u is a multiple of 2**-24.
    aim = u.unsqueeze(-1) * cumulative[..., -1:]
    at = (cumulative <= aim).sum(-1, keepdim=True)  # [..., 1]
    at = at.clamp(max=cumulative.shape[-1] - 1)
    tokens = candidates.ids.gather(-1, at)[..., 0]
    below = candidates.logits.gather(-1, at) - candidates.logits[..., :1]
    return tokens, below[..., 0] - candidates.weight.log()


def cumulate(logits: Tensor, settings: Settings) -> Tensor:
    """Cumulative weight of candidates' `logits` fp32 [..., k] in order, the first one's being 1.

    It stays constant behind the last candidate that is kept.
    """
    hot = settings.temperature > 0
    temperature = torch.where(hot, settings.temperature, 1.0).unsqueeze(-1)
    top_k = torch.where(hot, settings.top_k, 1).unsqueeze(-1)
    # From the largest downwards, so that the smallest temperature cannot overflow.
    weights = torch.exp((logits - logits[..., :1]) / temperature)
    place = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device)
    cumulative = torch.where(place < top_k, weights, 0.0).cumsum(-1)
    # The last candidate kept is the first to reach top_p of what top-k left.
    enough = settings.top_p.unsqueeze(-1) * cumulative[..., -1:]
    last = (cumulative < enough).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return cumulative.minimum(cumulative.gather(-1, last))


def find_candidates(
    logits: Tensor,
    k: int,
    vocab_size: int,
    parallel: TensorParallel = SINGLE,
    rank: Tensor | int = 0,
) -> Candidates:
    """The `k` most likely tokens of each row, or the whole vocabulary where that is fewer.

    Every rank takes its own most likely ones; those of all ranks, 2 k tp + 2 tp numbers a row, are
    gathered, and each rank takes the same ones of them.

    Args:
        logits: fp32 [..., ceil(vocab / tp)], this rank's part, MASK behind the vocabulary.
        k: candidates, 1 to MOST_CANDIDATES.
        vocab_size: tokens, all ranks together.
        parallel: the ranks.
        rank: which of them this is, as a number or i32[1].

    Raises:
        InputError: k is out of range, or token ids are not exact in fp32.
    """
    if not 1 <= k <= MOST_CANDIDATES:
        raise InputError(f"k is {k}; candidates must be 1 to {MOST_CANDIDATES}")
    if vocab_size > 2**24:
        raise InputError(f"vocab_size is {vocab_size}; token ids must be below 2**24")
    count = logits.shape[-1]
    here = torch.arange(count, dtype=torch.int32, device=logits.device) + rank * count
    values, ids = highest(logits, here.to(torch.float32).expand_as(logits), min(k, count))
    largest = values[..., :1].amax(-1, keepdim=True)  # [..., 1]
    weight = torch.exp(logits - largest).sum(-1, keepdim=True)
    if parallel.size > 1:
        mine = torch.cat((values, ids, largest, weight), -1).unsqueeze(-2)
        every = parallel.gather(mine, mine.dim() - 2)  # [..., tp, 2 k + 2]
        width = values.shape[-1]
        values, ids = every[..., :width].flatten(-2), every[..., width : 2 * width].flatten(-2)
        values, ids = highest(values, ids, min(k, vocab_size))
        largest = every[..., -2].amax(-1, keepdim=True)
        weight = (every[..., -1] * torch.exp(every[..., -2] - largest)).sum(-1, keepdim=True)
    values, ids = in_order(values, ids)
    # Damaged logits may leave no id; their log-probability says so.
    ids = ids.clamp(0, vocab_size - 1).to(torch.int32)
    return Candidates(values, ids, weight[..., 0])


def highest(values: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest `values` fp32 [..., count] and their `ids` fp32; lowest ids among equals.

    Values fall; equals are in no particular order.
    """
    top, at = top_k(values, k)
    edge = top[..., -1:]
    above = (top > edge).sum(-1, keepdim=True)  # of the k, those that no equal contends with
    equals, _ = top_k(torch.where(values == edge, -ids, MASK), k)  # the lowest ids first
    place = torch.arange(k, device=values.device)
    behind = (place - above).clamp(min=0)
    return top, torch.where(place < above, ids.gather(-1, at), -equals.gather(-1, behind))


def in_order(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """`values` fp32 [..., k] that fall, and their `ids`, with equals in the order of their ids."""
    k = values.shape[-1]
    rises = (values[..., 1:] != values[..., :-1]).to(torch.float32).cumsum(-1)
    value_class = torch.cat((torch.zeros_like(values[..., :1]), rises), -1)  # 0 for the largest
    _, by_id = top_k(-ids, k)
    place = torch.arange(k, dtype=torch.float32, device=values.device)
    keys = value_class.gather(-1, by_id) * k + place  # distinct, below 2**24
    _, order = top_k(-keys, k)
    at = by_id.gather(-1, order)
    return values.gather(-1, at), ids.gather(-1, at)


def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` largest of `x` fp32 [..., count], falling, and where they are, i64."""
    if x.device.type == "xla":  # torch.topk becomes a sort there
        from torch_neuronx.xla_impl.ops import TopK

        values, at = TopK.apply(x, k, dim=-1)
        return values, at.long()
    values, at = torch.topk(x, k, dim=-1)
    return values, at
