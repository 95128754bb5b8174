"""Tile sizes of the prefill kernel, as data, and the one rule that turns them into a schedule.

Only sizes that the kernel may choose stand here. The numbers are first guesses within SBUF, not
searched yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from nki_kernels.flash_attention.validate import Shape

SBUF_BYTES = 128 * 1024
"""SBUF a partition for states and queries of one pass: 180,224 usable bytes on trn1 and inf2 (AWS's
direct allocation guide, SDK 2.26; later cores have more), less loaded tiles and constants."""

MAX_QUERY_TILES = 16
"""Query tiles of 128 positions a pass: 2,048 queries share one pass over the keys before them."""


@dataclass(frozen=True)
class Schedule:
    """How one call is cut: query tiles whose states stay in SBUF while the keys stream past."""

    query_tiles: int


def schedule(shape: Shape, element_bytes: int) -> Schedule:
    """As many query tiles as fit SBUF with all p heads of a kv head, at most MAX_QUERY_TILES."""
    per_tile = shape.p * (shape.d * 4 + 8 + 128 * element_bytes)
    tiles = -(-shape.S // 128)
    return Schedule(query_tiles=max(1, min(tiles, MAX_QUERY_TILES, SBUF_BYTES // per_tile)))
