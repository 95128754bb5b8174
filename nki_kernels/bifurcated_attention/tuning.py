"""Sizes of the decode kernel, as data, and the one rule that turns them into a schedule.

Only sizes that the kernel may choose stand here; what the hardware fixes (128 partitions, 512 fp32
a PSUM bank) stands in the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from nki_kernels.bifurcated_attention.memory import packing, row_tiles, sbuf_bytes
from nki_kernels.bifurcated_attention.validate import Shape

USABLE_BYTES = {"gen2": 180_224, "gen3": 212_984}
"""What a call must fit: usable bytes a partition on NeuronCore-v2 (AWS's direct allocation guide,
SDK 2.26) and v3; v4 has more."""

SUFFIX_SLOTS = 8
"""Suffix rows a partition takes at least, where S_dec divides so."""

JOIN_SLOTS = 10_240
"""Context slots from which on two cores of a logical one share out the context of few rows: by the
timeline that wins from 8.5K on with 4 rows, from 11K on with 64."""

ROW_TILE_US = {"gen2": (0.5, 0.05), "gen3": (3.0, 0.12)}
"""What one more row tile costs, and that for each 128 slots of the context that it meets, too.
A quarter of it where other heads' work goes on meanwhile."""

SUFFIX_BLOCK_US = {"gen2": 1.9, "gen3": 0.52}
"""What one more block of samples that share partitions costs. Both are read off the timeline, at 8K
with 11 to 127 samples of 1 to 8 rows."""

QUERY_BYTES = 64 * 1024
"""The part of it for queries, states and masks of the row tiles and heads of a pass."""

FEW_ROWS = 16
"""Query rows up to which a block of 64 slots would be a single chunk: it waits for all of its load.
"""

BLOCK_SLOTS = (64, 32, 16, 8, 4, 2, 1)
"""Most keys a partition of one load of the context, from the longest runs down."""


LONG_CHUNK_ROWS = 64
"""Query rows of a tile from which a fold that waits a chunk more ends no later."""

ROWS_FIRST = 96
"""Query rows of a tile from which they may lie on partitions."""

HALF_ROWS = 64
"""Rows from which NeuronCore-v3 waits for a chunk's weights unless it is folded a step later."""

SHARED_ROWS = 4
"""Rows that share a suffix from which that pays: with fewer, suffixes are most of a call. On
NeuronCore-v3 a full tile of fewer does so too where its context is as long as all its suffixes."""

MANY_SHARED = 8
"""Rows a suffix from which NeuronCore-v3 takes shorter runs of it: DMA has time for them."""

SOME_ROWS_GEN2: dict[str, Any] = {
    "block_slots": 16,
    "ramp": 8,
    "ahead": 2,
    "values_late": 4,
    "lag": 3,
}
SOME_ROWS_GEN3: dict[str, Any] = {
    "block_slots": 32,
    "ramp": 16,
    "ahead": 2,
    "values_late": 3,
    "lag": 3,
}
ONE_HEAD_GEN3 = {"block_slots": 16, "ramp": 8}
"""What a call of fewer rows takes instead of the rule below; of a single head always, of several
below HALF_ROWS. Keys of 1,024 to 2,048 positions a load: the first come soon, the last leave little
to do. Longer ones move no faster."""

SHORT_RUN = 4
"""Suffix rows a partition of a single head's samples, or of ones with many rows: longer runs cost
columns of other samples' slots, shorter ones DMA by its high estimate."""

ROWS_GEN2: dict[str, Any] = {
    "row_chunks": True,
    "block_slots": 16,
    "ramp": 8,
    "suffix_slots": 4,
    "ahead": 2,
    "values_late": 4,
    "turns": 8,
    "copy_share": 3,
    "lag": 3,
    "unit_slots": 16,
    "resident_slots": 16,
}
FOUR_TILES_GEN2 = {
    "block_slots": 8,
    "ahead": 3,
    "turns": 4,
    "copy_share": 2,
    "lag": 4,
    "chunk_columns": 768,
}
"""And with four row tiles or more."""

ROWS_GEN3: dict[str, Any] = {
    "row_chunks": True,
    "block_slots": 16,
    "ramp": 8,
    "suffix_slots": 4,
    "ahead": 2,
    "turn_share": 5,
    "lag": 5,
    "unit_slots": 32,
    "resident_slots": 48,
}
"""What such a call takes instead of the rule below, with more than one row tile."""

ONE_TILE_GEN2 = {
    "block_slots": 6,
    "ramp": 6,
    "suffix_slots": 4,
    "ahead": 1,
    "values_late": 2,
    "turns": 16,
    "copy_share": 0,
    "lag": 2,
    "unit_slots": 8,
    "resident_slots": 16,
}
ONE_TILE_GEN3 = {"ramp": 14, "turns": 8, "lag": 3, "unit_slots": 18, "values_late": 3}
"""And with one: there DMA is the limit, and the end of the call is not hidden."""
SPLIT_GEN3: dict[str, Any] = {
    "split_units": True,
    "block_slots": 8,
    "turn_share": 5,
    "copy_share": 8,
    "ahead": 4,
    "values_late": 5,
    "turn_lag": 5,
    "start_jobs": 3,
    "lag": 6,
    "unit_slots": 24,
    "resident_slots": 40,
    "suffix_slots": 2,
}
"""And on NeuronCore-v3, where 16-bit weights of several tiles are turned by DMA in part."""

TWO_TILES_GEN3 = {
    "ramp": 7,
    "ramp_down": 4,
    "values_late": 3,
    "copy_share": 7,
    "turn_lag": 2,
    "start_jobs": 4,
    "resident_slots": 24,
}
FOUR_TILES_GEN3 = {
    "values_late": 3,
    "turn_share": 6,
    "copy_share": 6,
    "turn_lag": 4,
    "start_jobs": 4,
    "lag": 9,
    "unit_slots": 32,
    "resident_slots": 48,
}
EIGHT_TILES_GEN3 = {
    "copy_share": 4,
    "ahead": 5,
    "values_late": 3,
    "turn_lag": 6,
    "start_jobs": 4,
    "lag": 8,
    "unit_slots": 48,
}
"""And with so many row tiles, or more."""

FEW_SHARED_GEN3 = {
    "suffix_slots": 4,
    "ahead": 3,
    "values_late": 1,
    "turn_lag": 4,
    "start_jobs": 6,
    "lag": 8,
    "unit_slots": 16,
    "resident_slots": 32,
}
FOUR_TILES_FEW_SHARED_GEN3 = {
    "copy_share": 5,
    "ahead": 6,
    "values_late": 2,
    "turn_lag": 5,
    "start_jobs": 4,
    "lag": 9,
    "unit_slots": 32,
}
"""And with fewer than MANY_SHARED a suffix: DMA has more of them to bring, and turns less."""

ONE_TILE_FEW_SHARED_GEN3 = {
    "block_slots": 15,
    "ramp": 10,
    "ramp_down": 15,
    "suffix_slots": 4,
    "ahead": 1,
    "turn_share": 2,
    "copy_share": 5,
}
ONE_TILE_MANY_SHARED_GEN3 = {
    "block_slots": 14,
    "suffix_slots": 2,
    "ahead": 1,
    "turn_share": 4,
    "copy_share": 7,
    "ramp_down": 10,
}
"""What a call with one row tile takes on NeuronCore-v3 below MANY_SHARED a suffix, and above."""

LITTLE_SHARED_GEN3 = {"turn_share": 0}
ONE_TILE_LITTLE_SHARED_GEN3 = {
    "block_slots": 32,
    "ramp": 16,
    "ramp_down": 16,
    "suffix_slots": 8,
    "ahead": 1,
    "values_late": 1,
    "turns": 4,
    "copy_share": 4,
    "unit_slots": 32,
}
"""And with fewer than SHARED_ROWS: DMA has the suffixes to bring and no time to turn weights."""


@dataclass(frozen=True)
class Schedule:
    """How one call is cut. Every field is an argument of the kernel.

    Attributes:
        heads_per_pass: kv heads whose queries and outputs are moved together.
        tile_samples: samples of a row tile, at most: so many that their suffixes pack and fit.
        tiles_per_pass: row tiles that meet a block of the context while it is in SBUF; the context
            is read once for as many.
        block_slots: context keys a partition of one load: 128 times as many keys, and runs of
            block_slots · d numbers of V. At most 128.
        suffix_slots: suffix rows a partition takes at least, where S_dec divides so: runs of
            suffix_slots · d numbers.
        suffix_tiles: of these, rows a partition of one load.
        chunk_columns: logits a partition of one chunk, at most 2,048 (half of PSUM).
        ramp: like block_slots, of a call's very first and very last block; those between double.
        ahead: chunks by which loads run ahead in program order.
        turns: PSUM banks of suffix keys that are transposed between two chunks.
        dma_turns: whether DMA transposes them instead (NeuronCore-v3 and later, 16-bit numbers).
        late_suffixes: whether a kv head's suffixes come behind the context of the next head, so
            that the last loads of a call find everything else computed.
        row_chunks: whether chunks of the context have query rows on partitions (row_chunks.py; not
            on NeuronCore-v2 with a window or soft-cap). The fields below are about them.
        turn_share: of every 8 groups of 8 tiles of weights, those that DMA turns (as dma_turns).
        copy_share: of every 8 groups that TensorE turns, those that VectorE copies out of PSUM;
            ScalarE copies the others.
        lag: chunks between the logits of one and its product with V, at least 2.
        unit_slots: keys a partition that share one maximum. Changes the rounding.
        resident_slots: of as many keys a partition the blocks stay in SBUF, where one row tile
            after the other meets them.
        values_late: chunks by which values are loaded behind keys, at most ahead + lag; of split
            units those of the context alone.
        ramp_down: like ramp, of a call's very last block alone; 0 is ramp.
        split_units: whether each block of as many keys as share one maximum is a chunk of its own
            from its logits to its product with V (timetable.py; not on NeuronCore-v2). Blocks have
            at most 8 slots then. The fields below are about it.
        turn_lag: chunks between the exponentials of one and TensorE turning them.
        start_jobs: of so many chunks at the start of a call TensorE turns all weights.
        join_slots: context slots from which on two cores of one logical core share them out and
            join their states, where a kv head has few rows and nothing else divides.
    """

    heads_per_pass: int
    tiles_per_pass: int
    tile_samples: int = 128
    block_slots: int = 16
    suffix_slots: int = SUFFIX_SLOTS
    suffix_tiles: int = 8
    chunk_columns: int = 1024
    ramp: int = 4
    ahead: int = 1
    turns: int = 4
    dma_turns: bool = False
    late_suffixes: bool = False
    row_chunks: bool = False
    turn_share: int = 0
    copy_share: int = 4
    lag: int = 2
    unit_slots: int = 32
    resident_slots: int = 64
    values_late: int = 0
    ramp_down: int = 0
    split_units: bool = False
    turn_lag: int = 1
    start_jobs: int = 0
    join_slots: int = JOIN_SLOTS


def tile_samples(shape: Shape, gen2: bool) -> int:
    """How many samples a row tile takes: as many as there is room for, where they pack.

    Samples share partitions in equal blocks. A number with no fitting divisor (127) would take a
    block a sample; a tile of fewer, and one of what is left, take a fraction of that, but each tile
    meets the whole context.
    """
    most = max(1, min(shape.r, 128 // (shape.n * shape.p)))
    core = "gen2" if gen2 else "gen3"
    once, per_slots = ROW_TILE_US[core]
    tile_us = once + per_slots * shape.S_ctx / 128
    if shape.g * shape.G > 1:
        tile_us /= 4

    def cost(samples: int) -> float:
        whole, rest = divmod(shape.r, samples)
        blocks = whole * packing(shape.S_dec, samples, SUFFIX_SLOTS)[1]
        if rest:
            blocks += packing(shape.S_dec, rest, SUFFIX_SLOTS)[1]
        return (whole + (rest > 0)) * tile_us + blocks * SUFFIX_BLOCK_US[core]

    return min(range(most, most // 2, -1), key=cost)


def schedule(shape: Shape, element_bytes: int, target: str = "trn1") -> Schedule:
    """The sizes that the timeline found fastest at 8K of context, as far as SBUF holds them.

    Later cores pay more for each run of HBM, so that their blocks are larger; and their DMA
    transposes 16-bit numbers.
    """
    gen2 = target in ("trn1", "inf2", "gen2")
    for samples, suffix_tiles in suffix_loads(tile_samples(shape, gen2), gen2):
        for block_slots in BLOCK_SLOTS:
            plan = rule(shape, element_bytes, gen2, (samples, suffix_tiles, block_slots))
            if fits(plan, shape, element_bytes, gen2):
                return plan
    return plan


def fits(plan: Schedule, shape: Shape, element_bytes: int, gen2: bool) -> bool:
    """Whether SBUF holds a call, in the order of the program."""
    return sbuf_bytes(plan, shape, element_bytes, gen2) <= USABLE_BYTES["gen2" if gen2 else "gen3"]


def suffix_loads(samples: int, gen2: bool) -> Iterator[tuple[int, int]]:
    """(samples of a row tile, rows a partition) of one suffix load, from the largest down.

    A later core would rather load fewer samples than shorter runs.
    """
    halves = [samples >> i for i in range(samples.bit_length())]
    runs = [SUFFIX_SLOTS >> i for i in range(SUFFIX_SLOTS.bit_length())]
    if gen2:
        yield from ((samples, run) for run in runs)
        yield from ((half, 1) for half in halves[1:])
    else:
        yield from ((half, SUFFIX_SLOTS) for half in halves)
        yield from ((1, run) for run in runs[1:])


def rule(shape: Shape, element_bytes: int, gen2: bool, loads: tuple[int, int, int]) -> Schedule:
    """The sizes of a call whose loads are given: samples and rows of a suffix, slots of a block."""
    samples, suffix_tiles, most = loads
    d = shape.d
    per_slot = shape.n * shape.p
    rows = samples * min(128, per_slot)
    single = shape.g == 1 and (shape.G == 1 or rows > FEW_ROWS)  # head of a prompt
    block_slots, ramp = (16, 4) if gen2 else (64, 16)
    if not gen2 and single:
        block_slots, ramp = 32, 4  # nothing else to do while the first block comes
    block_slots = min(block_slots, most)
    tiles = row_tiles(shape, samples)

    one_load = shape.S_dec // packing(shape.S_dec, 1, SUFFIX_SLOTS)[0] <= suffix_tiles
    long_chunks = rows >= LONG_CHUNK_ROWS or single
    suffix_slots = SUFFIX_SLOTS
    if single or per_slot >= SHARED_ROWS:
        short, long = (packing(shape.S_dec, samples, run)[1] for run in (SHORT_RUN, SUFFIX_SLOTS))
        suffix_slots = SHORT_RUN if short <= 2 * long else SUFFIX_SLOTS

    state = 2 * (d + 1) * 4 + 64
    masks = rows * -(-shape.S_dec // 16) * 2 + 128 * 4
    per_head = (2 * d + 128 * -(-d // 128)) * element_bytes + 8
    tiles_per_pass = max(1, min(tiles, QUERY_BYTES // (state + masks + per_head)))
    heads = max(1, min(shape.g, (QUERY_BYTES // tiles_per_pass - state - masks) // per_head))
    plan = Schedule(
        heads_per_pass=heads,
        tiles_per_pass=tiles_per_pass,
        tile_samples=samples,
        block_slots=block_slots,
        suffix_tiles=suffix_tiles,
        ramp=min(ramp, block_slots),
        dma_turns=not gen2 and element_bytes == 2 and d <= 128,
        lag=3 if one_load and long_chunks else 2,
        late_suffixes=one_load and not gen2 and rows == 128,
    )
    long_context = not gen2 and rows == 128 and shape.S_ctx >= samples * shape.S_dec
    if rows >= ROWS_FIRST and (per_slot >= SHARED_ROWS or long_context):
        for sizes in rows_first(shape, element_bytes, gen2, tiles):
            turned = replace(plan, **sizes)
            if fits(turned, shape, element_bytes, gen2):
                return turned
    if single or rows < HALF_ROWS:
        sizes = SOME_ROWS_GEN2 if gen2 else SOME_ROWS_GEN3
        if single and not gen2:
            sizes = sizes | ONE_HEAD_GEN3 | ({"values_late": 2} if rows >= HALF_ROWS else {})
        plan = replace(plan, suffix_slots=suffix_slots, **sizes)
        block_slots = min(plan.block_slots, most)
        return replace(plan, block_slots=block_slots, ramp=min(plan.ramp, block_slots))
    if not gen2:
        return replace(plan, lag=3, ramp=min(2 * ramp, block_slots))
    return plan


def rows_first(
    shape: Shape, element_bytes: int, gen2: bool, tiles: int
) -> Iterator[dict[str, Any]]:
    """Sizes with query rows on partitions for the context, from the fastest to the smallest.

    Args:
        tiles: row tiles of a group.
    """
    per_suffix = shape.n * shape.p
    sizes = ROWS_GEN2 if gen2 else ROWS_GEN3
    if not gen2 and per_suffix < MANY_SHARED:
        sizes = sizes | {"suffix_slots": 8}
    if gen2 and tiles >= 4:
        sizes = sizes | FOUR_TILES_GEN2
    if tiles == 1:
        sizes = sizes | (ONE_TILE_GEN2 if gen2 else ONE_TILE_GEN3)
        if not gen2:
            few = per_suffix < MANY_SHARED
            sizes = sizes | (ONE_TILE_FEW_SHARED_GEN3 if few else ONE_TILE_MANY_SHARED_GEN3)
    if not gen2 and per_suffix < SHARED_ROWS:
        sizes = sizes | LITTLE_SHARED_GEN3 | (ONE_TILE_LITTLE_SHARED_GEN3 if tiles == 1 else {})
    elif not gen2 and tiles > 1 and element_bytes == 2 and splits(shape):
        sizes = sizes | split_sizes(per_suffix, tiles)
    if element_bytes == 4:
        sizes = sizes | {"turn_share": 0, "lag": 3}
    while sizes["resident_slots"] > sizes["unit_slots"]:
        yield sizes
        sizes = sizes | {"resident_slots": sizes["resident_slots"] // 2}
    while sizes["unit_slots"] >= 8:
        yield sizes
        half = sizes["unit_slots"] // 2
        sizes = sizes | dict.fromkeys(("unit_slots", "resident_slots"), half)
        sizes["block_slots"] = (
            min(half, SPLIT_GEN3["block_slots"]) if "split_units" in sizes else half
        )
        sizes["ramp"] = min(sizes["ramp"], sizes["block_slots"])


def splits(shape: Shape) -> bool:
    """Whether NeuronCore-v3 splits units: d is one slice, and its context long.

    At least twice as long as all suffixes of a row tile; else smaller jobs gain nothing.
    """
    samples = max(1, 128 // (shape.n * shape.p))
    return shape.d <= 128 and shape.S_ctx >= 2 * samples * shape.S_dec


def split_sizes(per_suffix: int, tiles: int) -> dict[str, Any]:
    """Sizes of a call on NeuronCore-v3 whose units are split."""
    if per_suffix < MANY_SHARED:
        return SPLIT_GEN3 | FEW_SHARED_GEN3 | (FOUR_TILES_FEW_SHARED_GEN3 if tiles >= 4 else {})
    if tiles >= 8:
        return SPLIT_GEN3 | EIGHT_TILES_GEN3
    return SPLIT_GEN3 | (FOUR_TILES_GEN3 if tiles >= 4 else TWO_TILES_GEN3)


def kernel_options(
    plan: Schedule,
    window: int | None = None,
    softcap: float | None = None,
    query_position: Any = None,
    sinks: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
) -> dict[str, Any]:
    """Keyword arguments of the kernel, which writes absent options as 0 (NKI refuses `is None`).

    Args:
        plan: a schedule of the call's shape.
        window ... v_scale: as in `nki_kernels.torch_ops.bifurcated_attention`, but of the factors
            either both or none.
    """
    options: dict[str, Any] = {}
    if window is not None:
        options["window"] = window
    if softcap is not None:
        # Logits come back to PSUM once more: half as many at a time.
        plan = replace(plan, chunk_columns=min(plan.chunk_columns, 512))
        options["softcap"] = float(softcap)
    if query_position is not None:
        options |= {"query_position": query_position, "with_position": True}
    if sinks is not None:
        options |= {"sinks": sinks, "with_sinks": True}
    if k_scale is not None:
        options |= {"k_scale": k_scale, "v_scale": v_scale, "with_scales": True}
    return {**vars(plan), **options}
