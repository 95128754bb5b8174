"""Operators that the compiler has as custom calls.

`TopK.apply(t, k, dim=dim)` is how neuronx_distributed/operators/topk.py calls it.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TopK:
    """AwsNeuronTopK: floating point numbers only (NCC_EVRF013 of AWS's error codes)."""

    @staticmethod
    def apply(input: Tensor, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
        """The k largest and where they are; indices of the device are 32 bits wide."""
        if input.device.type != "xla":
            raise RuntimeError(f"TopK is an operator of XLA tensors, got one on {input.device}")
        if not input.dtype.is_floating_point:
            raise RuntimeError("NCC_EVRF013: TopK does not support integers")
        from torch_neuronx.xla_impl import recording

        recording.note(f"custom-call AwsNeuronTopK k={k} {tuple(input.shape)}")
        shape = list(input.shape)
        if not 1 <= k <= shape[dim]:
            raise RuntimeError(f"k is {k}, of {shape[dim]}")
        shape[dim] = k
        values = torch.empty(shape, dtype=input.dtype, device=input.device)
        return values, torch.empty(shape, dtype=torch.int32, device=input.device)
