"""How much SBUF a call of the decode kernel takes, from its sizes: what `tuning.schedule` must fit.

A tile lives from the step that loads or makes it to the step that last reads it. Steps are those of
`kernel.run`, whose order of jobs is imitated here: loads are `ahead` steps early, folds `lag` late,
and later where units are split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nki_kernels.bifurcated_attention.validate import Shape

PARTITIONS = 128
CONSTANTS = 4096
"""Bytes of identities, diagonals and small tiles a partition; 2.3 to 3.2 KiB are measured."""

FOLD_LAG = 2
"""`timetable.FOLD_LAG`."""

DEPTHS = 4
"""So many times the pipeline's depth of jobs show all that can lie there at once."""


@dataclass(frozen=True)
class Step:
    """One job: a chunk of the context, or of suffixes, against one row tile.

    `blocks` are (number, slots) of what is loaded once for several jobs; `tiles` of 128 keys.
    """

    blocks: tuple[tuple[int, int], ...]
    tiles: int


def waits(plan: Any) -> tuple[int, int]:
    """Steps at most from a chunk's logits to its exponentials, and to its product with V."""
    if not plan.split_units:
        return 1, plan.lag
    weighed = plan.unit_slots // plan.block_slots + 1
    return weighed, weighed + max(plan.lag, plan.turn_lag + FOLD_LAG)


def suffix_span(S_dec: int, suffix_slots: int) -> int:
    """Partitions that a sample's suffix rows take: `plan.suffix_sizes`' rule."""
    spans = range(1, min(S_dec, PARTITIONS) + 1)
    return max(s for s in spans if s == 1 or (S_dec % s == 0 and S_dec // s >= suffix_slots))


def packing(S_dec: int, samples: int, suffix_slots: int) -> tuple[int, int]:
    """Partitions that a tile's suffixes fill, and blocks of as many: `plan.suffix_sizes`' rule."""
    span = suffix_span(S_dec, suffix_slots)
    counts = range(1, min(samples, PARTITIONS // span) + 1)
    together = max(count for count in counts if samples % count == 0)
    return span * together, samples // together


def row_tiles(shape: Shape, tile_samples: int = PARTITIONS) -> int:
    """Tiles of at most 128 query rows (sample, token, head of a kv head) a group."""
    rows = shape.n * shape.p
    if rows <= PARTITIONS:
        return -(-shape.r // min(tile_samples, PARTITIONS // rows))
    tokens = max(1, PARTITIONS // shape.p)
    return shape.r * -(-shape.n // tokens) * -(-shape.p // PARTITIONS)


def sbuf_bytes(plan: Any, shape: Shape, element_bytes: int, gen2: bool) -> int:
    """Bytes a partition alive at once, at most, in program order.

    Args:
        plan: a `tuning.Schedule`.
        shape: the call's sizes.
        element_bytes: of q; caches in fewer are counted as wide.
        gen2: whether the core is a NeuronCore-v2.
    """
    need = _Sizes(plan, shape, element_bytes, gen2)
    steps = list(_steps(plan, shape, need))
    folded = waits(plan)[1]
    alive = [0] * (len(steps) + plan.ahead + folded + 4)

    def hold(first: int, last: int, size: int) -> None:
        for i in range(max(0, first), last + 1):
            alive[i] += size

    users: dict[tuple[int, int], list[int]] = {}
    for i, step in enumerate(steps):
        for first, last, size in need.made(step):
            hold(i + first, i + last, size)
        for block in step.blocks:
            users.setdefault(block, []).append(i)
    for (_, slots), at in users.items():
        keys, values = need.block(slots)
        hold(at[0] - plan.ahead, at[-1], keys)
        hold(at[0] - plan.ahead, at[-1] + folded, values)
    return need.always() + max(alive)


class _Sizes:
    """Bytes a partition of each tile that a call holds."""

    def __init__(self, plan: Any, shape: Shape, element_bytes: int, gen2: bool) -> None:
        self.plan, self.shape, self.element_bytes, self.gen2 = plan, shape, element_bytes, gen2
        self.wide = -(-shape.d // PARTITIONS)  # slices of d
        per_sample = shape.n * shape.p
        whole = per_sample <= PARTITIONS
        self.samples = min(plan.tile_samples, shape.r, PARTITIONS // per_sample) if whole else 1
        self.rows = self.samples * per_sample if whole else PARTITIONS
        # A tile of what is left may pack worse than a whole one.
        tiles = {self.samples, shape.r % self.samples or self.samples}
        packed = [packing(shape.S_dec, samples, plan.suffix_slots) for samples in tiles]
        self.blocks = max(blocks for _, blocks in packed)
        self.keys = max(parts * blocks for parts, blocks in packed)  # a suffix slot of all samples
        self.suffix_slots = shape.S_dec // suffix_span(shape.S_dec, plan.suffix_slots)
        pitch = 1 << (self.rows - 1).bit_length()
        self.chunk_tiles = max(1, plan.chunk_columns // pitch)
        self.suffix_step = min(plan.suffix_tiles, self.chunk_tiles)
        self.loads = -(-self.suffix_slots // self.suffix_step)
        self.tiles = min(row_tiles(shape, self.samples), plan.tiles_per_pass)

    def always(self) -> int:
        """What lies there from the start of a pass to its end, or longer."""
        plan, shape, size = self.plan, self.shape, self.element_bytes
        queries = self.samples * min(shape.n, PARTITIONS)
        masks = self.loads * self.suffix_step * queries * 2
        heads = plan.heads_per_pass
        turned = heads * self.wide * self.rows * size
        results = heads * (shape.d * size + 8)
        states = (2 if plan.late_suffixes else 1) * ((shape.d + 1) * 4 + 32)
        tile = masks + turned + results + states
        lengths = 8 * (shape.G + shape.G * shape.r)
        slots = 3 * 4 * self.suffix_step * queries
        spread = -(-shape.S_ctx // (PARTITIONS * plan.block_slots)) + 8
        flags = 256 * (-(-shape.S_ctx // PARTITIONS**2) if plan.row_chunks else spread)
        loaded = heads * shape.d * size
        maxima = 4 * (-(-shape.S_ctx // 512) + 2) if plan.row_chunks else 0
        apart = 0 if self.gen2 else (-(-self.blocks // 8) * self.suffix_step * size + 4) * self.rows
        fixed = CONSTANTS + lengths + slots + flags + loaded + apart
        return fixed + self.tiles * (tile + maxima)

    def block(self, slots: int) -> tuple[int, int]:
        """K and V of a block of the context."""
        unit = slots * self.element_bytes
        return unit * self.wide * PARTITIONS, unit * self.shape.d

    def made(self, step: Step) -> Iterator[tuple[int, int, int]]:
        """(first step, last step, bytes) of what a job loads for itself and makes, from its own on.

        A step turns the suffix keys of the next job when it needs its own no more.
        """
        weighed, lag = waits(self.plan)
        ahead, size = self.plan.ahead, self.element_bytes
        if not step.blocks:
            tiles = self.blocks * step.tiles
            yield -ahead, lag, tiles * self.shape.d * size  # V
            turned = step.tiles * self.wide * self.keys * size
            if self.plan.dma_turns:
                yield -ahead, 0, turned
            else:
                yield -ahead, 0, tiles * self.shape.d * size
                yield 0, 0, turned
        if not step.blocks or not self.plan.row_chunks:
            yield 1, lag, self.rows * step.tiles * size  # weights
            return
        turned = weighed + (self.plan.turn_lag if self.plan.split_units else 1)
        yield 0, weighed, 4 * step.tiles * PARTITIONS  # logits
        yield 1, turned, step.tiles * PARTITIONS * size
        yield 1, lag, step.tiles * self.rows * size  # weights, turned


def _steps(plan: Any, shape: Shape, need: _Sizes) -> Iterator[Step]:
    """Jobs in the order of `plan.plan_head`, with blocks of full size, as many as matter."""
    depth = plan.ahead + waits(plan)[1] + 2
    slots = -(-shape.S_ctx // PARTITIONS)
    held = plan.resident_slots if plan.row_chunks else plan.block_slots
    slots = min(slots, 2 * max(depth * plan.block_slots, held))
    suffixes = [
        Step((), min(need.suffix_step, need.suffix_slots - at))
        for at in range(0, need.suffix_slots, need.suffix_step)
    ]
    passes = -(-row_tiles(shape, need.samples) // need.tiles)
    late: list[Step] = []
    count = 0
    for head in range(shape.G * passes * shape.g):
        if head > 1 and count > DEPTHS * depth:
            break
        for step in _head(plan, (head * slots, slots, held), suffixes, need):
            if step.blocks or not plan.late_suffixes or plan.row_chunks:
                count += 1
                yield step
        if plan.late_suffixes and not plan.row_chunks:
            count += len(late)
            yield from late
            late = suffixes * need.tiles
    if late:
        yield from [Step((), 0)] * plan.lag  # as the kernel does
    yield from late


def _head(
    plan: Any, context: tuple[int, int, int], suffixes: list[Step], need: _Sizes
) -> Iterator[Step]:
    """The jobs of one kv head: its context, each part of it met by all row tiles, and suffixes."""
    number, slots, held = context
    for first in range(0, slots, held):
        blocks = [
            (number + first + at, min(plan.block_slots, slots - first - at))
            for at in range(0, min(held, slots - first), plan.block_slots)
        ]
        for _ in range(need.tiles):
            if not plan.row_chunks:
                for at in range(0, blocks[0][1], need.chunk_tiles):
                    yield Step(tuple(blocks), min(need.chunk_tiles, blocks[0][1] - at))
                continue
            together = max(1, plan.unit_slots // plan.block_slots)
            if plan.split_units:
                together = 1
            for i in range(0, len(blocks), together):
                unit = tuple(blocks[i : i + together])
                yield Step(unit, sum(size for _, size in unit))
            if first + held >= slots:
                yield from suffixes
    if not plan.row_chunks:
        for _ in range(need.tiles):
            yield from suffixes
