"""VectorE: the eight largest values, statistics, scans, and movement within quadrants."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import alu_op
from nki_sim.alu import reduce_op as reducing_op
from nki_sim.dtypes import int32, uint16, uint32
from nki_sim.engines.vector import _apply, _operand
from nki_sim.enums import reduce_cmd as Reduce
from nki_sim.machine import current, instruction
from nki_sim.numerics import F32, read32, write
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

_MIN8, _MAX8 = 8, 16384  # elements per partition of max8 and its companions
_BN_STATS_FMAX = 512
_QUADRANT = 32
_NOWHERE = np.uint16(0xFFFF)  # of a value that is not there
_KEEP = 255  # shuffle mask value that leaves a partition unmodified


@instruction
def max8(dst: NkiTensor, src: NkiTensor, name: str | None = None) -> NkiInstruction:
    """The 8 largest values of each partition, in descending order; dst is [P, 8]."""
    core = current()
    checks.tile(dst, "dst")
    checks.tile(src, "src")
    _check_search(src, "src")
    _check_eight(dst, "dst", src)
    made = core.issue("vector", "max8", (("dst", dst),), (("src", src),), src.free, name)
    rows = read32(src).reshape(src.shape[0], -1)
    write(dst, -np.sort(-rows, axis=1)[:, :8])
    return made


@instruction
def nc_find_index8(
    dst: NkiTensor, data: NkiTensor, vals: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """Position in ``data`` of each of 8 values per partition; all ones where a value is missing.

    Equal values among ``vals`` get successive occurrences, in ascending order.
    """
    core = current()
    for t, label in ((dst, "dst"), (data, "data"), (vals, "vals")):
        checks.tile(t, label)
    _check_search(data, "data")
    _check_eight(vals, "vals", data)
    _check_eight(dst, "dst", data)
    if dst.dtype not in (uint16, uint32):
        rules.broken(rules.DTYPE, "dst", dst.dtype, "uint16 or uint32")
    made = core.issue(
        "vector",
        "nc_find_index8",
        (("dst", dst),),
        (("data", data), ("vals", vals)),
        data.free,
        name,
    )
    found = _match(data, vals, range(8))
    dst.values[...] = _positions(found, dst)
    return made


@instruction
def nc_match_replace8(
    dst: NkiTensor,
    data: NkiTensor,
    vals: NkiTensor,
    imm: float,
    dst_idx: NkiTensor | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """``data`` with the first occurrence of each of 8 values per partition replaced by ``imm``.

    Values are handled from the last to the first, so that among equal ones the last gets the first
    position; ``dst_idx`` receives the positions, all ones where there was no match.
    """
    core = current()
    for t, label in ((dst, "dst"), (data, "data"), (vals, "vals")):
        checks.tile(t, label)
    _check_search(data, "data")
    _check_eight(vals, "vals", data)
    checks.number(imm, "imm")
    checks.same_layout(dst, "dst", data, "data")
    writes: tuple[tuple[str, NkiTensor], ...] = (("dst", dst),)
    if dst_idx is not None:
        checks.tile(dst_idx, "dst_idx")
        _check_eight(dst_idx, "dst_idx", data)
        if dst_idx.dtype not in (uint16, uint32):
            rules.broken(rules.DTYPE, "dst_idx", dst_idx.dtype, "uint16 or uint32")
        writes = (*writes, ("dst_idx", dst_idx))
    made = core.issue(
        "vector", "nc_match_replace8", writes, (("data", data), ("vals", vals)), data.free, name,
        {"imm": imm},
    )  # fmt: skip
    found = _match(data, vals, range(7, -1, -1))
    rows = read32(data).reshape(data.shape[0], -1).copy()
    partition, slot = np.nonzero(found != _NOWHERE)
    rows[partition, found[partition, slot]] = F32(imm)
    write(dst, rows)
    if dst_idx is not None:
        dst_idx.values[...] = _positions(found, dst_idx)
    return made


def _positions(found: np.ndarray, dst: NkiTensor) -> np.ndarray:
    """Positions as elements of ``dst``: all ones there too, where there is none."""
    if dst.dtype is uint32:
        found = np.where(found == _NOWHERE, np.uint32(0xFFFFFFFF), found)
    return found.reshape(dst.shape)


def _first(hits: np.ndarray) -> np.ndarray:
    """The first true position along the middle axis, as uint16 (there are at most 16384)."""
    places = np.full(hits.shape, _NOWHERE)
    np.copyto(places, np.arange(hits.shape[1], dtype=np.uint16)[:, None], where=hits)
    return places.min(axis=1)


def _match(data: NkiTensor, vals: NkiTensor, order: range) -> np.ndarray:
    """Position of each value, uint16 [P, 8], each used once; all ones where there is none."""
    n = data.free
    rows = np.ascontiguousarray(read32(data).reshape(data.shape[0], n).T)  # [N, P]
    wanted = np.ascontiguousarray(read32(vals).reshape(data.shape[0], 8).T)  # [8, P]
    hits = rows == wanted[:, None, :]  # [8, N, P]
    found = _first(hits)
    same = wanted[:, None, :] == wanted  # [8, 8, P]
    if np.count_nonzero(same) > np.count_nonzero(wanted == wanted):  # equal values take turns
        slots = np.empty((8, 1, 1), np.int64)
        slots[list(order), 0, 0] = np.arange(8)  # who is served when
        turns = (same & (slots > slots.reshape(1, 8, 1))).sum(axis=1)
        for turn in range(int(turns.max())):
            slot, partition = np.nonzero((turns > turn) & (found != _NOWHERE))
            hits[slot, found[slot, partition], partition] = False
            found = _first(hits)
    return found.T


def _check_search(t: NkiTensor, operand: str) -> None:
    if not _MIN8 <= t.free <= _MAX8:
        rules.broken(rules.SEARCH_SIZE, operand, t.shape)


def _check_eight(t: NkiTensor, operand: str, data: NkiTensor) -> None:
    if t.shape[0] != data.shape[0]:
        rules.broken(rules.SAME_PARTITIONS, operand, t.shape, f"data is {data.shape}")
    if t.free != 8:
        rules.broken(rules.SEARCH_EIGHT, operand, t.shape)


@instruction
def bn_stats(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Count, mean and variance * count of the even and of the odd elements of each partition."""
    core = current()
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    if data.free > _BN_STATS_FMAX:
        rules.broken(rules.BN_STATS, "data", data.shape)
    if dst.shape[0] != data.shape[0] or dst.free != 6:
        rules.broken(rules.BN_STATS, "dst", dst.shape, "expects 6 elements per partition")
    made = core.issue("vector", "bn_stats", (("dst", dst),), (("data", data),), data.free, name)
    rows = read32(data).reshape(data.shape[0], -1)
    parts: list[np.ndarray] = []
    for half in (rows[:, 0::2], rows[:, 1::2]):
        count = half.shape[1]
        mean = half.mean(axis=1, dtype=F32) if count else np.zeros(rows.shape[0], F32)
        spread = ((half - mean[:, None]) ** 2).sum(axis=1, dtype=F32)
        parts += [np.full(rows.shape[0], count, F32), mean, spread]
    write(dst, np.stack(parts, axis=1))
    return made


@instruction
def bn_aggr(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Mean and variance from (count, mean, variance * count) triples of each partition."""
    core = current()
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    if data.free % 3 or dst.free != 2 or dst.shape[0] != data.shape[0]:
        rules.broken(
            rules.BN_STATS, "dst, data", f"{dst.shape}, {data.shape}", "[P, 2] of [P, 3 k]"
        )
    made = core.issue("vector", "bn_aggr", (("dst", dst),), (("data", data),), data.free, name)
    triples = read32(data).reshape(data.shape[0], -1, 3)  # [P, k, (count, mean, m2)]
    count, means, spreads = triples[:, :, 0], triples[:, :, 1], triples[:, :, 2]
    total = count.sum(axis=1, dtype=F32)
    mean = (count * means).sum(axis=1, dtype=F32) / total
    between = (count * (means - mean[:, None]) ** 2).sum(axis=1, dtype=F32)
    variance = (spreads.sum(axis=1, dtype=F32) + between) / total
    write(dst, np.stack([mean, variance], axis=1))
    return made


@instruction
def tensor_tensor_scan(
    dst: NkiTensor,
    data0: NkiTensor,
    data1: NkiTensor,
    initial: Any,
    op0: Any,
    op1: Any,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``dst[i] = op1(op0(data0[i], dst[i - 1]), data1[i])``, starting from ``initial``."""
    core = current()
    first, second = alu_op(op0, "op0", core.version), alu_op(op1, "op1", core.version)
    for alu, label in ((first, "op0"), (second, "op1")):
        if alu.bitvec or alu.unary:
            rules.broken(rules.OP, label, alu.name, "a binary arithmetic operator")
    for t, label in ((dst, "dst"), (data0, "data0"), (data1, "data1")):
        checks.tile(t, label)
    checks.not_both_psum(data0, "data0", data1, "data1")
    checks.same_layout(data1, "data1", data0, "data0")
    checks.same_layout(dst, "dst", data0, "data0")
    reads: list[tuple[str, NkiTensor]] = [("data0", data0), ("data1", data1)]
    attrs: dict[str, Any] = {"op0": first.name, "op1": second.name}
    partitions = data0.shape[0]
    if isinstance(initial, NkiTensor):
        checks.column(initial, "initial", data0)
        reads.append(("initial", initial))
        state = read32(initial).reshape(partitions)
    else:
        attrs["initial"] = initial
        state = np.full(partitions, initial, F32)
    made = core.issue(
        "vector", "tensor_tensor_scan", (("dst", dst),), tuple(reads), data0.free, name, attrs
    )
    x = np.ascontiguousarray(read32(data0).reshape(partitions, -1).T)  # [N, P]
    y = np.ascontiguousarray(read32(data1).reshape(partitions, -1).T)
    out = np.empty_like(x)
    for i in range(x.shape[0]):  # each step needs the one before it
        step = first.fn(state, x[i]) if reverse0 else first.fn(x[i], state)
        state = second.fn(y[i], step) if reverse1 else second.fn(step, y[i])
        out[i] = state
    write(dst, out.T)
    return made


@instruction
def tensor_scalar_cumulative(
    dst: NkiTensor,
    src: NkiTensor,
    op0: Any,
    op1: Any,
    imm0: Any,
    imm1: Any = None,
    reduce_cmd: Reduce = Reduce.reset_reduce,
    name: str | None = None,
) -> NkiInstruction:
    """``reg = op1(op0(src[i], imm0), reg); dst[i] = reg`` along the free dimension.

    ``reg`` is VectorE's accumulator: reset to op1's identity, continued, or loaded from ``imm1``.
    """
    core = current()
    first = alu_op(op0, "op0", core.version)
    second = reducing_op(
        op1, "op1", core.version, ("add", "subtract", "multiply", "maximum", "minimum")
    )
    if first.bitvec:
        rules.broken(rules.OP, "op0", first.name, "an arithmetic operator")
    checks.tile(dst, "dst")
    checks.tile(src, "src")
    checks.same_layout(dst, "dst", src, "src")
    checks.member(reduce_cmd, Reduce, "reduce_cmd")
    for t, label in ((dst, "dst"), (src, "src")):
        if t.dtype in (int32, uint32):
            rules.broken(rules.DTYPE, label, t.dtype)
    if reduce_cmd not in (Reduce.reset_reduce, Reduce.reduce, Reduce.load_reduce):
        rules.broken(rules.REDUCE_CMD, "reduce_cmd", reduce_cmd.name)
    if (imm1 is None) == (reduce_cmd is Reduce.load_reduce):
        rules.broken(rules.REDUCE_CMD, "imm1", imm1, f"reduce_cmd is {reduce_cmd.name}")
    reads: list[tuple[str, NkiTensor]] = [("src", src)]
    attrs: dict[str, Any] = {"op0": first.name, "op1": second.name, "reduce_cmd": reduce_cmd.name}
    a = _operand(first, imm0, "imm0", src, reads, attrs)
    n = src.shape[0]
    if isinstance(imm1, NkiTensor):
        checks.column(imm1, "imm1", src, fp32=True)
        reads.append(("imm1", imm1))
    registers = core.vector_accumulator
    if reduce_cmd is Reduce.reduce and registers is None:
        rules.broken(rules.REDUCE_STATE, "reduce_cmd", reduce_cmd.name)
    made = core.issue(
        "vector", "tensor_scalar_cumulative", (("dst", dst),), tuple(reads), src.free, name, attrs
    )
    if registers is None:
        registers = core.vector_accumulator = np.zeros(128, F32)
    if reduce_cmd is Reduce.reset_reduce:
        start = np.full(n, second.identity, F32)
    elif reduce_cmd is Reduce.load_reduce:
        start = imm1.values.reshape(n) if isinstance(imm1, NkiTensor) else np.full(n, imm1, F32)
    else:
        start = registers[:n].copy()
    values = _apply(first, read32(src), a, False).reshape(n, -1)
    if second.name == "subtract":  # reg = value - reg has no ufunc accumulate
        out = np.empty_like(values)
        state = start
        for i in range(values.shape[1]):
            state = values[:, i] - state
            out[:, i] = state
    else:
        ufunc: Any = second.fn
        out = ufunc.accumulate(np.concatenate([start[:, None], values], axis=1), axis=1)[:, 1:]
    registers[:n] = out[:, -1]
    write(dst, out)
    return made


@instruction
def nc_stream_shuffle(
    dst: NkiTensor, src: NkiTensor, shuffle_mask: Any, name: str | None = None
) -> NkiInstruction:
    """Partition i of each 32-partition quadrant of dst gets partition ``shuffle_mask[i]`` of src's.

    255 leaves a partition as it is; in-place shuffles are allowed.
    """
    core = current()
    checks.tile(dst, "dst")
    checks.tile(src, "src")
    if dst.dtype is not src.dtype:
        rules.broken(rules.DTYPE, "dst", dst.dtype, f"src is {src.dtype}")
    if dst.free != src.free:
        rules.broken(rules.SAME_ELEMENTS, "dst", dst.shape, f"src is {src.shape}")
    mask = [int(m) for m in shuffle_mask]
    legal = all(0 <= m < _QUADRANT or m == _KEEP for m in mask)
    if len(mask) != _QUADRANT or not legal:
        rules.broken(rules.SHUFFLE_MASK, "shuffle_mask", mask)
    active = -(-max(dst.shape[0], src.shape[0]) // _QUADRANT) * _QUADRANT
    starts = {32: (0, 32, 64, 96), 64: (0, 64)}.get(active, (0,))
    for t, label in ((dst, "dst"), (src, "src")):
        if t.start_partition not in starts:
            rules.broken(
                rules.START_PARTITION, label, t.start_partition, f"{active} active partitions"
            )
    made = core.issue(
        "vector",
        "nc_stream_shuffle",
        (("dst", dst),),
        (("src", src),),
        src.free,
        name,
        {"mask": mask},
    )
    lanes = np.array(mask)
    partitions = np.arange(dst.shape[0])
    lane = lanes[partitions % _QUADRANT]
    kept = lane == _KEEP
    at = np.where(kept, 0, partitions // _QUADRANT * _QUADRANT + lane)
    if at.max() >= src.shape[0]:
        rules.broken(rules.SHUFFLE_MASK, "shuffle_mask", mask, f"src has {src.shape[0]} partitions")
    moved = src.values[at].reshape(dst.shape)
    if kept.any():
        dst.values[~kept] = moved[~kept]
    else:
        dst.values[...] = moved
    return made
