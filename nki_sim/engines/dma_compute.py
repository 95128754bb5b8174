"""DMA engines beyond copies: transposes, and sums of several tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import reduce_op as reducing_op
from nki_sim.dtypes import uint32
from nki_sim.engines.dma import descriptor_mode, fetch, operand, put
from nki_sim.enums import dge_mode as Dge
from nki_sim.enums import engine as Engine
from nki_sim.enums import oob_mode as Oob
from nki_sim.machine import current, instruction
from nki_sim.memory import HBM, SBUF
from nki_sim.numerics import F32, convert
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

dge_mode = Dge
oob_mode = Oob

_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 1, 2, 0)}


@instruction
def dma_transpose(
    dst: NkiTensor,
    src: NkiTensor,
    axes: tuple[int, ...] | None = None,
    priority: int | None = None,
    dge_mode: Dge = Dge.unknown,
    oob_mode: Oob = Oob.error,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = src.transpose(axes)``: first and last dimension change places; 2, 3 or 4 dimensions.

    With a vector offset on ``src`` (gen3 and newer) the rows named by the index tile, read column
    by column, are gathered first. Hardware descriptors and gathers take 2-byte elements and at
    most 128 in the last dimension (nki.isa.dma_transpose, NKI 0.6).
    """
    core = current()
    operand(dst, "dst")
    operand(src, "src")
    if dst.dtype is not src.dtype:
        rules.broken(rules.TRANSPOSE_DTYPE, "dst", dst.dtype, f"src is {src.dtype}")
    wanted = _AXES.get(src.ndim)
    given = wanted if axes is None else tuple(axes)
    if wanted is None or given != wanted:
        rules.broken(rules.DMA_TRANSPOSE, "axes", axes, f"src is {src.shape}")
    assert given is not None
    shape = tuple(src.shape[a] for a in given)
    if dst.shape != shape:
        rules.broken(rules.DMA_TRANSPOSE, "dst", dst.shape, f"expects {shape}")
    checks.member(oob_mode, Oob, "oob_mode")
    mode = descriptor_mode(core, dst, src, dge_mode, Engine.unknown, priority)
    if dge_mode is Dge.hwdge:
        _check_hardware(src)
    gathers = src.index is not None and src.index.kind == "vector"
    if gathers:
        _check_gather(src, dge_mode, core.version)
    elif dge_mode not in (Dge.unknown, Dge.hwdge):
        rules.broken(
            rules.DMA_TRANSPOSE, "dge_mode", mode, "unknown or hwdge without a vector offset"
        )
    if oob_mode is Oob.skip and src.index is None:
        rules.broken(rules.DMA_TRANSPOSE, "oob_mode", "skip", "only with a run-time index")
    made = core.issue(
        "dma", "dma_transpose", (("dst", dst),), (("src", src),),
        src.size, name,
        {"axes": given, "dge_mode": mode, "oob_mode": oob_mode.name, "priority": priority},
    )  # fmt: skip
    values, keep = fetch(src, oob_mode is Oob.skip)
    if keep is None:
        return made
    turned = values.transpose(given)
    if keep.all():
        put(dst, turned, False, np.ones(dst.shape[0], bool))
    else:  # skipped rows are columns of the transpose: dst keeps what it had there
        out = dst.values
        out[..., keep] = turned[..., keep]
    return made


def _check_hardware(src: NkiTensor) -> None:
    first = src.shape[0]
    rows = (
        first == 16
        if src.ndim == 2
        else (first in (1, 2, 4, 8, 16) and (first * src.shape[-2]) % 16 == 0)
    )
    if not rows or src.shape[-1] > 128 or src.dtype.itemsize != 2:
        rules.broken(rules.DMA_TRANSPOSE, "src", f"{src.shape} {src.dtype}", "hwdge")


def _check_gather(src: NkiTensor, mode: Dge, version: int) -> None:
    assert src.index is not None
    index: NkiTensor = src.index.index
    rows, columns = index.shape[0], index.size // index.shape[0]
    legal = (
        version >= 3
        and mode in (Dge.unknown, Dge.swdge)
        and (src.ndim != 4 or 1 in src.shape[1:3])
        and src.shape[-1] <= 128
        and src.dtype.itemsize == 2
        and index.ndim == 2
        and rows * columns >= src.shape[0]
        and src.shape[0] % 16 == 0
        and 16 <= rows <= 128
        and rows % 16 == 0
        and (columns == 1 or rows == 128)
        and index.dtype is uint32
        and index.buffer is SBUF
    )
    if not legal:
        rules.broken(
            rules.DMA_TRANSPOSE,
            "src",
            f"{src.shape} {src.dtype}",
            f"index {index.shape} {index.dtype}",
        )


@instruction
def dma_compute(
    dst: NkiTensor,
    srcs: Any,
    reduce_op: Any,
    scales: Any = None,
    unique_indices: bool = True,
    oob_mode: Oob = Oob.error,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = sum(srcs)`` in float32, rounded to ``dst.dtype``; up to 16 sources.

    With a vector offset it reads, adds and writes back: ``dst[idx] += src`` (dst and one source are
    the same indirect view) or ``dst += src[idx]``. Indices must then be unique; the simulator
    checks that (nki.isa.dma_compute, NKI 0.6).
    """
    core = current()
    operand(dst, "dst")
    srcs = list(srcs)
    if not 1 <= len(srcs) <= 16:
        rules.broken(rules.DMA_COMPUTE, "srcs", len(srcs), "1 to 16 sources")
    for i, src in enumerate(srcs):
        operand(src, f"srcs[{i}]")
        if src.size != dst.size:
            rules.broken(rules.DMA_ELEMENTS, f"srcs[{i}]", src.shape, f"dst is {dst.shape}")
    alu = reducing_op(reduce_op, "reduce_op", core.version, ("add",))
    if scales is not None and any(s != 1.0 for s in scales):
        rules.broken(rules.DMA_COMPUTE, "scales", scales, "all 1.0")
    checks.member(oob_mode, Oob, "oob_mode")
    indirect = [t for t in (dst, *srcs) if t.index is not None and t.index.kind == "vector"]
    if indirect:
        if len(srcs) != 2 or not unique_indices:
            rules.broken(
                rules.DMA_COMPUTE, "srcs, unique_indices", f"{len(srcs)}, {unique_indices}",
                "read-modify-write takes 2 sources and unique indices",
            )  # fmt: skip
        if dst.buffer in HBM and dst.index is None:
            rules.broken(rules.DMA_COMPUTE, "dst", dst.access, "scatter needs an indirect dst")
        if dst.index is not None:
            _check_unique(dst)
    made = core.issue(
        "dma", "dma_compute", (("dst", dst),),
        tuple((f"src{i}", s) for i, s in enumerate(srcs)),
        dst.size, name,
        {"reduce_op": alu.name, "oob_mode": oob_mode.name, "unique_indices": unique_indices},
    )  # fmt: skip
    skip = oob_mode is Oob.skip
    total: np.ndarray | None = None
    kept = np.ones(dst.shape[0], bool)
    for src in srcs:
        values, keep = fetch(src, skip)
        if keep is None:
            return made
        wide = values.astype(F32).reshape(dst.shape)
        total = wide if total is None else total + wide
        if keep.shape == kept.shape:
            kept &= keep
    assert total is not None
    put(dst, convert(total, dst.dtype, dst.carrier), skip, kept)
    return made


def _check_unique(t: NkiTensor) -> None:
    """The indices of a scatter are what the caller promised; those that are skipped may repeat."""
    assert t.index is not None
    index: NkiTensor = t.index.index
    numbers = index.values.T.reshape(-1)[: t.shape[0]]
    order = np.argsort(numbers, kind="stable")
    line = numbers[order]
    twice = (line[1:] == line[:-1]) & (line[1:] >= 0) & (line[1:] < t.index.limit)
    if twice.any():
        at = int(twice.argmax())
        first, second = (_row(int(order[k]), index) for k in (at, at + 1))
        rules.broken(
            rules.DMA_UNIQUE,
            "vector_offset",
            int(line[at]),
            f"{first} and {second} both add to that row",
        )


def _row(number: int, index: NkiTensor) -> str:
    """The row of a scatter, and where in the index tile its number stands."""
    column, partition = divmod(number, index.shape[0])
    return f"row {number} (index[{partition}, {column}])"
