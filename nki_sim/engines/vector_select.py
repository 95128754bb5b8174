"""VectorE: choosing elements by a predicate or by their position."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import alu_op
from nki_sim.alu import reduce_op as reducing_op
from nki_sim.dtypes import float32, int8, int16, int32, tfloat32, uint8, uint16, uint32
from nki_sim.engines.vector_reduce import Accumulation
from nki_sim.enums import reduce_cmd as Reduce
from nki_sim.machine import current, instruction
from nki_sim.numerics import F32, as_shape, column, convert, read32, write
from nki_sim.ops import maximum
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

FP32_MIN = -3.4028235e38
"""The only fill value of ``range_select`` (nki.isa.range_select, NKI 0.6)."""

_COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")


@instruction
def tensor_copy_predicated(
    dst: NkiTensor,
    src: Any,
    predicate: NkiTensor,
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """Where ``predicate`` is not zero, ``dst = src``; elsewhere dst keeps its elements."""
    core = current()
    checks.tile(dst, "dst")
    checks.tile(predicate, "predicate")
    checks.same_layout(predicate, "predicate", dst, "dst")
    if predicate.dtype not in (uint8, uint16, uint32):
        rules.broken(rules.PREDICATE, "predicate", predicate.dtype)
    reads: tuple[tuple[str, NkiTensor], ...] = (("predicate", predicate),)
    attrs: dict[str, Any] = {"reverse_pred": reverse_pred, "keeps_dst": True}
    if isinstance(src, NkiTensor):
        checks.tile(src, "src")
        checks.same_layout(src, "src", dst, "dst")
        checks.not_both_psum(src, "src", predicate, "predicate")
        if src.dtype is not dst.dtype:
            rules.broken(rules.DTYPE, "src", src.dtype, f"dst is {dst.dtype}")
        reads = (("src", src), *reads)
    else:
        attrs["src"] = src
    made = core.issue(
        "vector", "tensor_copy_predicated", (("dst", dst),), reads, dst.free, name, attrs
    )
    mask = as_shape(predicate.values, dst.shape) != 0
    if reverse_pred:
        mask = ~mask
    if isinstance(src, NkiTensor):
        np.copyto(dst.values, as_shape(src.values, dst.shape), where=mask)
    else:
        fill = convert(np.full((), src, F32), dst.dtype, dst.carrier)
        np.copyto(dst.values, fill, where=mask)
    return made


@instruction
def select_reduce(
    dst: NkiTensor,
    predicate: NkiTensor,
    on_true: NkiTensor,
    on_false: Any,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.idle,
    reduce_op: Any = maximum,
    reverse_pred: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = on_true`` where the predicate is not zero, else ``on_false``.

    Optionally also its maximum per row.
    """
    core = current()
    reducer = reducing_op(reduce_op, "reduce_op", core.version, ("maximum",))
    checks.tile(dst, "dst")
    checks.tile(predicate, "predicate")
    checks.tile(on_true, "on_true")
    checks.not_both_psum(on_true, "on_true", predicate, "predicate")
    checks.same_layout(predicate, "predicate", dst, "dst")
    checks.same_layout(on_true, "on_true", dst, "dst")
    if predicate.dtype not in (int8, uint8, int16, uint16):
        rules.broken(rules.PREDICATE, "predicate", predicate.dtype)
    if on_true.dtype in (tfloat32, int32, uint32):
        rules.broken(rules.DTYPE, "on_true", on_true.dtype)
    reads: list[tuple[str, NkiTensor]] = [("on_true", on_true), ("predicate", predicate)]
    attrs: dict[str, Any] = {"reverse_pred": reverse_pred, "reduce_op": reducer.name}
    if isinstance(on_false, NkiTensor):
        checks.column(on_false, "on_false", on_true)
        reads.append(("on_false", on_false))
        other: Any = column(read32(on_false), dst.ndim)
    else:
        attrs["on_false"] = on_false
        other = F32(on_false)
    if reduce_res is not None and not reduce_res.dtype.is_float:
        rules.broken(rules.DTYPE, "reduce_res", reduce_res.dtype)
    accumulate = Accumulation(
        core, on_true, reducer, reduce_cmd, reduce_res, None, reads, attrs,
        (Reduce.idle, Reduce.reset_reduce, Reduce.reduce),
    )  # fmt: skip
    made = core.issue(
        "vector", "select_reduce", accumulate.writes(dst), tuple(reads), dst.free, name, attrs
    )
    mask = as_shape(predicate.values, dst.shape) != 0
    if reverse_pred:
        mask = ~mask
    values = np.where(mask, as_shape(read32(on_true), dst.shape), other)
    accumulate.run(values)
    write(dst, values)
    return made


@instruction
def range_select(
    dst: NkiTensor,
    on_true_tile: NkiTensor,
    comp_op0: Any,
    comp_op1: Any,
    bound0: NkiTensor,
    bound1: NkiTensor,
    reduce_cmd: Reduce = Reduce.reset_reduce,
    reduce_res: NkiTensor | None = None,
    reduce_op: Any = maximum,
    range_start: int = 0,
    on_false_value: float = FP32_MIN,
    name: str | None = None,
) -> NkiInstruction:
    """Keep elements whose position compares true with both bounds, else FP32_MIN.

    It exists from gen3 on. The position of an element is ``range_start`` plus its index in the free
    dimensions. A 16- or 8-bit dst turns the fill into -inf, as the hardware's downcast does; the
    maximum is taken in float32 before that.
    """
    core = current()
    if core.version < 3:
        rules.broken(rules.AVAILABILITY, "range_select", core.target.generation, "needs gen3")
    comps = [
        alu_op(c, label, core.version)
        for c, label in ((comp_op0, "comp_op0"), (comp_op1, "comp_op1"))
    ]
    for comp, label in zip(comps, ("comp_op0", "comp_op1"), strict=True):
        if comp.name not in _COMPARISONS:
            rules.broken(rules.OP, label, comp.name, ", ".join(_COMPARISONS))
    reducer = reducing_op(reduce_op, "reduce_op", core.version, ("maximum",))
    checks.tile(dst, "dst")
    checks.tile(on_true_tile, "on_true_tile")
    checks.same_layout(dst, "dst", on_true_tile, "on_true_tile")
    if not on_true_tile.dtype.is_float:
        rules.broken(rules.DTYPE, "on_true_tile", on_true_tile.dtype, "a float dtype")
    checks.column(bound0, "bound0", on_true_tile)
    checks.column(bound1, "bound1", on_true_tile)
    for bound, label in ((bound0, "bound0"), (bound1, "bound1")):
        if bound.dtype is not float32:
            rules.broken(rules.DTYPE, label, bound.dtype, "float32")
    if F32(on_false_value) != F32(FP32_MIN):
        rules.broken(rules.DTYPE, "on_false_value", on_false_value, f"only {FP32_MIN}")
    n = on_true_tile.free
    if not range_start >= 0 or range_start + n > 1 << 24:
        rules.broken(rules.PATTERN, "range_start", range_start, "positions stay below 2**24")
    reads: list[tuple[str, NkiTensor]] = [
        ("on_true_tile", on_true_tile), ("bound0", bound0), ("bound1", bound1),
    ]  # fmt: skip
    attrs: dict[str, Any] = {
        "comp_op0": comps[0].name, "comp_op1": comps[1].name, "range_start": range_start,
    }  # fmt: skip
    accumulate = Accumulation(
        core, on_true_tile, reducer, reduce_cmd, reduce_res, None, reads, attrs,
        (Reduce.idle, Reduce.reset_reduce, Reduce.reduce),
    )  # fmt: skip
    made = core.issue(
        "vector", "range_select", accumulate.writes(dst), tuple(reads), n, name, attrs
    )
    position = np.arange(range_start, range_start + n, dtype=F32)  # [N]
    low, high = (column(b.values, 2) for b in (bound0, bound1))  # [P, 1]
    mask = (comps[0].fn(position, low) != 0) & (comps[1].fn(position, high) != 0)  # [P, N]
    data = read32(on_true_tile).reshape(on_true_tile.shape[0], n)
    values = np.where(mask, data, F32(FP32_MIN))
    accumulate.run(values)
    if dst.dtype is not float32 and dst.dtype.is_float:
        values = np.where(mask, values, F32(-np.inf))
    write(dst, values)
    return made
