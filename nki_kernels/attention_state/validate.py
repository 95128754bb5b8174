"""What every attention operator asks of its operands and options, and what the NKI kernels have."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from nki_kernels.errors import require

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Element types of the operators. The references also take float64, as the oracle of tests."""

FP8 = torch.float8_e4m3fn
"""What 8-bit caches are stored as, within ±240: so far its bit patterns mean the same as those of
the e4m3 of NeuronCores before the fourth generation (AWS Neuron SDK, NKI data types)."""

MAX_D = 256
"""The contraction of q·K runs over the 128 partitions of the tensor engine in at most two passes;
the torch references take any head size."""


def validate_operands(q: torch.Tensor, others: Mapping[str, torch.Tensor], scale: float) -> None:
    """Check that `others` have q's dtype and device, and the factor of the logits.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    require(
        q.dtype in (*DTYPES, torch.float64),
        f"q has dtype {q.dtype}; float32, bfloat16 and float16 are supported",
    )
    for name, tensor in others.items():
        require(tensor.dtype == q.dtype, f"{name} has dtype {tensor.dtype}, q has {q.dtype}")
        require(tensor.device == q.device, f"{name} is on {tensor.device}, q is on {q.device}")
    require(math.isfinite(scale) and scale > 0, f"scale must be finite and > 0, got {scale}")


def validate_options(window: int | None, softcap: float | None) -> None:
    """Check the values of `window` and `softcap`.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    require(
        window is None or (isinstance(window, int) and window >= 1),
        f"window must be None or a number of positions >= 1, got {window}",
    )
    require(
        softcap is None or (math.isfinite(softcap) and softcap > 0),
        f"softcap must be None or finite and > 0, got {softcap}",
    )


def validate_sinks(sinks: torch.Tensor | None, h: int, q: torch.Tensor) -> None:
    """Check the logits that heads add to their denominators.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    if sinks is not None:
        validate_factors("sinks", sinks, "h", h, q)


def validate_factors(
    name: str, factors: torch.Tensor, size: str, count: int, q: torch.Tensor
) -> None:
    """Check a number a head: its shape [`count`], its dtype and its device.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    require(
        tuple(factors.shape) == (count,),
        f"{name} must be [{size}] = {(count,)}, got shape {tuple(factors.shape)}",
    )
    expected = torch.float64 if q.dtype == torch.float64 else torch.float32
    require(factors.dtype == expected, f"{name} has dtype {factors.dtype}, not {expected}")
    require(factors.device == q.device, f"{name} is on {factors.device}, q is on {q.device}")


def validate_for_kernels(d: int) -> None:
    """Check that the NKI kernels can do what is asked for.

    Raises:
        InputError: naming the argument, its value and the limit.
    """
    require(
        d <= MAX_D,
        f"q has head size d = {d}; at most {MAX_D} is supported by the NKI kernels; use"
        " kernels='torch'",
    )
