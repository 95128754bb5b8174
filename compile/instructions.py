"""How many instructions a graph has: attention counted on recorded kernels, the rest estimated.

*computed*: the kernel's call was recorded at the graph's own shape. *predicted*: it was grown from
shorter calls: heads and samples are worked on alike, and each block of keys costs the same.
*estimated*: tiles of 128 x 128 x 512 of what the compiler makes of the rest, whose own count is
seen only in its log. On a logical core of two, both cores' instructions are counted together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from models.causal_lm import CacheShape, ModelConfig
from models.causal_lm.attention import CHUNK
from models.causal_lm.sharding import Heads, split_heads
from nki_kernels import launch, predict, tuned
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention.validate import Shape as PrefillShape
from nki_kernels.speed_of_light import Decode

_TILE, _MOVING, _WIDE = 128, 512, 2048
_CONTEXTS = (2048, 4096)
_ROWS = 256


@dataclass(frozen=True)
class Count:
    """Instructions of one graph on one core, all layers.

    Attributes:
        attention: of attention.
        attention_evidence: "computed", "predicted" or "estimated".
        rest: of everything else; estimated.
    """

    attention: int
    attention_evidence: str
    rest: int

    @property
    def total(self) -> int:
        """Of the graph."""
        return self.attention + self.rest


def prefill(
    config: ModelConfig,
    heads: Heads,
    tp: int,
    S: int,
    target: str,
    size: int,
    nki: bool,
) -> Count:
    """A prefill of `S` tokens; elements of `size` bytes."""
    rest = _rest(config, tp, S, last_rows=1)
    if not nki:
        pairs = tiles(S, config.d, S) + tiles(S, S, config.d)
        return Count(config.layers * heads.h * 3 * pairs, "estimated", rest)
    found = sum(
        _flash(min(CHUNK, S - first), first, config.d, target, size) for first in range(0, S, CHUNK)
    )
    how = "computed" if heads.h == 1 and S <= CHUNK else "predicted"
    return Count(config.layers * heads.h * found, how, rest)


def decode(
    config: ModelConfig,
    heads: Heads,
    tp: int,
    shape: CacheShape,
    path: str,
    target: str,
    size: int,
    nki: bool,
) -> Count:
    """A decode step of one token a sample; `path` is "bifurcated" or "ordinary".

    Args:
        heads: as the kernel sees them, those of replicas included.
        shape: the cache of a core.
    """
    rest = _rest(config, tp, shape.rows, last_rows=shape.rows)
    p = heads.h // heads.g
    if not nki:
        d, S_ctx, S_dec = config.d, shape.S_ctx, shape.S_dec
        context = tiles(shape.r * p, d, S_ctx) + tiles(shape.r * p, S_ctx, d)
        suffix = tiles(p, d, S_dec) + tiles(p, S_dec, d)
        found = heads.g * 3 * (shape.G * context + shape.rows * suffix)
        return Count(config.layers * found, "estimated", rest)

    def count(samples: int, m_c: int) -> int:
        G, r = (samples, 1) if shape.r == 1 else (1, samples)
        return _decode(path, G, r, p, config.d, m_c, shape.S_dec, target, size)

    groups = 1 if shape.r == 1 else shape.G
    samples = shape.rows // groups
    exact = heads.g == 1 and groups == 1
    unit = 8 if path == "ordinary" else max(1, _TILE // p)
    few = samples * p <= _ROWS if path == "bifurcated" else samples <= 2 * unit

    def at(m_c: int) -> int:
        if few:
            return count(samples, m_c)
        return _line(lambda b: count(b, m_c), unit, 2 * unit, samples)

    near, far = _CONTEXTS
    one = at(shape.S_ctx) if shape.S_ctx <= far else _line(at, near, far, shape.S_ctx)
    how = "computed" if exact and few and shape.S_ctx <= far else "predicted"
    return Count(config.layers * heads.g * groups * one, how, rest)


def tiles(M: int, K: int, N: int) -> int:
    """Instructions of a product [M, K] x [K, N]: matmuls, copies out of PSUM, loads of [K, N]."""
    rows, depth, columns = -(-M // _TILE), -(-K // _TILE), -(-N // _MOVING)
    return rows * depth * columns + rows * columns + depth * -(-N // _WIDE)


def _rest(config: ModelConfig, tp: int, rows: int, last_rows: int) -> int:
    """Everything but attention, of all layers and the head."""
    c, wide, heads = config, -(-config.intermediate_size // tp), split_heads(config, tp, 0)
    h, g = heads.h, heads.g
    layer = tiles(rows, c.hidden_size, (h + 2 * g) * c.d) + tiles(rows, h * c.d, c.hidden_size)
    mlp = 2 * tiles(rows, c.hidden_size, wide) + tiles(rows, wide, c.hidden_size)
    layer += mlp * max(1, c.experts)
    blocks = -(-rows // _TILE)
    # Two norms of four passes, two residuals and two sums over ranks; rotation; the activation.
    layer += blocks * (12 * -(-c.hidden_size // _WIDE) + 6 + 3 * -(-wide // _WIDE))
    return c.layers * layer + tiles(last_rows, c.hidden_size, -(-c.vocab_size // tp))


def _line(count: Callable[[int], int], near: int, far: int, at: int) -> int:
    """The straight line through two counts, at a third size."""
    low, high = count(near), count(far)
    return round(high + (high - low) * (at - far) / (far - near))


def _flash(S: int, start: int, d: int, target: str, size: int) -> int:
    """One head's instructions for `S` queries behind `start` keys."""
    near, far = _CONTEXTS
    if start > far:
        return _line(lambda s: _flash(S, s, d, target, size), near, far, start)
    return _recorded_flash(S, start, d, target, size)


def record(kernel: Callable[..., Any], target: str, *args: Any, **options: Any) -> int:
    """Instructions of one call, recorded and not computed."""
    import nki_sim
    from nki_sim.kernel import Simulation
    from nki_sim.rebind import rebound

    trace = nki_sim.Trace()
    with warnings.catch_warnings():  # what was never computed is never written either
        warnings.simplefilter("ignore", nki_sim.UnwrittenReadWarning)
        warnings.simplefilter("ignore", nki_sim.AdviceWarning)
        call = Simulation(rebound(kernel), target, trace, shapes_only=True)
        call(*args, **options)
    return len(trace)


@cache
def _recorded_flash(S: int, start: int, d: int, target: str, size: int) -> int:
    import numpy as np

    keys = start + S
    shape = PrefillShape(B=1, S=S, h=1, g=1, d=d, S_ctx=keys, start=start)
    plan = flash_tuning.schedule(shape, size, target)
    plan = tuned.improve("flash_attention", plan, shape, size, target)
    dtype = predict.dtype_of(size)
    arrays = (
        np.empty((1, S, 1, d), dtype),
        np.empty((1, d, keys), dtype),
        np.empty((1, keys, d), dtype),
    )
    kernel = launch.load("nki_kernels.flash_attention.kernel", "flash_attention_kernel")
    options = flash_tuning.kernel_options(plan, start)
    return record(kernel, target, *arrays, d**-0.5, **options)


@cache
def _decode(
    path: str, G: int, r: int, p: int, d: int, m_c: int, m_d: int, target: str, size: int
) -> int:
    work = Decode(G=G, r=r, n=1, h=p, g=1, d=d, m_c=m_c, m_d=m_d, element_bytes=size)
    shape = predict.shape_of(work)
    kernel = launch.load(f"nki_kernels.{path}_attention.kernel", f"{path}_attention_kernel")
    options = predict.options_of(path, shape, size, target)
    arrays = predict.arrays(shape, predict.dtype_of(size))
    return record(kernel, target, *arrays, d**-0.5, **options)
