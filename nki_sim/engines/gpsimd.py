"""GpSimdE: patterns, affine selection and movement across partitions. It reaches SBUF only."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import alu_op
from nki_sim.checks import SBUF_ONLY
from nki_sim.machine import current, instruction
from nki_sim.numerics import F32, as_shape, convert, read32, write
from nki_sim.ops import equal
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction


@instruction
def iota(
    dst: NkiTensor,
    pattern: Any,
    offset: int = 0,
    channel_multiplier: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """``dst[p, i...] = offset + p * channel_multiplier + sum(step_k * i_k)`` in 32-bit integers."""
    core = current()
    checks.tile(dst, "dst", SBUF_ONLY)
    steps = _pattern(pattern, dst, "dst")
    made = core.issue(
        "gpsimd",
        "iota",
        (("dst", dst),),
        (),
        dst.free,
        name,
        {"pattern": steps, "offset": offset, "channel_multiplier": channel_multiplier},
    )
    values = _affine(dst.shape[0], steps, offset, channel_multiplier)
    out = dst.values
    if dst.dtype.is_int:  # integers keep the bits of the 32-bit result
        out[...] = as_shape(values, dst.shape).astype(dst.dtype.numpy)
    else:
        out[...] = convert(as_shape(values, dst.shape).astype(F32), dst.dtype, out.dtype)
    return made


@instruction
def affine_select(
    dst: NkiTensor,
    pattern: Any,
    channel_multiplier: int,
    on_true_tile: NkiTensor,
    on_false_value: float,
    cmp_op: Any = equal,
    offset: int = 0,
    name: str | None = None,
) -> NkiInstruction:
    """Keep an element where ``cmp_op(affine value, 0)`` holds, else ``on_false_value``.

    The affine value of an element is ``iota``'s. Elements pass bit for bit where the dtypes agree,
    else through float32.
    """
    core = current()
    comparison = alu_op(cmp_op, "cmp_op", core.version)
    if comparison.name not in (
        "equal", "not_equal", "less", "less_equal", "greater", "greater_equal",
    ):  # fmt: skip
        rules.broken(rules.OP, "cmp_op", comparison.name, "a comparison")
    checks.tile(dst, "dst", SBUF_ONLY)
    checks.tile(on_true_tile, "on_true_tile", SBUF_ONLY)
    checks.same_layout(on_true_tile, "on_true_tile", dst, "dst")
    checks.number(on_false_value, "on_false_value")
    steps = _pattern(pattern, dst, "dst")
    made = core.issue(
        "gpsimd",
        "affine_select",
        (("dst", dst),),
        (("on_true_tile", on_true_tile),),
        dst.free,
        name,
        {
            "pattern": steps,
            "offset": offset,
            "channel_multiplier": channel_multiplier,
            "cmp_op": comparison.name,
            "on_false_value": on_false_value,
        },
    )
    affine = _affine(dst.shape[0], steps, offset, channel_multiplier)
    keep = as_shape(comparison.fn(affine, 0) != 0, dst.shape)
    if dst.dtype is on_true_tile.dtype:
        data = as_shape(on_true_tile.values, dst.shape)
        fill = convert(np.full((), on_false_value, F32), dst.dtype, data.dtype)
        dst.values[...] = np.where(keep, data, fill)
    else:
        write(dst, np.where(keep, as_shape(read32(on_true_tile), dst.shape), F32(on_false_value)))
    return made


def _pattern(pattern: Any, t: NkiTensor, operand: str) -> tuple[tuple[int, int], ...]:
    """A checked ``[[step, num], ...]``."""
    try:
        steps = tuple((int(step), int(num)) for step, num in pattern)
    except (TypeError, ValueError):
        rules.broken(rules.PATTERN, "pattern", pattern)
    total = 1
    for _, num in steps:
        total *= num
    if not 1 <= len(steps) <= 4 or total != t.free:
        rules.broken(
            rules.PATTERN, "pattern", pattern, f"{operand} has {t.free} elements per partition"
        )
    return steps


def _affine(
    partitions: int, steps: tuple[tuple[int, int], ...], offset: int, channel_multiplier: int
) -> np.ndarray:
    """The values of ``iota``, int32 [P, num...] (32-bit arithmetic wraps)."""
    values = np.arange(partitions, dtype=np.int64) * channel_multiplier + offset
    values = values.reshape((-1,) + (1,) * len(steps))
    for axis, (step, num) in enumerate(steps):
        line = np.arange(num, dtype=np.int64) * step
        values = values + line.reshape((-1,) + (1,) * (len(steps) - axis - 1))
    return values.astype(np.int32)
