"""Sizes of the decode kernel, as data, and the one rule that turns them into a schedule.

Only sizes that the kernel may choose stand here; what the hardware fixes (128 partitions, 512 fp32
a PSUM bank) stands in the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nki_kernels.bifurcated_attention.validate import Shape

SBUF_BYTES = {"gen2": 160 * 1024, "gen3": 192 * 1024}
"""SBUF a partition that a call may plan with: 180,224 usable bytes on NeuronCore-v2 (AWS's direct
allocation guide, SDK 2.26), 212,984 on v3 and more on v4, less small tiles and constants."""

SUFFIX_SLOTS = 8
"""Suffix rows a partition takes at least, where S_dec divides so."""

QUERY_BYTES = 64 * 1024
"""The part of it for queries, states and masks; the rest holds loaded keys and values."""


LONG_CHUNK_ROWS = 64
"""Query rows of a tile from which a fold that waits a chunk more ends no later."""

ROWS_FIRST = 96
"""Query rows of a tile from which they may lie on partitions."""

HALF_ROWS = 64
"""Rows from which NeuronCore-v3 waits for a chunk's weights unless it is folded a step later."""

SHARED_ROWS = 4
"""Rows that share a suffix from which that pays: with fewer, suffixes are most of a call. On
NeuronCore-v3 a full tile of fewer does so too where its context is as long as all its suffixes."""

MANY_ROWS = 8
"""Rows a suffix from which NeuronCore-v3 takes shorter runs of it: DMA has time for them."""

ROWS_GEN2: dict[str, Any] = {
    "row_chunks": True,
    "block_slots": 16,
    "ramp": 8,
    "suffix_slots": 1,
    "ahead": 2,
    "turns": 8,
    "copy_share": 2,
    "lag": 3,
    "unit_slots": 16,
    "resident_slots": 16,
}
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

ONE_TILE_GEN2 = {"block_slots": 12, "ramp": 4, "ahead": 0, "turns": 4, "copy_share": 3, "lag": 4}
ONE_TILE_GEN3 = {"block_slots": 18, "ramp": 14, "ahead": 1, "lag": 3}
"""And with one: there DMA is the limit, and the end of the call is not hidden."""
FEW_SHARE_GEN3 = {"turn_share": 0}
ONE_TILE_FEW_SHARE_GEN3 = {"block_slots": 32, "ramp": 16}
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
        row_chunks: whether chunks of the context have query rows on partitions (row_chunks.py). The
            fields below are about them.
        turn_share: of every 8 groups of 8 tiles of weights, those that DMA turns (as dma_turns).
        copy_share: of every 8 groups that TensorE turns, those that VectorE copies out of PSUM;
            ScalarE copies the others.
        lag: chunks between the logits of one and its product with V, at least 2.
        unit_slots: keys a partition that share one maximum. Changes the rounding.
        resident_slots: of as many keys a partition the blocks stay in SBUF, where one row tile
            after the other meets them.
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


def row_tiles(shape: Shape, tile_samples: int = 128) -> int:
    """Tiles of at most 128 query rows (sample, token, head of a kv head) a group."""
    rows = shape.n * shape.p
    if rows <= 128:
        return -(-shape.r // min(tile_samples, 128 // rows))
    tokens = max(1, 128 // shape.p)
    return shape.r * -(-shape.n // tokens) * -(-shape.p // 128)


def packing(S_dec: int, samples: int) -> tuple[int, int]:
    """Partitions that a tile's suffixes fill, and blocks of as many: `plan.suffix_sizes`' rule."""
    spans = range(1, min(S_dec, 128) + 1)
    span = max(s for s in spans if s == 1 or (S_dec % s == 0 and S_dec // s >= SUFFIX_SLOTS))
    counts = range(1, min(samples, 128 // span) + 1)
    together = max(count for count in counts if samples % count == 0)
    return span * together, samples // together


def tile_samples(shape: Shape) -> int:
    """How many samples a row tile takes: as many as there is room for, where they pack.

    Samples share partitions in equal blocks. A number with no fitting divisor (127) would take a
    block a sample; a tile of fewer, and one of what is left, take a fraction of that.
    """
    most = max(1, min(shape.r, 128 // (shape.n * shape.p)))
    one = packing(shape.S_dec, 1)[0]

    def packs(samples: int) -> bool:
        blocks = packing(shape.S_dec, samples)[1]
        return 4 * blocks <= 5 * -(-samples // (128 // one))  # a quarter more than full ones

    for samples in range(most, most // 2, -1):
        if packs(samples) and (shape.r % samples == 0 or packs(shape.r % samples)):
            return samples
    return most


def schedule(shape: Shape, element_bytes: int, target: str = "trn1") -> Schedule:
    """What fits SBUF, from the sizes that the timeline found fastest at 8K of context.

    Later cores pay more for each run of HBM, so that their blocks are larger; and their DMA
    transposes 16-bit numbers.
    """
    gen2 = target in ("trn1", "inf2", "gen2")
    total = SBUF_BYTES["gen2" if gen2 else "gen3"]
    block_slots, ramp = (16, 4) if gen2 else (64, 16)
    if not gen2 and shape.G * shape.g == 1:
        block_slots, ramp = 32, 4  # a single head: nothing else to do while the first block comes
    sizes = Schedule(1, 1)
    d = shape.d
    wide = 128 * -(-d // 128)  # K and queries take whole slices of 128
    loaded = total - QUERY_BYTES

    # Rows a partition of one suffix load: K, its transpose and V, for all samples of a row tile.
    per_slot = shape.n * shape.p
    samples = tile_samples(shape)
    suffix_tiles = sizes.suffix_tiles
    room = loaded
    if wide * element_bytes > 256:
        room = loaded * 5 // 8  # two of such loads, of one head and the next, lie there at a time
    parts, blocks = packing(shape.S_dec, samples)
    turned = wide // 128 * parts
    while blocks * suffix_tiles * (2 * d + turned) * element_bytes > room:
        if suffix_tiles > 1:
            suffix_tiles //= 2
        elif samples > 1:
            samples //= 2
            parts, blocks = packing(shape.S_dec, samples)
        else:
            break

    # Blocks that jobs in the pipeline still hold.
    tiles = row_tiles(shape, samples)
    rows = samples * min(128, per_slot)
    suffix = suffix_tiles * blocks * (d + turned) * element_bytes
    while block_slots > 1:
        jobs = tiles * max(1, block_slots * rows // sizes.chunk_columns)
        alive = 1 + -(-(sizes.ahead + 2) // jobs)
        if alive * block_slots * (wide + d) * element_bytes + suffix <= loaded:
            break
        block_slots //= 2

    one_load = shape.S_dec // packing(shape.S_dec, 1)[0] <= suffix_tiles
    long_chunks = rows >= LONG_CHUNK_ROWS or shape.G * shape.g == 1

    state = 2 * (d + 1) * 4 + 64
    masks = rows * -(-shape.S_dec // 16) * 2 + 128 * 4
    per_head = (2 * d + wide) * element_bytes + 8
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
        late_suffixes=one_load and not gen2 and rows == 128 and 2 * suffix <= loaded,
    )
    long_context = not gen2 and rows == 128 and shape.S_ctx >= samples * shape.S_dec
    if rows >= ROWS_FIRST and (per_slot >= SHARED_ROWS or long_context):
        queries = tiles_per_pass * (state + masks + heads * per_head)
        return rows_first(plan, shape, element_bytes, gen2, total - queries - 2 * suffix)
    if not gen2 and rows >= HALF_ROWS:
        if shape.G * shape.g > 1:
            return replace(plan, lag=3, ramp=min(2 * ramp, block_slots))
        if per_slot >= SHARED_ROWS:
            sizes = replace(plan, block_slots=min(8, block_slots), suffix_slots=1, lag=3)
            return replace(sizes, ramp=min(ramp, sizes.block_slots))
    return plan


def rows_first(plan: Schedule, shape: Shape, element_bytes: int, gen2: bool, free: int) -> Schedule:
    """`plan` with query rows on partitions for the context, if that fits `free` bytes of SBUF."""
    sizes = ROWS_GEN2 if gen2 else ROWS_GEN3
    if row_tiles(shape, plan.tile_samples) * shape.G == 1:
        sizes = sizes | (ONE_TILE_GEN2 if gen2 else ONE_TILE_GEN3)
    key = (128 * -(-shape.d // 128) + shape.d) * element_bytes  # of K and V, a key a partition
    if not gen2 and shape.n * shape.p < MANY_ROWS:
        sizes = sizes | {"suffix_slots": 8}
    if not gen2 and shape.n * shape.p < SHARED_ROWS:
        one = row_tiles(shape, plan.tile_samples) * shape.G == 1
        sizes = sizes | FEW_SHARE_GEN3 | (ONE_TILE_FEW_SHARE_GEN3 if one else {})
    if element_bytes == 4:
        sizes = sizes | {"turn_share": 0, "lag": 3}
    while True:
        unit = sizes["unit_slots"] * 128  # logits; weights and those turned, of a key
        held = unit * 2 * (4 + element_bytes) + unit * (sizes["lag"] - 1) * element_bytes
        blocks = min(2 * sizes["resident_slots"], shape.G * shape.g * -(-shape.S_ctx // 128))
        if held + blocks * key <= free:
            return replace(plan, **sizes)
        if sizes["resident_slots"] > sizes["unit_slots"]:
            sizes = sizes | {"resident_slots": sizes["resident_slots"] // 2}
        elif sizes["unit_slots"] > 1:
            half = sizes["unit_slots"] // 2
            sizes = sizes | dict.fromkeys(("block_slots", "unit_slots", "resident_slots"), half)
            sizes["ramp"] = min(sizes["ramp"], half)
        else:
            return plan


def kernel_options(
    plan: Schedule,
    window: int | None = None,
    softcap: float | None = None,
    query_position: Any = None,
    sinks: Any = None,
    k_scale: Any = None,
    v_scale: Any = None,
    narrow: bool = False,
) -> dict[str, Any]:
    """Keyword arguments of the kernel, which writes absent options as 0 (NKI refuses `is None`).

    Args:
        plan: a schedule of the call's shape.
        narrow: whether the caches are in 8 bits, which DMA does not turn; their factors, where one
            is given, are both.
        window ... v_scale: as in `nki_kernels.torch_ops.bifurcated_attention`.
    """
    options: dict[str, Any] = {}
    if window is not None:
        options["window"] = window
    if window is not None or softcap is not None or narrow:
        plan = replace(plan, row_chunks=False)
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
    if narrow:
        plan = replace(plan, dma_turns=False)
    return {**vars(plan), **options}
