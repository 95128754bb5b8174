"""What the ordinary kernel accepts: what bifurcated attention does, within the limits of its tiles.

Its arguments are those of `bifurcated_attention`; see that folder's `validate`.
"""

from __future__ import annotations

from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.errors import require

MAX_D = 128
"""Head sizes: a key lies on one partition an element, in one pass."""

MAX_ROWS = 128
"""Query rows n·p of a kv head: a sample's maxima cross partitions in one 128-wide transpose."""


def refusal(shape: Shape) -> str | None:
    """Why the ordinary kernel cannot run this shape, in one sentence; None where it can."""
    if shape.d > MAX_D:
        return f"q has head size d = {shape.d}; the ordinary kernel has at most {MAX_D}"
    rows = shape.n * shape.p
    if rows > MAX_ROWS:
        return (
            f"q has n·p = {shape.n}·{shape.p} = {rows} rows a kv head; the ordinary kernel has at"
            f" most {MAX_ROWS}"
        )
    return None


def validate_for_kernel(shape: Shape) -> None:
    """Check that the ordinary kernel can run this shape.

    Raises:
        InputError: naming the argument, its value and the limit.
    """
    why = refusal(shape)
    require(why is None, str(why))
