"""The decode layer's kernels in torch, same arguments; computes in fp32, or fp64 where given it."""

from __future__ import annotations

import torch
from torch import Tensor


def normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows [b, H] (Zhang and Sennrich, arXiv 1910.07467), in fp32 or fp64."""
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide * inverse * gain.to(wide.dtype)


def norm_qkv_rope(
    x: Tensor, gain: Tensor, w: Tensor, cos: Tensor, sin: Tensor, h: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q [b, h, d], k and v [b, g, d] of rows x [b, H]; arguments as `norm_qkv_rope_kernel`."""
    y = normed(x, gain, eps)
    half = cos.shape[-1]
    heads = (y @ w.to(y.dtype)).unflatten(-1, (-1, 2 * half))  # [b, h + 2g, d]
    g = (heads.shape[1] - h) // 2
    low, high = heads[:, : h + g, :half], heads[:, : h + g, half:]
    c, s = cos.unsqueeze(1).to(y.dtype), sin.unsqueeze(1).to(y.dtype)
    turned = torch.cat((low * c - high * s, high * c + low * s), dim=-1)
    return turned[:, :h].to(x.dtype), turned[:, h:].to(x.dtype), heads[:, h + g :].to(x.dtype)


def gated_mlp(
    x: Tensor, gain: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor, eps: float
) -> Tensor:
    """[b, H] of rows x [b, H]; arguments as `gated_mlp_kernel`."""
    y = normed(x, gain, eps)
    hidden = torch.nn.functional.silu(y @ w_gate.to(y.dtype)) * (y @ w_up.to(y.dtype))
    return (hidden @ w_down.to(y.dtype)).to(x.dtype)


def write_kv(k: Tensor, v: Tensor, k_suf: Tensor, v_suf: Tensor, slots: Tensor) -> None:
    """Store k, v [rows, g, d] at rows `slots` of k_suf, v_suf [g, N, d], in place."""
    k_suf[:, slots.long()] = k.transpose(0, 1)
    v_suf[:, slots.long()] = v.transpose(0, 1)
