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
    """
    unit = position_bytes(config, itemsize)
    b = len(lengths)
    steps = max(max(lengths) - 1, 0)
    active = [sum(length > t for length in lengths) for t in range(1, steps + 1)]
    suffix_reads = sum(t * rows for t, rows in enumerate(active, start=1))
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
        ordinary=way(b * m_c, b, m_c * sum(active)),
        written=unit * sum(active) / steps if steps else 0.0,
    )


def allocated_bytes(config: ModelConfig, itemsize: int, shape: CacheShape) -> int:
    """Bytes of a cache of `shape`."""
    return position_bytes(config, itemsize) * (shape.context_slots + shape.suffix_slots)
