"""Rotary position embedding (Su et al., arXiv 2104.09864) from tables made once.

The convention is Hugging Face's half split: element i of a head turns with element i + d/2. The
tables are gathered by position, so a compiled graph holds no sine or power.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.causal_lm.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, d: int) -> Tensor:
    """Radians per position of each pair of a head: fp32 [d/2]."""
    exponents = torch.arange(0, d, 2, dtype=torch.float32) / d
    frequencies = 1.0 / (rope.theta**exponents)  # [d/2]
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_max_position * frequencies / (2 * math.pi)  # in the original context
        span = rope.high_freq_factor - rope.low_freq_factor
        keep = ((turns - rope.low_freq_factor) / span).clamp(0.0, 1.0)
        return frequencies * (keep + (1.0 - keep) / rope.factor)
    return frequencies


def tables(rope: RopeConfig, d: int, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to `positions` - 1: fp32 [positions, d/2] each."""
    at = torch.arange(positions, dtype=torch.float32)
    angles = torch.outer(at, inverse_frequencies(rope, d))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns heads `x` [..., heads, d] by `cos`, `sin` fp32 [..., 1, d/2]; keeps the dtype of x."""
    low, high = x.float().chunk(2, dim=-1)  # [..., heads, d/2]
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
    return turned.to(x.dtype)
