"""Rotary position embedding (Su et al., arXiv 2104.09864) from tables made once.

The convention is Hugging Face's half split: of the elements of a head that turn, element i turns
with the one that lies half their number further. The tables are gathered by position, so a compiled
graph holds no sine or power.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.causal_lm.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, d: int) -> Tensor:
    """Radians per position of each pair of a head that turns: fp32 [rotated/2]."""
    rotated = rope.rotated(d)
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
    frequencies = 1.0 / (rope.theta**exponents)  # [rotated/2]
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "longrope":
        return frequencies / torch.tensor(rope.short_factors)
    if rope.kind == "llama3":
        turns = rope.original_max_position * frequencies / (2 * math.pi)  # in the original context
        span = rope.high_freq_factor - rope.low_freq_factor
        keep = ((turns - rope.low_freq_factor) / span).clamp(0.0, 1.0)
        return frequencies * (keep + (1.0 - keep) / rope.factor)
    return frequencies


def tables(rope: RopeConfig, d: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to `positions` - 1: fp32 [positions, rotated/2] each."""
    at = torch.arange(positions, dtype=torch.float32)
    angles = torch.outer(at, inverse_frequencies(rope, d))
    return angles.cos() * rope.magnitude, angles.sin() * rope.magnitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns heads `x` [..., heads, d] by `cos`, `sin` fp32 [..., 1, rotated/2]; keeps x's dtype.

    Elements beyond the first `rotated` of a head pass as they are.
    """
    half = cos.shape[-1]
    low, high = x[..., :half].float(), x[..., half : 2 * half].float()  # [..., heads, rotated/2]
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, x[..., 2 * half :]), dim=-1) if 2 * half < x.shape[-1] else turned
