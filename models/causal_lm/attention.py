"""Attention of a rank's heads: the keys and values it writes, and what it asks of the operators.

At tp ranks above g key/value heads, `replicas` ranks read the same head. Each computes the head's
keys and values, and keeps all samples' suffixes; of the context it keeps all positions, or, split,
a block of them. Then each attends for the query heads of all replicas over its own keys, and the
states are merged (nki_kernels/attention_state): the softmax over a union of keys is the merge of
the softmaxes over its parts. A sample's suffix counts on one of the replicas.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.causal_lm import rope
from models.causal_lm.cache import KVCache
from models.causal_lm.config import ModelConfig
from models.causal_lm.norm import norm_or_nothing
from models.causal_lm.sharding import split_heads
from models.parallel import TensorParallel
from nki_kernels import bifurcated_attention, flash_attention
from nki_kernels.attention_state.reference import finish, merge, resume

# A longer prompt attends chunk by chunk: one call unrolls all its loops, and its instructions grow
# with the square of the prompt (nki_kernels/flash_attention/README.md, "Chunks").
WHOLE = 4096  # positions that one call takes
CHUNK = 2048  # positions of a call otherwise


@dataclass(frozen=True)
class Prefill:
    """Where a prompt's keys go: of its positions `kept`, to `slots` of the context."""

    slots: Tensor  # i64[stored]
    kept: Tensor | None = None  # i64[stored]; None is all, in order


@dataclass(frozen=True)
class Decode:
    """Where a step's keys go, `rows` i64[G*r*n] of the suffix, and what each sample sees."""

    rows: Tensor
    context_len: Tensor  # i32[G]
    suffix_len: Tensor  # i32[G, r], this step's n tokens included
    part: ContextPart | None = None


@dataclass(frozen=True)
class ContextPart:
    """What a rank sees that holds a block of the context's positions.

    `Decode` has the lengths of all there is, and says where to write; these say what to read.
    """

    context_len: Tensor  # i32[G], of the block's slots
    suffix_len: Tensor  # i32[G, r], 0 where another replica answers for the sample's suffix
    query_position: Tensor  # i32[G, r], of the last query token, counted from the block's start
    heads: Tensor  # i64[h], this rank's query heads among those of all replicas


def attend_prompt(
    q: Tensor, k: Tensor, v: Tensor, whole: int = WHOLE, chunk: int = CHUNK, **options: Any
) -> Tensor:
    """Causal attention of a prompt, in chunks of queries where it is longer than `whole`.

    Chunks begin where S alone says, so a graph of one S has them as constants; those that are
    multiples of 128 change no bit.

    Args:
        q: [1, S, h, d].
        k: [g, d, S].
        v: [g, S, d].
        whole: positions that one call takes.
        chunk: positions of a call otherwise; the last has what is left.
        options: of `flash_attention`.

    Returns:
        [1, S, h, d].
    """
    S = q.shape[1]
    if whole >= S:
        return flash_attention(q, k, v, **options)
    parts = [
        flash_attention(q[:, start : start + chunk], k, v, start=start, **options)
        for start in range(0, S, chunk)
    ]
    return torch.cat(parts, 1)


class Attention(nn.Module):
    """Grouped-query attention over the shared context and each sample's suffix.

    What layer `layer` sees of them is the config's `window(layer)`. With `replicas`, those ranks
    hold a part of the context each.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        parallel: TensorParallel,
        replicas: TensorParallel | None,
        kernels: str,
        target: str,
        attention: str,
    ) -> None:
        super().__init__()
        heads = split_heads(config, parallel.size, parallel.rank)
        self.h, self.g, self.d = heads.h, heads.g, config.d
        self.replicas = replicas
        self.attend: dict[str, Any] = {  # options of the operators
            "scale": config.scale,
            "window": config.window(layer),
            "softcap": config.attention_softcap,
            "kernels": kernels,
            "target": target,
        }
        self.way = attention
        size, bias = config.hidden_size, config.qkv_bias
        q_size, kv_size = (each * parallel.size * config.d for each in (heads.h, heads.g))
        self.q_proj = parallel.column(size, q_size, bias, dtype, device)
        self.k_proj = parallel.column(size, kv_size, bias, dtype, device)
        self.v_proj = parallel.column(size, kv_size, bias, dtype, device)
        self.o_proj = parallel.row(q_size, size, config.o_bias, dtype, device)
        self.q_norm = norm_or_nothing(config.qk_norm, config, config.d, dtype, device)
        self.k_norm = norm_or_nothing(config.qk_norm, config, config.d, dtype, device)
        self.cache = KVCache(config.kv_dtype, heads.g, device)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, step: Prefill | Decode) -> Tensor:
        """Attends from `x` [1, S, hidden] or [G, r, n, hidden]; `cos`, `sin` as `rope.rotate`'s."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.h, self.d)))  # [..., h, d]
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.g, self.d)))  # [..., g, d]
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        v = self.v_proj(x).unflatten(-1, (self.g, self.d))  # [..., g, d]
        k, v = k.flatten(0, -3), v.flatten(0, -3)  # [tokens, g, d]
        if isinstance(step, Prefill):
            o = self._prefill(q, k, v, step)
        else:
            o = self._decode(q, k, v, step)
        return self.o_proj(o.flatten(-2))

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, step: Prefill) -> Tensor:
        k = k.permute(1, 2, 0).contiguous()  # [g, d, S]
        v = v.transpose(0, 1).contiguous()  # [g, S, d]
        if step.kept is None:
            self.cache.write_context(k, v, step.slots)
        else:
            k_kept, v_kept = k.index_select(2, step.kept), v.index_select(1, step.kept)
            self.cache.write_context(k_kept, v_kept, step.slots)
        return attend_prompt(q, k, v, **self.attend)  # [1, S, h, d]

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, step: Decode) -> Tensor:
        cache = self.cache
        cache.write_suffix(k.transpose(0, 1), v.transpose(0, 1), step.rows)  # [g, G*r*n, d]
        if step.part is not None:
            return self._decode_part(q, step.part)
        return bifurcated_attention(
            q,
            *cache.read(),
            step.context_len,
            step.suffix_len,
            attention=self.way,
            **(self.attend | cache.factors()),
        )  # [G, r, n, h, d]

    def _decode_part(self, q: Tensor, part: ContextPart) -> Tensor:
        """As `_decode`: over this rank's keys, then merged with what the other replicas saw."""
        assert self.replicas is not None
        cache = self.cache
        windowed = self.attend["window"] is not None
        o, top, total = bifurcated_attention(
            self.replicas.gather(q, 3),  # [G, r, n, replicas * h, d]
            *cache.read(),
            part.context_len,
            part.suffix_len,
            query_position=part.query_position if windowed else None,
            return_state=True,
            attention=self.way,
            **(self.attend | cache.factors()),
        )
        state = torch.cat((o.float(), top.unsqueeze(-1), total.unsqueeze(-1)), -1)
        states = self.replicas.gather(state.unsqueeze(0), 0)  # [replicas, G, r, n, heads, d + 2]
        mine = states.index_select(4, part.heads)  # [replicas, G, r, n, h, d + 2]
        merged = functools.reduce(
            merge, [resume(each[..., :-2], each[..., -2], each[..., -1]) for each in mine]
        )
        return finish(merged).to(q.dtype)  # [G, r, n, h, d]
