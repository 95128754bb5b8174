"""How many bytes of keys and values decoding stores and reads, bifurcated beside ordinary.

Per layer and for keys or values alone, a step of b samples reads (arXiv 2403.08845, equations 5, 6)

    ordinary    g d b (m_c + m_d)
    bifurcated  g d (m_c + b m_d)

elements. Here m_d is each sample's own, samples that have ended count for nothing, and all layers
and both keys and values are summed. *Live* counts positions that hold a token; *padded* counts the
slots of the cache, which is what memory must hold and what a graph of static shape may read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.causal_lm import CacheShape, ModelConfig


@dataclass(frozen=True)
class Way:
    """Bytes of one way of decoding.

    Attributes:
        stored_live: held after the last step.
        stored_padded: of the cache's slots.
        read_live: by a step, mean over the steps.
        read_padded: by a step that reads every slot.
    """

    stored_live: int
    stored_padded: int
    read_live: float
    read_padded: int


@dataclass(frozen=True)
class Traffic:
    """Both ways of decoding the same samples, and what a step writes either way."""

    bifurcated: Way
    ordinary: Way
    written: float  # bytes a step, mean over the steps

    @property
    def read_ratio(self) -> float:
        """How many times fewer live bytes a bifurcated step reads; 1 where there was no step."""
        reads = self.bifurcated.read_live
        return self.ordinary.read_live / reads if reads else 1.0


def position_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of keys and values of one position in all layers."""
    return 2 * config.layers * config.g * config.d * itemsize


def measure(
    config: ModelConfig,
    itemsize: int,
    m_c: int,
    lengths: Sequence[int],
    S_ctx: int,
    S_dec: int,
    drafts: Sequence[Sequence[tuple[int, int]]] = (),
) -> Traffic:
    """Counts the traffic of samples of one prompt.

    Step t = 1, 2, ... feeds the token drawn before it and reads t suffix positions of each sample
    that still goes on, so a sample of m tokens takes part in steps 1 to m - 1.

    Args:
        config: sizes of the network.
        itemsize: bytes of a cache element.
        m_c: prompt tokens.
        lengths: tokens drawn by each sample.
        S_ctx: context slots of a group.
        S_dec: suffix slots of a sample.
        drafts: of each sample, of each of its steps: drafts fed and drafts taken, where there were
            any. A step reads the positions of all that it feeds.
    """
    unit = position_bytes(config, itemsize)
    b = len(lengths)
    reads: list[Sequence[int]] = [range(1, length) for length in lengths]
    if any(drafts):
        reads = [_reads(each) for each in drafts]
    steps = max(map(len, reads), default=0)
    taken_part = sum(map(len, reads))  # samples in a step, summed over the steps
    suffix_reads = sum(map(sum, reads))
    fed = taken_part + sum(proposed for each in drafts for proposed, _ in each)
    suffix_live = sum(length - 1 for length in lengths)

    def way(context_live: int, copies: int, context_reads: int) -> Way:
        padded = copies * S_ctx + b * S_dec
        return Way(
            stored_live=unit * (context_live + suffix_live),
            stored_padded=unit * padded,
            read_live=unit * (context_reads + suffix_reads) / steps if steps else 0.0,
            read_padded=unit * padded,
        )

    return Traffic(
        bifurcated=way(m_c, 1, m_c * steps),
        ordinary=way(b * m_c, b, m_c * taken_part),
        written=unit * fed / steps if steps else 0.0,
    )


def _reads(drafts: Sequence[tuple[int, int]]) -> list[int]:
    """Suffix positions that a sample reads in each of its steps."""
    reads, length = [], 1
    for proposed, accepted in drafts:
        reads.append(length + proposed)
        length += accepted + 1
    return reads


def allocated_bytes(config: ModelConfig, itemsize: int, shape: CacheShape) -> int:
    """Bytes of a cache of `shape`."""
    return position_bytes(config, itemsize) * (shape.context_slots + shape.suffix_slots)
