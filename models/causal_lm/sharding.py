"""How a network is split over tp ranks: which degrees are possible, and which part a rank holds.

Key/value heads are split evenly while there are at least tp of them; beyond that `replicas`
consecutive ranks read the same one and share the query heads that do. Where those do not divide,
the last ranks of a head compute heads of zeros, which the output projection drops. Vocabulary and
feed-forward layers are split evenly and padded with zeros where they do not divide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from models.causal_lm.cache import CacheShape
from models.causal_lm.config import ModelConfig
from nki_kernels.errors import InputError

KVSplit = Literal["positions", "replicate"]
"""What the ranks that read the same key/value head hold of its context: each a part of the
positions, or each all of them."""


@dataclass(frozen=True)
class Heads:
    """The part of attention that a rank computes.

    Attributes:
        h: query heads, those of zeros included.
        g: key/value heads.
        first: the first of them.
        replicas: ranks that read the same key/value heads.
        first_query: the first of the query heads.
        queries: how many of them are the network's own.
    """

    h: int
    g: int
    first: int
    replicas: int
    first_query: int
    queries: int


MOST_RANKS = 64
"""Up to which powers of two are offered where query heads are padded: the logical cores of the
largest instances (AWS's Trn2 UltraServer)."""


def legal_degrees(config: ModelConfig) -> list[int]:
    """The degrees that heads can be split by: those that divide them, then powers of two."""
    h, g = config.h, config.g
    found = {tp for tp in range(1, h + 1) if h % tp == 0 and (g % tp == 0 or tp % g == 0)}
    padded = (1 << i for i in range(MOST_RANKS.bit_length()))
    return sorted(found | {tp for tp in padded if tp % g == 0})


def check_degree(config: ModelConfig, tp: int) -> None:
    """Refuses a degree that heads cannot be split by.

    Raises:
        InputError: naming the degrees that are possible.
    """
    legal = legal_degrees(config)
    if tp not in legal:
        raise InputError(
            f"tp is {tp}; {config.h} query heads and {config.g} key/value heads can be split over "
            f"{', '.join(map(str, legal))} ranks"
        )


def check_kv_split(kv_split: str) -> None:
    """Refuses an unknown way.

    Raises:
        InputError: naming those that there are.
    """
    if kv_split not in get_args(KVSplit):
        raise InputError(f"kv_split is {kv_split!r}; it must be {' or '.join(get_args(KVSplit))}")


def split_heads(config: ModelConfig, tp: int, rank: int) -> Heads:
    """What rank `rank` of `tp` computes.

    Raises:
        InputError: see `check_degree`.
    """
    check_degree(config, tp)
    g = max(config.g // tp, 1)
    replicas = max(tp // config.g, 1)
    first = rank // replicas * g
    h = -(-g * config.p // replicas)
    end = (first + g) * config.p  # of the query heads that read these
    first_query = min(first * config.p + rank % replicas * h, end)
    return Heads(h, g, first, replicas, first_query, queries=min(h, end - first_query))


@dataclass(frozen=True)
class KVBytes:
    """Bytes of keys and values that a rank holds, of all layers.

    Attributes:
        context: of the prompts.
        suffix: of the samples' own tokens.
    """

    context: int
    suffix: int


def kv_bytes(
    config: ModelConfig, shape: CacheShape, tp: int, kv_split: KVSplit, itemsize: int
) -> KVBytes:
    """What each of `tp` ranks holds of a cache of `shape`, elements of `itemsize` bytes.

    A decode step reads the same bytes at most: all slots of the context, and of the suffix.

    Raises:
        InputError: see `check_degree` and `check_kv_split`.
    """
    check_kv_split(kv_split)
    heads = split_heads(config, tp, 0)
    parts = heads.replicas if kv_split == "positions" else 1
    position = 2 * config.layers * heads.g * config.d * itemsize
    return KVBytes(
        context=position * shape.G * -(-shape.S_ctx // parts),
        suffix=position * shape.suffix_slots,
    )


@dataclass(frozen=True)
class Shard:
    """The part of a checkpoint's weight that a rank holds.

    Attributes:
        whole: shape of the weight.
        dim: the dimension that is split; None when the rank holds all of it.
        start: first index of the part in that dimension.
        stop: behind its last. What lies at or beyond the end of the weight is zero.
        limit: where it ends for this rank, if before its end.
    """

    whole: tuple[int, ...]
    dim: int | None = None
    start: int = 0
    stop: int = 0
    limit: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        if self.dim is None:
            return self.whole
        return (*self.whole[: self.dim], self.stop - self.start, *self.whole[self.dim + 1 :])

    @property
    def live(self) -> tuple[int, int]:
        """First index and the one behind the last of what is not padding."""
        assert self.dim is not None
        size = self.whole[self.dim] if self.limit is None else self.limit
        return min(self.start, size), min(self.stop, size)

    def take(self, weight: Tensor) -> Tensor:
        """The part of `weight` [whole], in memory of its own."""
        if self.dim is None:
            return weight.clone()
        start, stop = self.live
        part = weight.narrow(self.dim, start, stop - start)
        missing = (self.stop - self.start) - (stop - start)
        behind = [0, 0] * (weight.dim() - 1 - self.dim)  # F.pad counts from the last dimension
        return F.pad(part, [*behind, 0, missing]) if missing else part.clone()


# The projections whose outputs are split, and those whose inputs are.
_COLUMNS = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head"}
_ROWS = {"o_proj", "down_proj"}


def shards(network: nn.Module, config: ModelConfig, tp: int, rank: int) -> dict[str, Shard]:
    """The part that each of `network`'s weights is, by its name; a tied weight has one name."""
    heads = split_heads(config, tp, rank)
    wholes = {
        "q_proj": config.h * config.d,
        "k_proj": config.g * config.d,
        "v_proj": config.g * config.d,
        "o_proj": config.h * config.d,
        "gate_proj": config.intermediate_size,
        "up_proj": config.intermediate_size,
        "down_proj": config.intermediate_size,
        "embed_tokens": config.vocab_size,
        "lm_head": config.vocab_size,
    }
    found = {}
    for name, weight in network.named_parameters():
        *_, module, kind = name.split(".")
        if module == "rank_util":
            continue  # the rank itself
        if module == "cache":  # factors of key/value heads
            found[name] = Shard((config.g,), 0, heads.first, heads.first + heads.g)
            continue
        dim = 0 if module in _COLUMNS else 1 if module in _ROWS and kind == "weight" else None
        shape = list(weight.shape)
        if dim is None:
            found[name] = Shard(tuple(shape))
            continue
        length = shape[dim]
        start, limit = rank * length, None
        if module in ("k_proj", "v_proj"):
            start = heads.first * config.d
        elif module in ("q_proj", "o_proj"):
            start = heads.first_query * config.d
            limit = start + heads.queries * config.d
        shape[dim] = wholes[module]
        found[name] = Shard(tuple(shape), dim, start, start + length, limit)
    return found
