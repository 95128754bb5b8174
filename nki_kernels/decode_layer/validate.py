"""What the decode layer's kernels accept."""

from __future__ import annotations

from nki_kernels.errors import require

PARTITIONS = 128
BANK = 512


def validate_rows(b: int, H: int) -> None:
    """Check a step's rows x [b, H].

    Raises:
        InputError: naming the argument, its value and the limit.
    """
    require(1 <= b <= PARTITIONS, f"x must have 1 to {PARTITIONS} rows b, got {b}")
    require(
        H >= PARTITIONS and H % PARTITIONS == 0,
        f"x must have H a multiple of {PARTITIONS} columns, got {H}",
    )


def validate_heads(h: int, g: int, d: int) -> None:
    """Check the heads of norm + QKV + RoPE.

    Raises:
        InputError: naming the argument, its value and the limit.
    """
    require(g >= 1 and h >= 1 and h % g == 0, f"h must be a multiple of g = {g}, got {h}")
    require(2 <= d <= BANK and d % 2 == 0, f"d must be even and at most {BANK}, got {d}")
