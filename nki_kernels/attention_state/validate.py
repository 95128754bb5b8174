"""What every attention operator asks of its operands and options, and what the NKI kernels have."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from nki_kernels.errors import InputError, require

DTYPES = (torch.float32, torch.bfloat16)
"""Element types of the operators. The references also take float64, as the oracle of tests."""

MAX_D = 128
"""The contraction of q·K runs over the 128 partitions of the tensor engine in one pass. The torch
references take any head size."""


def validate_operands(q: torch.Tensor, others: Mapping[str, torch.Tensor], scale: float) -> None:
    """Check that `others` have q's dtype and device, and the factor of the logits.

    Raises:
        InputError: naming the argument, what it is and what it must be.
    """
    require(
        q.dtype in (*DTYPES, torch.float64),
        f"q has dtype {q.dtype}; float32 and bfloat16 are supported",
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


def validate_for_kernels(d: int, window: int | None, softcap: float | None) -> None:
    """Check that the NKI kernels can do what is asked for.

    Raises:
        InputError: naming the argument that they do not have yet.
    """
    require(
        d <= MAX_D,
        f"q has head size d = {d}; at most {MAX_D} is supported by the NKI kernels; use"
        " kernels='torch'",
    )
    for name, value in (("window", window), ("softcap", softcap)):
        if value is not None:
            raise InputError(
                f"{name} is {value}, and the NKI kernels do not have {name} yet; use"
                " kernels='torch'"
            )
