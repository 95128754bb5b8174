"""Causal attention in torch, block of queries by block of queries, so that no [S, S] matrix of a
long prompt is ever whole in memory. The oracle of the kernel, and the path on CPU and CUDA."""

from __future__ import annotations

import torch

from nki_kernels.attention_state.reference import (
    State,
    finish,
    from_logits,
    from_sinks,
    merge,
    scaled_logits,
)
from nki_kernels.flash_attention.validate import validate

QUERY_BLOCK = 512
"""Queries a block: bounds the logits in memory to B·h·512·S numbers."""


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend B packed prompts causally; see `nki_kernels.torch_ops.flash_attention` for arguments.

    Computes in fp32, or in fp64 when the inputs are fp64.
    """
    shape = validate(q, k, v, scale=scale, start=start, window=window, softcap=softcap, sinks=sinks)
    B, S, g, p, d = shape.B, shape.S, shape.g, shape.p, shape.d
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    rows = q.to(compute).view(B, S, g, p, d).permute(0, 2, 3, 1, 4)  # [B, g, p, S, d]
    keys = k.to(compute).view(g, d, B, shape.S_ctx).permute(2, 0, 1, 3)  # [B, g, d, S_ctx]
    values = v.to(compute).view(g, B, shape.S_ctx, d).permute(1, 0, 2, 3)  # [B, g, S_ctx, d]
    position = torch.arange(start + S, dtype=torch.int32, device=q.device)

    extra: torch.Tensor | None = None
    if sinks is not None:
        extra = sinks.to(compute).view(1, g, p, 1)

    blocks: list[State] = []
    for row in range(0, S, QUERY_BLOCK):
        end = min(row + QUERY_BLOCK, S)
        own = position[start + row : start + end].unsqueeze(-1)
        stop = start + end  # keys from here on lie after every query of the block
        first = 0  # and up to here before every one's window
        if window is not None:
            first = max(0, start + row - window + 1)
        # [B, g, p·queries, d]: one product a kv head
        block = rows[..., row:end, :].flatten(2, 3)
        logits = scaled_logits(block, keys[..., first:stop], scale, softcap)
        valid = position[first:stop] <= own  # [queries, keys]
        if window is not None:
            valid = valid & (position[first:stop] > own - window)
        state = from_logits(logits, valid.repeat(p, 1), values[..., first:stop, :])
        if extra is not None:
            sink = extra.expand(B, g, p, end - row).flatten(2, 3)
            state = merge(state, from_sinks(sink, state.o))
        blocks.append(state)

    def joined(parts: list[torch.Tensor]) -> torch.Tensor:
        # [B, g, p·queries, ...] each -> [B, S, h, ...]
        heads = [part.unflatten(2, (p, -1)) for part in parts]
        return torch.cat(heads, dim=3).movedim(3, 1).flatten(2, 3).contiguous()

    o = joined([finish(block) for block in blocks]).to(q.dtype)
    if return_state:
        return o, joined([block.max for block in blocks]), joined([block.sum for block in blocks])
    return o
