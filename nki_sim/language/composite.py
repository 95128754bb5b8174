"""Functions of ``nki.language`` that take several instructions: reductions, softmax, matmul."""

from __future__ import annotations

import builtins
from typing import Any

from nki_sim import ops
from nki_sim.dtypes import as_dtype, float32
from nki_sim.engines import scalar, tensor, vector, vector_reduce
from nki_sim.machine import current
from nki_sim.memory import PSUM, SBUF
from nki_sim.ops import new_tile, result_dtype
from nki_sim.tensor import NkiTensor


def _axes(x: NkiTensor, axis: Any) -> tuple[int, ...]:
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(sorted(a + x.ndim if a < 0 else a for a in given))


def _reduce(op: Any, x: NkiTensor, axis: Any, dtype: Any, keepdims: bool) -> NkiTensor:
    axes = _axes(x, axis)
    kept = x.shape[: x.ndim - len(axes)]
    dst = new_tile((*kept, *(1,) * len(axes)), result_dtype(dtype, x))
    vector_reduce.tensor_reduce(dst, op, x, axes)
    if keepdims or len(kept) < 2:
        # an on-chip tile keeps two dimensions, so [P, F] reduces to [P, 1] either way
        return dst if keepdims else dst.reshape((kept[0], 1))
    return dst.reshape(kept)


def sum(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Sum over the last free dimensions."""
    return _reduce(ops.add, x, axis, dtype, keepdims)


def max(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Maximum over the last free dimensions."""
    return _reduce(ops.maximum, x, axis, dtype, keepdims)


def min(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Minimum over the last free dimensions."""
    return _reduce(ops.minimum, x, axis, dtype, keepdims)


def prod(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Product over the last free dimensions."""
    return _reduce(ops.multiply, x, axis, dtype, keepdims)


def mean(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Mean over the last free dimensions, summed in float32."""
    total = _reduce(ops.add, x, axis, float32, keepdims)
    return ops.multiply(total, total.size / x.size, dtype=result_dtype(dtype, x))


def all(x: NkiTensor, axis: Any, dtype: Any = None) -> NkiTensor:
    """1 where all elements of the last free dimensions are not zero."""
    return _reduce(ops.logical_and, x, axis, dtype, False)


def var(x: NkiTensor, axis: Any, dtype: Any = None, keepdims: bool = False) -> NkiTensor:
    """Variance over the last free dimensions.

    The result keeps them (keepdims is ignored, as AWS notes).
    """
    axes = _axes(x, axis)
    rows = x.reshape((*x.shape[: x.ndim - len(axes)], -1))
    centre = mean(rows, -1, float32, keepdims=True)
    squares = new_tile(rows.shape, float32)
    total = new_tile(centre.shape, float32)
    if rows.ndim == 2:
        minus = ops.negative(centre)
        scalar.activation_reduce(squares, ops.square, rows, ops.add, total, bias=minus)
    else:
        spread = centre.broadcast(centre.ndim - 1, rows.shape[-1])
        vector.tensor_tensor(squares, rows, spread, ops.subtract)
        vector.tensor_tensor(squares, squares, squares, ops.multiply)
        vector_reduce.tensor_reduce(total, ops.add, squares, rows.ndim - 1)
    result = ops.multiply(total, 1.0 / rows.shape[-1], dtype=result_dtype(dtype, x))
    return result.reshape((*x.shape[: x.ndim - len(axes)], *(1,) * len(axes)))


def softmax(x: NkiTensor, axis: Any = -1, dtype: Any = None) -> NkiTensor:
    """exp(x - max) / sum over the last free dimensions, in float32."""
    axes = _axes(x, axis)
    rows = x.reshape((x.shape[0], *x.shape[1 : x.ndim - len(axes)], -1))
    dst = new_tile(rows.shape, result_dtype(dtype, x))
    for row, out in _rows(rows, dst):
        top = new_tile((row.shape[0], 1), float32)
        vector_reduce.tensor_reduce(top, ops.maximum, row, 1, negate=True)
        weights, total = new_tile(row.shape, float32), new_tile((row.shape[0], 1), float32)
        scalar.activation_reduce(weights, ops.exp, row, ops.add, total, bias=top)
        inverse = new_tile(total.shape, float32)
        vector.reciprocal(inverse, total)
        vector.tensor_scalar(out, weights, ops.multiply, inverse)
    return dst.reshape(x.shape)


def _rows(x: NkiTensor, out: NkiTensor) -> builtins.list[tuple[NkiTensor, NkiTensor]]:
    """The [P, F] tiles of two equally shaped [P, ..., F] tiles."""
    if x.ndim == 2:
        return [(x, out)]
    return [pair for i in range(x.shape[1]) for pair in _rows(x.select(1, i), out.select(1, i))]


def rms_norm(
    x: NkiTensor,
    w: NkiTensor,
    axis: Any,
    n: int,
    epsilon: float = 1e-06,
    dtype: Any = None,
    compute_dtype: Any = None,
) -> NkiTensor:
    """x / sqrt(sum(x**2) / n + epsilon) * w over the last free dimensions of a [P, F] tile."""
    inner = float32 if compute_dtype is None else as_dtype(compute_dtype)
    squares = ops.multiply(x, x, dtype=inner)
    total = sum(squares, axis, float32, keepdims=True)
    root = new_tile(total.shape, float32)
    vector.tensor_scalar(root, total, ops.multiply, 1.0 / n, op1=ops.add, operand1=epsilon)
    scale = ops.rsqrt(root)
    normal = ops.multiply(x, scale.reshape((x.shape[0], 1)), dtype=inner)
    return ops.multiply(normal, w, dtype=result_dtype(dtype, x))


def where(condition: NkiTensor, x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x where the condition is not zero, else y."""
    out = result_dtype(dtype, x, y)
    shape = condition.shape
    keep = ops.not_equal(condition, 0.0, dtype="uint8")
    dst = new_tile(shape, out)
    if isinstance(y, NkiTensor):
        vector.tensor_copy(dst, y)
    else:
        vector.memset(dst, y)
    from nki_sim.engines import vector_select

    if isinstance(x, NkiTensor) and x.dtype is not out:
        x = ops.copy(x, dtype=out)
    vector_select.tensor_copy_predicated(dst, x, keep)
    return dst


def matmul(x: NkiTensor, y: NkiTensor, transpose_x: bool = False) -> NkiTensor:
    """x @ y, or x.T @ y with ``transpose_x``, as a float32 PSUM tile.

    Without ``transpose_x`` x is transposed first.
    """
    if not transpose_x:
        flipped = transpose(x)
        x = ops.copy(flipped)
    dst = _psum_tile((x.free, y.free), float32)
    tensor.nc_matmul(dst, x, y)
    return dst


def transpose(x: NkiTensor, dtype: Any = None) -> NkiTensor:
    """The [F, P] transpose of a [P, F] tile, in PSUM, through TensorE."""
    source = x if dtype is None else ops.copy(x, dtype=dtype)
    dst = _psum_tile((source.free, source.shape[0]), source.dtype)
    tensor.nc_transpose(dst, source)
    return dst


def _psum_tile(shape: tuple[int, ...], dtype: Any) -> NkiTensor:
    return NkiTensor(shape, dtype, current().allocate(shape, dtype, PSUM), PSUM)


def expand_dims(x: NkiTensor, axis: int) -> NkiTensor:
    """A view with one more dimension of size 1."""
    return x.expand_dim(axis)


def broadcast_to(x: NkiTensor, shape: Any, dtype: Any = None) -> NkiTensor:
    """A tile with the elements of x repeated along its size-1 dimensions."""
    shape = tuple(shape)
    out = result_dtype(dtype, x)
    if shape == x.shape and out is x.dtype:
        return x
    if len(shape) != x.ndim or builtins.any(
        a not in (1, b) for a, b in zip(x.shape, shape, strict=True)
    ):
        raise ValueError(f"shape = {shape} does not broadcast from {x.shape}")
    view = x
    for dim in range(1, x.ndim):
        if x.shape[dim] != shape[dim]:
            view = view.broadcast(dim, shape[dim])
    if x.shape[0] != shape[0]:
        return _across_partitions(view, shape, out)
    dst = new_tile(shape, out)
    vector.tensor_copy(dst, view)
    return dst


def _across_partitions(row: NkiTensor, shape: tuple[int, ...], dtype: Any) -> NkiTensor:
    """One partition repeated on many: a matmul with a column of ones, bank by bank.

    A float32 result that fits one bank stays in PSUM, as that of ``nl.transpose`` does in AWS's
    example (nki.language.transpose, NKI 0.6): VectorE reads it there at full rate, without which
    the published times of the fused Mamba kernels (fused_mamba.rst) could not be reached.
    """
    as_is = row.dtype is float32 and row.buffer is SBUF and row.is_contiguous()
    flat = (row if as_is else ops.copy(row, dtype=float32)).reshape((1, -1))
    one = _ones(shape[0])
    if dtype is float32 and flat.free <= 512:
        bank = _psum_tile((shape[0], flat.free), float32)
        tensor.nc_matmul(bank, one, flat)
        return bank.reshape(shape)
    dst = new_tile((shape[0], flat.free), dtype)
    for start in range(0, flat.free, 512):
        width = builtins.min(512, flat.free - start)
        bank = _psum_tile((shape[0], width), float32)
        tensor.nc_matmul(bank, one, flat[:, start : start + width])
        vector.tensor_copy(dst[:, start : start + width], bank)
    return dst.reshape(shape)


def _ones(columns: int) -> NkiTensor:
    """A row of float32 ones, made once a core, as a compiler keeps a constant.

    Inside a dynamic loop, whose body stands on its own, it is made each time.
    """
    core = current()
    made = core.constants.get(columns)
    if made is None or core.loops:
        made = new_tile((1, columns), float32)
        vector.memset(made, 1.0)
        if not core.loops:
            core.constants[columns] = made
    return made


def dropout(x: NkiTensor, rate: Any, dtype: Any = None) -> NkiTensor:
    """x with elements zeroed with probability ``rate``, a number or a [P, 1] tile."""
    from nki_sim.engines import random

    dst = new_tile(x.shape, x.dtype)
    random.dropout(dst, x, rate)
    return dst if dtype is None or as_dtype(dtype) is x.dtype else ops.copy(dst, dtype=dtype)
