"""The options that every attention operator shares: what they may be, and which the NKI kernels
have."""

from __future__ import annotations

import math

from nki_kernels.errors import InputError, require

MAX_D = 128
"""The contraction of q·K runs over the 128 partitions of the tensor engine in one pass. The torch
references take any head size."""


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
