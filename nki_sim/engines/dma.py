"""The DMA engines: copies between HBM and SBUF, static or at run-time addresses."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.dtypes import PACKED
from nki_sim.enums import dge_mode as Dge
from nki_sim.enums import engine as Engine
from nki_sim.enums import oob_mode as Oob
from nki_sim.machine import Core, current, instruction
from nki_sim.memory import PSUM, WRITTEN
from nki_sim.numerics import F32, convert
from nki_sim.tensor import NkiTensor, scalar_value
from nki_sim.trace import NkiInstruction


@instruction
def dma_copy(
    dst: NkiTensor,
    src: NkiTensor,
    priority: int | None = None,
    oob_mode: Oob = Oob.error,
    dge_mode: Dge = Dge.unknown,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """Copy ``src`` to ``dst``, element by element in the order of their access patterns.

    Shapes may differ, sizes may not; different dtypes convert through float32. A view with a scalar
    offset starts at a run-time address; one with a vector offset gathers or scatters rows, one
    index a partition.
    ``oob_mode.skip`` leaves the rows of indices outside the tensor untouched, ``oob_mode.error``
    stops (nki.isa.dma_copy, NKI 0.6).
    """
    core = current()
    operand(dst, "dst")
    operand(src, "src")
    if dst.size != src.size:
        rules.broken(rules.DMA_ELEMENTS, "dst, src", f"{dst.shape}, {src.shape}")
    if dst.dtype is not src.dtype and PACKED in (dst.dtype.kind, src.dtype.kind):
        rules.broken(
            rules.DTYPE, "dst, src", f"{dst.dtype}, {src.dtype}", "packed dtypes must agree"
        )
    mode = descriptor_mode(core, dst, src, dge_mode, engine, priority)
    checks.member(oob_mode, Oob, "oob_mode")
    made = core.issue(
        "dma",
        "dma_copy",
        (("dst", dst),),
        (("src", src),),
        src.size,
        name,
        {"dge_mode": mode, "oob_mode": oob_mode.name, "queue": engine.name, "priority": priority},
    )
    skip = oob_mode is Oob.skip
    if dst.index is None and src.index is None:
        out = dst.values
        values = src.values
        if values.shape != out.shape:
            values = values.reshape(out.shape)
        if dst.dtype is src.dtype:
            out[...] = values
        else:
            out[...] = convert(values.astype(F32), dst.dtype, out.dtype)
        return made
    _copy_dynamic(dst, src, skip)
    return made


def operand(t: Any, label: str) -> None:
    """A DMA operand: any tensor outside PSUM, on any partitions."""
    checks.tensor(t, label)
    if t.buffer is PSUM:
        rules.broken(rules.DMA_SPACE, label, t.buffer.value)


def descriptor_mode(
    core: Core, dst: NkiTensor, src: NkiTensor, mode: Dge, queue: Engine, priority: int | None
) -> str:
    """The descriptor generation asked for, checked (nki-dge.rst; nki.isa.dma_copy, NKI 0.6)."""
    checks.member(mode, Dge, "dge_mode")
    checks.member(queue, Engine, "engine")
    vector = any(t.index is not None and t.index.kind == "vector" for t in (dst, src))
    if mode is Dge.hwdge:
        if not core.target.hwdge:
            rules.broken(rules.DMA_DGE, "dge_mode", mode.name, core.target.generation)
        if dst.dtype is not src.dtype:
            rules.broken(rules.DMA_DGE, "dge_mode", mode.name, f"{dst.dtype} from {src.dtype}")
        if vector:
            rules.broken(rules.DMA_DGE, "dge_mode", mode.name, "vector_offset")
    if mode is Dge.none and (dst.index is not None or src.index is not None):
        rules.broken(
            rules.DMA_DGE, "dge_mode", mode.name, "run-time addresses need descriptors on device"
        )
    if queue is not Engine.unknown and (
        mode is not Dge.hwdge or queue not in (Engine.sync, Engine.scalar)
    ):
        rules.broken(rules.DMA_ENGINE, "engine", queue.name, f"dge_mode is {mode.name}")
    if priority is not None and (core.version < 4 or priority not in (0, 1, 2, 3)):
        rules.broken(rules.DMA_PRIORITY, "priority", priority, core.target.generation)
    return mode.name


def _copy_dynamic(dst: NkiTensor, src: NkiTensor, skip: bool) -> None:
    """Gather, scatter, or a copy at a run-time start; out-of-bounds rows as ``skip`` says."""
    source, keep = fetch(src, skip)
    if keep is None:
        return
    if dst.dtype is not src.dtype:
        source = convert(source.astype(F32), dst.dtype, dst.carrier)
    put(dst, source.reshape(dst.shape), skip, keep)


def fetch(src: NkiTensor, skip: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Elements of a source at a run-time address, and which rows exist (None: all is skipped)."""
    index = src.index
    if index is None:
        return src.values, np.ones(src.shape[0], bool)
    if index.kind == "scalar":
        if skip and not _inside(src):
            return np.empty(src.shape, src.dtype.numpy), None
        return src.values, np.ones(src.shape[0], bool)
    flat, where, keep = _rows(src, skip)
    return flat[where], keep


def put(dst: NkiTensor, values: np.ndarray, skip: bool, keep: np.ndarray) -> None:
    """Store ``values`` [rows, ...], only the rows in ``keep``, at dst's run-time address."""
    index = dst.index
    storage = dst.storage
    if index is not None and index.kind == "vector":
        flat, where, inside = _rows(dst, skip)
        rows = keep & inside if keep.shape == inside.shape else inside
        flat[where[rows]] = values[rows]
        _mark(storage, dst, where[rows])
        return
    if index is not None:
        if skip and not _inside(dst):
            return
        at = dst.resolved()
        at.values[...] = values
        storage.ensure_state_array()
        storage.states(at.offset, at.shape, at.strides, at.dtype.itemsize)[...] = WRITTEN
        return
    if keep.all():
        dst.values[...] = values
    elif keep.shape[0] == dst.shape[0]:
        dst.values[keep] = values[keep]
    else:
        rules.broken(rules.DMA_ELEMENTS, "dst", dst.shape, f"{keep.shape[0]} rows, some skipped")


def _inside(t: NkiTensor) -> bool:
    """Whether the run-time start keeps the whole pattern inside its tensor."""
    assert t.index is not None
    at = scalar_value(t.index.index)
    low, high = t.span()
    shift = at * t.index.stride
    total = t.storage.info.nbytes // t.dtype.itemsize
    return 0 <= at < t.index.limit and low + shift >= 0 and high + shift <= total


def _rows(t: NkiTensor, skip: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the rows of a vector-indirect view stand.

    Returns:
        All elements in one line, the element index of each [row, ...], and which rows are inside.
    """
    assert t.index is not None
    flat = t.flat
    numbers = t.index.index.values.T.reshape(-1)[: t.shape[0]].astype(np.int64)
    if numbers.shape[0] != t.shape[0]:
        rules.broken(rules.AP_DYNAMIC, "vector_offset", t.index.index.shape, f"{t.shape[0]} rows")
    inner = np.zeros(t.shape[1:], np.int64)
    for axis, (n, s) in enumerate(zip(t.shape[1:], t.strides[1:], strict=True)):
        line = np.arange(n, dtype=np.int64) * s
        inner += line.reshape((-1,) + (1,) * (t.ndim - axis - 2))
    where = t.offset + (numbers * t.index.stride).reshape((-1,) + (1,) * (t.ndim - 1)) + inner[None]
    inside = (numbers >= 0) & (numbers < t.index.limit)
    inside &= where.reshape(t.shape[0], -1).max(axis=1) < flat.shape[0]
    if not inside.all():
        if not skip:
            bad = numbers[~inside][0]
            rules.broken(rules.DMA_BOUNDS, "vector_offset", int(bad), f"{t.index.limit} rows")
        where = np.where(inside.reshape((-1,) + (1,) * (t.ndim - 1)), where, 0)
    return flat, where, inside


def _mark(storage: Any, t: NkiTensor, where: np.ndarray) -> None:
    """Remember which elements a scatter wrote."""
    if storage.state == WRITTEN if isinstance(storage.state, int) else False:
        return
    if storage.info.dtype.itemsize == t.dtype.itemsize:
        storage.ensure_state_array()
        storage.state[where] = WRITTEN
    else:
        storage.state = WRITTEN
