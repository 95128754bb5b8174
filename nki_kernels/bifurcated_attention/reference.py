"""Bifurcated attention in torch: two products, one against the shared context and one against each
sample's own suffix, joined as attention states. No copy of the context per sample is ever made.

It is the oracle of the kernel, the path on CPU and CUDA, and the device form without NKI: static
shapes, finite masks, no boolean indexing, nothing that reads a value on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from nki_kernels.attention_state.reference import (
    State,
    finish,
    from_logits,
    from_sinks,
    merge,
    scaled_logits,
)
from nki_kernels.bifurcated_attention.validate import Shape, validate


def bifurcated_attention(
    q: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    context_len: torch.Tensor,
    suffix_len: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    query_position: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend r samples of G prompts; see `nki_kernels.torch_ops.bifurcated_attention` for
    arguments.

    Computes in fp32, or in fp64 when the inputs are fp64. Equations 3 and 4 of arXiv 2403.08845,
    with the joined softmax replaced by a merge of two states, which is algebraically the same.
    """
    shape = validate(
        q,
        k_ctx,
        v_ctx,
        k_suf,
        v_suf,
        context_len,
        suffix_len,
        scale=scale,
        window=window,
        softcap=softcap,
        query_position=query_position,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads = q.to(compute).view(shape.G, shape.r, shape.n, shape.g, shape.p, shape.d)

    # The suffix row behind each query token: the last of the n tokens sits in the last live row.
    later = torch.arange(shape.n - 1, -1, -1, dtype=torch.int32, device=q.device)
    own = suffix_len.unsqueeze(-1) - 1 - later  # [G, r, n]
    position = context_len.view(-1, 1, 1) + own
    if query_position is not None:
        position = query_position.unsqueeze(-1) - later

    def wide(cache: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        x = cache.to(compute)
        return x if factors is None else x * factors.view(-1, 1, 1)

    logits = partial(scaled_logits, scale=scale, softcap=softcap)
    keys, values = wide(k_ctx, k_scale), wide(v_ctx, v_scale)
    context = _context_state(shape, heads, keys, values, context_len, position, window, logits)
    keys, values = wide(k_suf, k_scale), wide(v_suf, v_scale)
    suffix = _suffix_state(shape, heads, keys, values, own, window, logits)
    state = merge(context, suffix)
    if sinks is not None:
        state = merge(state, from_sinks(sinks.to(compute).view(shape.g, shape.p), state.o))

    def per_head(x: torch.Tensor) -> torch.Tensor:  # [G, r, n, g, p, ...] -> [G, r, n, h, ...]
        return x.flatten(3, 4).contiguous()

    o = per_head(finish(state)).to(q.dtype)
    if return_state:
        return o, per_head(state.max), per_head(state.sum)
    return o


def _context_state(
    shape: Shape,
    heads: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    context_len: torch.Tensor,
    position: torch.Tensor,
    window: int | None,
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> State:
    """All r·n·p rows of a (group, kv head) against one copy of its context: a matrix product."""
    G, r, n, g, p, d = heads.shape
    rows = heads.permute(0, 3, 1, 2, 4, 5).reshape(G, g, r * n * p, d)
    keys = k_ctx.view(g, d, G, shape.S_ctx).permute(2, 0, 1, 3)  # [G, g, d, S_ctx]
    values = v_ctx.view(g, G, shape.S_ctx, d).permute(1, 0, 2, 3)  # [G, g, S_ctx, d]
    slots = torch.arange(shape.S_ctx, dtype=torch.int32, device=heads.device)
    valid = slots < context_len.view(G, 1, 1, 1)
    if window is not None:
        first = position - window + 1  # [G, r, n]; slot s is position s
        first = first.unsqueeze(-1).expand(G, r, n, p).reshape(G, 1, r * n * p, 1)
        valid = valid & (slots >= first)  # [G, 1, r·n·p, S_ctx]

    state = from_logits(logits(rows, keys), valid, values)

    def per_sample(x: torch.Tensor) -> torch.Tensor:  # [G, g, r·n·p, ...] -> [G, r, n, g, p, ...]
        return x.unflatten(2, (r, n, p)).movedim(1, 3)

    return State(per_sample(state.o), per_sample(state.max), per_sample(state.sum))


def _suffix_state(
    shape: Shape,
    heads: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    own: torch.Tensor,
    window: int | None,
    logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> State:
    """The n·p rows of each (sample, kv head) against its own tokens, causal among the last n."""
    G, r, n, g, p, d = heads.shape
    rows = heads.permute(0, 1, 3, 2, 4, 5).reshape(G, r, g, n * p, d)
    keys = k_suf.view(g, G, r, shape.S_dec, d).permute(1, 2, 0, 4, 3)  # [G, r, g, d, S_dec]
    values = v_suf.view(g, G, r, shape.S_dec, d).permute(1, 2, 0, 3, 4)  # [G, r, g, S_dec, d]
    slots = torch.arange(shape.S_dec, dtype=torch.int32, device=heads.device)
    own = own.view(G, r, 1, n, 1, 1)
    valid = slots <= own  # [G, r, 1, n, 1, S_dec]
    if window is not None:
        valid = valid & (slots > own - window)
    valid = valid.expand(G, r, 1, n, p, shape.S_dec).flatten(3, 4)

    state = from_logits(logits(rows, keys), valid, values)

    def per_sample(x: torch.Tensor) -> torch.Tensor:  # [G, r, g, n·p, ...] -> [G, r, n, g, p, ...]
        return x.unflatten(3, (n, p)).movedim(2, 3)

    return State(per_sample(state.o), per_sample(state.max), per_sample(state.sum))
