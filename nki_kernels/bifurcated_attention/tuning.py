"""Sizes of the decode kernel, as data, and the one rule that turns them into a schedule.

Only sizes that the kernel may choose stand here; what the hardware fixes (128 partitions, 512 fp32
a PSUM bank) stands in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

from nki_kernels.bifurcated_attention.validate import Shape

SBUF_BYTES = 160 * 1024
"""SBUF a partition that a call may plan with: 180,224 usable bytes on trn1 and inf2 (AWS's direct
allocation guide, SDK 2.26; later cores have more), less small tiles and constants."""

LOADED_BYTES = 96 * 1024
"""The part of it that loaded keys and values may take; the rest holds queries and states."""


@dataclass(frozen=True)
class Schedule:
    """How one call is cut. Every field is an argument of the kernel.

    Attributes:
        heads_per_pass: kv heads whose queries and outputs are moved together.
        tiles_per_pass: row tiles that meet a block of the context while it is in SBUF; the context
            is read once for as many.
        block_slots: context keys a partition of one load: 128 times as many keys, and runs of
            block_slots · d numbers of V. At most 128.
        suffix_slots: suffix rows a partition takes at least, where S_dec divides so: runs of
            suffix_slots · d numbers.
        suffix_tiles: of these, rows a partition of one load.
        chunk_columns: logits a partition of one chunk, at most 2,048 (half of PSUM).
        ahead: chunks by which loads run ahead in program order.
    """

    heads_per_pass: int
    tiles_per_pass: int
    block_slots: int = 16
    suffix_slots: int = 8
    suffix_tiles: int = 8
    chunk_columns: int = 1024
    ahead: int = 2


def row_tiles(shape: Shape) -> int:
    """Tiles of at most 128 query rows (sample, token, head of a kv head) a group."""
    rows = shape.n * shape.p
    if rows <= 128:
        return -(-shape.r // (128 // rows))
    tokens = max(1, 128 // shape.p)
    return shape.r * -(-shape.n // tokens) * -(-shape.p // 128)


def schedule(shape: Shape, element_bytes: int) -> Schedule:
    """The largest pass that fits SBUF: all row tiles first, then as many kv heads as fit."""
    sizes = Schedule(1, 1)
    d = shape.d
    alive = sizes.ahead + 3  # jobs that hold what they loaded
    block_slots = sizes.block_slots
    while block_slots > 1 and alive * block_slots * (128 + d) * element_bytes > LOADED_BYTES:
        block_slots //= 2
    # K rows, their transpose and V, of all samples of a row tile; eight share partitions.
    samples = max(1, min(shape.r, 128 // (shape.n * shape.p)))
    suffix_tiles = sizes.suffix_tiles
    row = samples * (2 * d + 128) * element_bytes
    while suffix_tiles > 1 and suffix_tiles * row // 8 > LOADED_BYTES:
        suffix_tiles //= 2

    state = 2 * (d + 1) * 4 + 64
    masks = 128 * (2 * -(-shape.S_dec // 16) + 8 * suffix_tiles)
    per_head = (2 * d + 128) * element_bytes + 8
    room = SBUF_BYTES - LOADED_BYTES
    tiles = max(1, min(row_tiles(shape), room // (state + masks + per_head)))
    heads = max(1, min(shape.g, (room // tiles - state - masks) // per_head))
    return Schedule(heads, tiles, block_slots, sizes.suffix_slots, suffix_tiles)
