"""How the ordinary kernel cuts a call: keys into chunks, queries into tiles, tiles into steps.

Plain integers, known when the kernel is traced; imports nothing, so that it can be copied out with
the kernel.
"""

from __future__ import annotations

PARTITIONS = 128

Segment = tuple[bool, int, int, int]
"""(of the suffix?, first slot, keys a block, blocks)."""
Tile = tuple[int, int, int, int]
"""(sample, samples, kv head, kv heads)."""


def cut(S_ctx: int, S_dec: int, most: int) -> list[list[Segment]]:
    """Cut all slots of a sample into chunks of at most `most` blocks of up to 128 keys.

    The chunks of a call have as equal numbers of blocks as can be.
    """
    total = -(-S_ctx // PARTITIONS) + -(-S_dec // PARTITIONS)
    count = -(-total // most)
    size = -(-total // count)
    chunks: list[list[Segment]] = [[]]
    room = size
    for suffix in (False, True):
        slots = S_dec if suffix else S_ctx
        whole = slots // PARTITIONS
        pieces = [(0, PARTITIONS, whole)]
        if slots > whole * PARTITIONS:
            pieces.append((whole * PARTITIONS, slots - whole * PARTITIONS, 1))
        for piece in pieces:
            start, keys, left = piece
            for _ in range(count + 1):
                if left > 0:
                    if room == 0:
                        chunks.append([])
                        room = size
                    taken = min(left, room)
                    chunks[len(chunks) - 1].append((suffix, start, keys, taken))
                    start += taken * keys
                    left -= taken
                    room -= taken
    return chunks


def column_tiles(samples: int, g: int, rows: int) -> list[Tile]:
    """Tiles of at most 128 columns (sample, kv head, row): whole samples where they fit."""
    tiles = []
    if g * rows <= PARTITIONS:
        step = PARTITIONS // (g * rows)
        for s in range(0, samples, step):
            tiles.append((s, min(step, samples - s), 0, g))
    else:
        step = PARTITIONS // rows
        for s in range(samples):
            for kv in range(0, g, step):
                tiles.append((s, 1, kv, min(step, g - kv)))
    return tiles


def steps(tile: Tile, r: int, pairs: int) -> list[Tile]:
    """Cut a tile into steps of at most `pairs` (sample, kv head) pairs.

    Samples of a step lie one copy of the context apart: they share none, or all of it.
    """
    first, samples, kv, heads = tile
    found = []
    if heads > pairs:
        for s in range(first, first + samples):
            for k in range(kv, kv + heads, pairs):
                found.append((s, 1, k, min(pairs, kv + heads - k)))
    else:
        at = first
        for s in range(first, first + samples):
            if s == at:
                count = min(pairs // heads, first + samples - s)
                if r > 1:
                    count = min(count, r - s % r)
                found.append((s, count, kv, heads))
                at = s + count
    return found
