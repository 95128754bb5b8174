"""What bifurcated attention accepts, checked before any work; every refusal names the argument."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nki_kernels.attention_state.validate import (
    FP8,
    validate_factors,
    validate_operands,
    validate_options,
    validate_sinks,
)
from nki_kernels.errors import require


@dataclass(frozen=True)
class Shape:
    """The sizes of one call, read off its tensors."""

    G: int
    r: int
    n: int
    h: int
    g: int
    d: int
    S_ctx: int
    S_dec: int

    @property
    def p(self) -> int:
        """Query heads a kv head."""
        return self.h // self.g


def validate(
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
) -> Shape:
    """Check shapes, dtypes, devices and options; values are `validate_lengths`' business.

    Returns:
        the sizes of the call.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    require(q.dim() == 5, f"q must be [G, r, n, h, d], got shape {tuple(q.shape)}")
    G, r, n, h, d = q.shape
    require(min(q.shape) >= 1, f"q must have no empty dimension, got shape {tuple(q.shape)}")
    require(k_ctx.dim() == 3, f"k_ctx must be [g, d, G·S_ctx], got shape {tuple(k_ctx.shape)}")
    g = k_ctx.shape[0]
    require(g >= 1 and h % g == 0, f"q has h = {h} heads, no multiple of k_ctx's g = {g}")
    slots = k_ctx.shape[2]
    require(
        k_ctx.shape[1] == d and slots >= G and slots % G == 0,
        f"k_ctx must be [g, d = {d}, a multiple of G = {G} slots], got shape {tuple(k_ctx.shape)}",
    )
    require(
        tuple(v_ctx.shape) == (g, slots, d),
        f"v_ctx must be [g, G·S_ctx, d] = {(g, slots, d)}, got shape {tuple(v_ctx.shape)}",
    )
    require(k_suf.dim() == 3, f"k_suf must be [g, G·r·S_dec, d], got shape {tuple(k_suf.shape)}")
    rows = k_suf.shape[1]
    require(
        k_suf.shape[0] == g and k_suf.shape[2] == d and rows >= G * r and rows % (G * r) == 0,
        f"k_suf must be [g = {g}, a multiple of G·r = {G * r} rows, d = {d}],"
        f" got shape {tuple(k_suf.shape)}",
    )
    require(
        v_suf.shape == k_suf.shape,
        f"v_suf must have k_suf's shape {tuple(k_suf.shape)}, got {tuple(v_suf.shape)}",
    )
    require(
        tuple(context_len.shape) == (G,),
        f"context_len must be [G] = {(G,)}, got shape {tuple(context_len.shape)}",
    )
    require(
        tuple(suffix_len.shape) == (G, r),
        f"suffix_len must be [G, r] = {(G, r)}, got shape {tuple(suffix_len.shape)}",
    )
    integers = {"context_len": context_len, "suffix_len": suffix_len}
    if query_position is not None:
        require(
            tuple(query_position.shape) == (G, r),
            f"query_position must be [G, r] = {(G, r)}, got shape {tuple(query_position.shape)}",
        )
        require(window is not None, "query_position says where a window ends; pass a window")
        integers["query_position"] = query_position
    for name, lengths in integers.items():
        require(lengths.dtype == torch.int32, f"{name} must be int32, got {lengths.dtype}")
        require(lengths.device == q.device, f"{name} is on {lengths.device}, q is on {q.device}")
    caches = {"k_ctx": k_ctx, "v_ctx": v_ctx, "k_suf": k_suf, "v_suf": v_suf}
    narrow = k_ctx.dtype == FP8
    if narrow:
        for name, cache in caches.items():
            require(cache.dtype == FP8, f"{name} has dtype {cache.dtype}, k_ctx has {FP8}")
            require(cache.device == q.device, f"{name} is on {cache.device}, q is on {q.device}")
    validate_operands(q, {} if narrow else caches, scale)
    validate_options(window, softcap)
    validate_sinks(sinks, h, q)
    for name, factors in (("k_scale", k_scale), ("v_scale", v_scale)):
        if factors is not None:
            require(narrow, f"{name} is a factor of {FP8}, and k_ctx has dtype {k_ctx.dtype}")
            validate_factors(name, factors, "g", g, q)
    return Shape(G=G, r=r, n=n, h=h, g=g, d=d, S_ctx=slots // G, S_dec=rows // (G * r))


def validate_lengths(shape: Shape, context_len: torch.Tensor, suffix_len: torch.Tensor) -> None:
    """Check that the lengths fit the buffers. Reads values, so only for tensors the host holds.

    Raises:
        InputError: naming the argument, the value and the limit.
    """
    for name, lengths, slots, limit in (
        ("context_len", context_len, shape.S_ctx, "S_ctx"),
        ("suffix_len", suffix_len, shape.S_dec, "S_dec"),
    ):
        low, high = int(lengths.min()), int(lengths.max())
        require(
            low >= 0 and high <= slots,
            f"{name} must lie in 0..{limit} = {slots}, got {low if low < 0 else high}",
        )
