"""GpSimdE: gathers, compaction, selection of the largest, and reduction across partitions.

Each of the eight GpSimd cores serves 16 partitions (trainium_inferentia2_arch.rst, GpSimd Engine);
several of these instructions work on such groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import op_name
from nki_sim.checks import SBUF_ONLY
from nki_sim.dtypes import bfloat16, float32, int32, uint16, uint32
from nki_sim.machine import current, instruction
from nki_sim.numerics import F32, read32, write
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

_GROUP = 16  # partitions of one GpSimd core


@instruction
def local_gather(
    dst: NkiTensor,
    src_buffer: NkiTensor,
    index: NkiTensor,
    num_elem_per_idx: int = 1,
    num_valid_indices: int | None = None,
    name: str | None = None,
) -> NkiInstruction:
    """Gather along the free dimension with one list of indices per 16 partitions.

    The indices of a group are its slice of ``index`` read partition first; each fetches
    ``num_elem_per_idx`` contiguous elements from every partition of the group.
    """
    core = current()
    for t, label in ((dst, "dst"), (src_buffer, "src_buffer"), (index, "index")):
        checks.tile(t, label, SBUF_ONLY)
    partitions = src_buffer.shape[0]
    if index.shape[0] != partitions or partitions % _GROUP:
        rules.broken(rules.GATHER, "index", index.shape, f"src_buffer is {src_buffer.shape}")
    if index.dtype is not uint16:
        rules.broken(rules.DTYPE, "index", index.dtype, "uint16")
    if dst.dtype is not src_buffer.dtype:
        rules.broken(rules.DTYPE, "dst", dst.dtype, f"src_buffer is {src_buffer.dtype}")
    if num_elem_per_idx not in (1, 2, 4, 8, 16, 32):
        rules.broken(rules.GATHER, "num_elem_per_idx", num_elem_per_idx)
    per_core = index.free * _GROUP
    count = per_core if num_valid_indices is None else num_valid_indices
    if not 1 <= count <= min(per_core, 4096):
        rules.broken(rules.GATHER, "num_valid_indices", count, f"{per_core} per core, at most 4096")
    if dst.shape[0] != partitions or dst.free != count * num_elem_per_idx:
        rules.broken(rules.GATHER, "dst", dst.shape, f"{count} x {num_elem_per_idx} per partition")
    made = core.issue(
        "gpsimd", "local_gather", (("dst", dst),), (("src_buffer", src_buffer), ("index", index)),
        src_buffer.free, name, {"num_elem_per_idx": num_elem_per_idx, "num_valid_indices": count},
    )  # fmt: skip
    groups = partitions // _GROUP
    rows = src_buffer.values.reshape(groups, _GROUP, -1)
    numbers = index.values.reshape(groups, _GROUP, -1).astype(np.int64)
    flat = numbers.transpose(0, 2, 1).reshape(groups, -1)[:, :count]  # partition first
    at = (flat[:, :, None] + np.arange(num_elem_per_idx)).reshape(groups, 1, -1)
    if at.max() >= rows.shape[2]:
        rules.broken(rules.GATHER_BOUNDS, "index", int(at.max()), f"{rows.shape[2]} elements")
    dst.values[...] = np.take_along_axis(rows, at, axis=2).reshape(dst.shape)
    return made


@instruction
def nc_n_gather(
    dst: NkiTensor, data: NkiTensor, indices: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """``dst[p, i] = data[p, indices[p, i]]`` with the free dimensions of data flattened."""
    core = current()
    for t, label in ((dst, "dst"), (data, "data"), (indices, "indices")):
        checks.tile(t, label, SBUF_ONLY)
    if indices.dtype is not uint32:
        rules.broken(rules.DTYPE, "indices", indices.dtype, "uint32")
    if dst.dtype is not data.dtype:
        rules.broken(rules.DTYPE, "dst", dst.dtype, f"data is {data.dtype}")
    checks.same_layout(dst, "dst", indices, "indices")
    if data.shape[0] != indices.shape[0]:
        rules.broken(rules.SAME_PARTITIONS, "data", data.shape, f"indices are {indices.shape}")
    made = core.issue(
        "gpsimd", "nc_n_gather", (("dst", dst),), (("data", data), ("indices", indices)),
        indices.free, name,
    )  # fmt: skip
    rows = data.values.reshape(data.shape[0], -1)
    at = indices.values.reshape(indices.shape[0], -1).astype(np.int64)
    if at.max() >= rows.shape[1]:
        rules.broken(rules.GATHER_BOUNDS, "indices", int(at.max()), f"{rows.shape[1]} elements")
    dst.values[...] = np.take_along_axis(rows, at, axis=1).reshape(dst.shape)
    return made


@instruction
def nonzero_with_count(
    dst: NkiTensor,
    src: NkiTensor,
    index_offset: int = 0,
    padding_val: int = -1,
    name: str | None = None,
) -> NkiInstruction:
    """Indices of the non-zero elements, padding, and their count last.

    Only partitions 0, 16, ..., 112 take part (nki.isa.nonzero_with_count, NKI 0.6).
    """
    core = current()
    if core.version < 3:
        rules.broken(rules.AVAILABILITY, "nonzero_with_count", core.target.generation, "needs gen3")
    checks.tile(dst, "dst", SBUF_ONLY)
    checks.tile(src, "src", SBUF_ONLY)
    if src.dtype not in (float32, int32) or dst.dtype is not int32:
        rules.broken(
            rules.DTYPE, "dst, src", f"{dst.dtype}, {src.dtype}", "int32 of float32 or int32"
        )
    if dst.shape[0] != src.shape[0] or dst.free != src.free + 1:
        rules.broken(rules.SAME_ELEMENTS, "dst", dst.shape, f"one more than src, {src.shape}")
    made = core.issue(
        "gpsimd", "nonzero_with_count", (("dst", dst),), (("src", src),), src.free, name,
        {"index_offset": index_offset, "padding_val": padding_val, "keeps_dst": True},
    )  # fmt: skip
    rows = src.values.reshape(src.shape[0], -1)
    out = dst.values.reshape(dst.shape[0], -1) if dst.ndim != 2 else dst.values
    for partition in range(0, src.shape[0], _GROUP):
        found = np.flatnonzero(rows[partition])
        line = np.full(rows.shape[1] + 1, padding_val, np.int32)
        line[: found.size] = found + index_offset
        line[-1] = found.size
        out[partition] = line
    return made


@instruction
def topk(
    val_dst: NkiTensor, idx_dst: NkiTensor, src: NkiTensor, n: int, name: str | None = None
) -> NkiInstruction:
    """The K largest of the ``n`` elements of 16 partitions, ascending, with their indices.

    Element i of a group lies in partition i % 16, column i // 16; K is the free size of
    ``val_dst``. Every partition of the group receives the group's result (the stub says "for each
    partition" of a 16-partition input; equal values are ordered by index).
    """
    core = current()
    for t, label in ((val_dst, "val_dst"), (idx_dst, "idx_dst"), (src, "src")):
        checks.tile(t, label, SBUF_ONLY)
    if src.dtype is not bfloat16 or val_dst.dtype is not bfloat16 or idx_dst.dtype is not uint32:
        rules.broken(
            rules.DTYPE, "src, val_dst, idx_dst", f"{src.dtype}, {val_dst.dtype}, {idx_dst.dtype}"
        )
    k, partitions = val_dst.free, src.shape[0]
    sizes = 8 <= n < 65536 and 1 <= k < 32768 and k <= n and src.free >= -(-n // _GROUP)
    same = val_dst.shape[0] == idx_dst.shape[0] == partitions and idx_dst.free == k
    if not sizes or not same or partitions % _GROUP:
        rules.broken(rules.TOPK, "n, K, src", f"{n}, {k}, {src.shape}")
    made = core.issue(
        "gpsimd", "topk", (("val_dst", val_dst), ("idx_dst", idx_dst)), (("src", src),), src.free,
        name, {"n": n, "k": k},
    )  # fmt: skip
    groups = partitions // _GROUP
    rows = read32(src).reshape(groups, _GROUP, -1)
    snake = rows.transpose(0, 2, 1).reshape(groups, -1)[:, :n]
    best = np.argsort(snake, axis=1, kind="stable")[:, n - k :]  # [group, K]
    largest = np.take_along_axis(snake, best, axis=1)
    write(val_dst, largest.repeat(_GROUP, axis=0))
    idx_dst.values[...] = best.repeat(_GROUP, axis=0).reshape(idx_dst.shape)
    return made


@instruction
def sequence_bounds(
    dst: NkiTensor, segment_ids: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """For each element the start and end of its run of equal ids; padding (id 0) gets (n, -1).

    ``segment_ids`` is (1, n), dst (1, 2, n): starts, then ends.
    """
    core = current()
    checks.tile(dst, "dst", SBUF_ONLY)
    checks.tile(segment_ids, "segment_ids", SBUF_ONLY)
    n = segment_ids.free
    if segment_ids.shape[0] != 1 or dst.shape[0] != 1 or dst.free != 2 * n:
        rules.broken(rules.SEQUENCE_BOUNDS, "dst, segment_ids", f"{dst.shape}, {segment_ids.shape}")
    for t, label in ((dst, "dst"), (segment_ids, "segment_ids")):
        if t.dtype not in (float32, int32):
            rules.broken(rules.DTYPE, label, t.dtype, "float32 or int32")
    made = core.issue(
        "gpsimd", "sequence_bounds", (("dst", dst),), (("segment_ids", segment_ids),), n, name
    )
    ids = segment_ids.values.reshape(-1)
    change = np.flatnonzero(np.diff(ids)) + 1
    starts = np.concatenate([[0], change])
    ends = np.concatenate([change, [n]])
    lengths = ends - starts
    padding = ids == 0
    begin = np.where(padding, n, np.repeat(starts, lengths))
    end = np.where(padding, -1, np.repeat(ends, lengths))
    write(dst, np.stack([begin, end]).astype(F32)[None])
    return made


_PARTITION_REDUCTIONS = ("add", "average", "maximum", "bitwise_or", "bitwise_and")


@instruction
def tensor_partition_reduce(
    dst: NkiTensor, op: Any, data: NkiTensor, name: str | None = None
) -> NkiInstruction:
    """Reduce over partitions: ``dst[0, ...] = op over p of data[p, ...]``."""
    core = current()
    checks.tile(dst, "dst", SBUF_ONLY)
    checks.tile(data, "data", SBUF_ONLY)
    kind = op_name(op)
    if kind not in _PARTITION_REDUCTIONS:
        rules.broken(rules.OP, "op", kind, ", ".join(_PARTITION_REDUCTIONS))
    if dst.shape[0] != 1 or dst.free != data.free:
        rules.broken(rules.REDUCE_DST, "dst", dst.shape, f"(1, ...) of {data.shape}")
    made = core.issue(
        "gpsimd", "tensor_partition_reduce", (("dst", dst),), (("data", data),), data.free, name,
        {"op": kind},
    )  # fmt: skip
    if kind.startswith("bitwise"):
        for t in (dst, data):
            if not t.dtype.is_int:
                rules.broken(rules.OP_INTEGER, "tile", t.dtype)
        ufunc = np.bitwise_or if kind == "bitwise_or" else np.bitwise_and
        dst.values[...] = ufunc.reduce(data.values, axis=0).reshape(dst.shape)
        return made
    rows = read32(data)
    result = rows.max(axis=0) if kind == "maximum" else rows.sum(axis=0, dtype=F32)
    if kind == "average":
        result = result / F32(data.shape[0])
    write(dst, result)
    return made
