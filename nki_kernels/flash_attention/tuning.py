"""Sizes and order of the prefill kernel, as data, and the one rule that fits them to a call.

Found with the timeline at d = 128 in bf16, over prompts of 4,096 and chunks of 2,048 behind 2,048
to 30,720 keys; the README has the numbers. What the kernel may choose stands in `Schedule`, nothing
else; every field changes only time, except where it says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nki_kernels.flash_attention.validate import Shape

PARTITIONS = 128

SBUF_BYTES = 176_000
"""SBUF a partition: 180,224 usable bytes on trn1 and inf2 (AWS's direct allocation guide, SDK 2.26;
later cores have more), less constants and statistics."""


@dataclass(frozen=True)
class Schedule:
    """How one call is cut and ordered.

    Attributes:
        query_tiles: tiles of 128 queries a pass; a pass loads each of its keys once.
        key_block: keys that share one maximum and one sum in PSUM. Changes the rounding.
        piece: keys that one instruction copies out of PSUM; a DMA loads as many. A multiple of 512
            that divides `key_block`.
        exponentials: keys that one instruction exponentiates; a multiple of `piece`. Changes the
            rounding of the sum.
        vector_share: of every 8 copies of turned weights, those on VectorE; the others on ScalarE.
        dma_share: of every 8 whole pieces of 16-bit weights, those that the DMA engines turn;
            NeuronCore-v3 and later only.
        lag_weight: steps between the last score of a block and its first exponential.
        lag_turn: steps between exponentials and turning them.
        lag_product: steps between turning weights and multiplying them with V.
    """

    query_tiles: int
    key_block: int
    piece: int
    exponentials: int
    vector_share: int
    dma_share: int
    lag_weight: int
    lag_turn: int
    lag_product: int


GEN2 = Schedule(
    query_tiles=32,
    key_block=4096,
    piece=1024,
    exponentials=2048,
    vector_share=0,
    dma_share=0,
    lag_weight=1,
    lag_turn=4,
    lag_product=1,
)

GEN3 = replace(GEN2, vector_share=4, dma_share=8, lag_turn=5, lag_product=2)

SCHEDULES = {
    "trn1": GEN2,
    "inf2": GEN2,
    "trn2": GEN3,
    "trn3": GEN3,
}
"""Where to start from, by target."""


def schedule(shape: Shape, element_bytes: int, target: str = "trn1") -> Schedule:
    """The target's schedule, with blocks and passes as large as SBUF has room for."""
    plan = SCHEDULES[target]
    tiles = -(-shape.S // PARTITIONS)
    plan = replace(plan, query_tiles=min(tiles, plan.query_tiles))
    if element_bytes == 4:
        plan = replace(plan, dma_share=0)
    while sbuf_bytes(shape, element_bytes, plan) > SBUF_BYTES:
        if plan.query_tiles > 4:
            plan = replace(plan, query_tiles=-(-plan.query_tiles // 2))
        elif plan.key_block > plan.piece:
            plan = replace(plan, key_block=plan.key_block // 2)
        elif plan.query_tiles > 1:
            plan = replace(plan, query_tiles=plan.query_tiles // 2)
        else:
            break
    return replace(plan, exponentials=min(plan.exponentials, plan.key_block))


def sbuf_bytes(shape: Shape, element_bytes: int, plan: Schedule) -> int:
    """Bytes a partition that a call keeps in SBUF at a time, a little more rather than less."""
    slices = -(-shape.d // PARTITIONS)
    keys = min(plan.key_block, -(-(shape.start + shape.S) // PARTITIONS) * PARTITIONS)
    loaded = (slices * keys + keys // PARTITIONS * shape.d) * element_bytes
    unit = keys * (4 + element_bytes)  # logits and weights
    turned = (plan.lag_turn + plan.lag_product) * plan.piece * element_bytes
    tile = shape.p * (slices * PARTITIONS * element_bytes + shape.d * (4 + element_bytes) + 32)
    return 2 * loaded + 3 * unit + turned + (plan.query_tiles + 4) * tile


def kernel_options(
    plan: Schedule,
    start: int = 0,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Any = None,
) -> dict[str, Any]:
    """Keyword arguments of the kernel, which writes absent options as 0 (NKI refuses `is None`)."""
    options = {**vars(plan), "start": start}
    if window is not None:
        options["window"] = window
    if softcap is not None:
        options["softcap"] = float(softcap)
    if sinks is not None:
        options |= {"sinks": sinks, "with_sinks": True}
    return options
