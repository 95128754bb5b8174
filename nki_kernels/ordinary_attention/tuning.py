"""Step sizes of the ordinary kernel, as data, and the rule that turns them into a schedule."""

from __future__ import annotations

from dataclasses import dataclass

from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.ordinary_attention.pieces import PARTITIONS, cut

BANK = 512
"""fp32 logits a partition of one PSUM bank, which holds a pair's chunk."""

STEP_BYTES = 40 * 1024
"""K and V a partition that one step may load: three steps are in flight, of 180,224 usable bytes
on trn1 and inf2 (AWS's direct allocation guide, SDK 2.26; later cores have more)."""

STEP_BLOCKS = 32
"""Blocks of 128 keys a step at least has where samples are short, so that the maximum's way across
partitions is paid for rarely."""


@dataclass(frozen=True)
class Schedule:
    """How one call is cut.

    Attributes:
        blocks: blocks of 128 keys that share one maximum and one load, at most.
        pairs: (sample, kv head) pairs of a step.
    """

    blocks: int
    pairs: int


def schedule(shape: Shape, element_bytes: int) -> Schedule:
    """The longest chunks that fit, and as many pairs a step as make it worth its fixed costs."""
    block = (PARTITIONS + shape.d) * element_bytes
    blocks = max(1, min(BANK // (shape.n * shape.p), STEP_BYTES // block))
    longest = max(
        sum(segment[3] for segment in chunk) for chunk in cut(shape.S_ctx, shape.S_dec, blocks)
    )
    room = min(STEP_BYTES // (longest * block), PARTITIONS // (shape.n * shape.p))
    return Schedule(blocks=blocks, pairs=max(1, min(room, STEP_BLOCKS // longest)))
