"""Tile sizes of the decode kernel, as data, and the one rule that turns them into a schedule.

Only sizes that the kernel may choose stand here; what the hardware fixes (128 partitions, 512 fp32
a PSUM bank) stands in the kernel. The numbers are first guesses within SBUF, not searched yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from nki_kernels.bifurcated_attention.validate import Shape

SBUF_BYTES = 160 * 1024
"""SBUF a partition that one pass may plan with: 180,224 usable bytes on trn1 and inf2 (AWS's direct
allocation guide, SDK 2.26; later cores have more), less small tiles and constants."""

KEY_BLOCK = 512
"""Keys a block: what one matmul moves, and one PSUM bank of fp32 logits."""

BUFFERS = 2
"""Copies of each loaded tile that may be alive at once, so that a load can run behind compute."""


@dataclass(frozen=True)
class Schedule:
    """How one call is cut: kv heads and row tiles whose states stay in SBUF together.

    A context tile is loaded once per `tiles_per_pass` row tiles of a group; with the defaults that
    is once for all of them, up to thousands of rows.
    """

    heads_per_pass: int
    tiles_per_pass: int


def row_tiles(shape: Shape) -> int:
    """Tiles of at most 128 query rows (sample, token, head of a kv head) a group."""
    rows = shape.n * shape.p
    if rows <= 128:
        return -(-shape.r // (128 // rows))
    tokens = max(1, 128 // shape.p)
    return shape.r * -(-shape.n // tokens) * -(-shape.p // 128)


def schedule(shape: Shape, element_bytes: int) -> Schedule:
    """The largest pass that fits SBUF: all row tiles first, then as many kv heads as fit."""
    state = shape.d * 4 + 8  # o in fp32, max and sum
    queries = 128 * element_bytes
    loaded = 2 * KEY_BLOCK * element_bytes + 2 * (KEY_BLOCK // 128) * shape.d * element_bytes
    # A kv head needs K and V of context and suffix, its suffix state and the merged one ...
    per_head = BUFFERS * loaded + 2 * state
    tiles_per_pass = max(1, min(row_tiles(shape), (SBUF_BYTES - per_head) // (state + queries)))
    # ... and queries and context state of every row tile.
    per_head += tiles_per_pass * (state + queries)
    return Schedule(
        heads_per_pass=max(1, min(shape.g, SBUF_BYTES // per_head)), tiles_per_pass=tiles_per_pass
    )
