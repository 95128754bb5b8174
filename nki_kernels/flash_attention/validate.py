"""What flash attention accepts, checked before any work; every refusal names the argument."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nki_kernels.attention_state.validate import (
    validate_operands,
    validate_options,
    validate_sinks,
)
from nki_kernels.errors import require


@dataclass(frozen=True)
class Shape:
    """The sizes of one call, read off its tensors."""

    B: int
    S: int
    h: int
    g: int
    d: int
    S_ctx: int
    start: int = 0

    @property
    def p(self) -> int:
        """Query heads a kv head."""
        return self.h // self.g


def validate(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float,
    start: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> Shape:
    """Check shapes, dtypes, devices and options.

    Returns:
        the sizes of the call.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    require(q.dim() == 4, f"q must be [B, S, h, d], got shape {tuple(q.shape)}")
    B, S, h, d = q.shape
    require(min(q.shape) >= 1, f"q must have no empty dimension, got shape {tuple(q.shape)}")
    require(k.dim() == 3, f"k must be [g, d, B·S_ctx], got shape {tuple(k.shape)}")
    g, slots = k.shape[0], k.shape[2]
    require(g >= 1 and h % g == 0, f"q has h = {h} heads, no multiple of k's g = {g}")
    require(
        tuple(k.shape) == (g, d, slots) and slots % B == 0,
        f"k must be [g, d, B·S_ctx] with d = {d} and B = {B}, got shape {tuple(k.shape)}",
    )
    require(isinstance(start, int) and start >= 0, f"start must be a position >= 0, got {start}")
    require(
        slots // B >= start + S,
        f"k holds {slots // B} keys a prompt, and the queries are at positions {start} to"
        f" {start + S - 1}",
    )
    require(
        tuple(v.shape) == (g, slots, d),
        f"v must be [g, B·S_ctx, d] = {(g, slots, d)}, got shape {tuple(v.shape)}",
    )
    validate_sinks(sinks, h, q)
    validate_operands(q, {"k": k, "v": v}, scale)
    validate_options(window, softcap)
    return Shape(B=B, S=S, h=h, g=g, d=d, S_ctx=slots // B, start=start)
