"""How engines read and write numbers: float32 inside, rounded to the destination's dtype.

"Vector and scalar engines cast to float32, compute in float32, and cast the result to the output
dtype at no cost" (trainium_inferentia2_arch.rst; nki.isa, Data types). Casting rounds to nearest
even; to integers it saturates as well (NKI 0.6.0 release notes).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim.dtypes import BOOL, DType, float32, round_tf32, tfloat32, to_integer
from nki_sim.tensor import NkiTensor

F32 = np.float32
_WIDE = np.dtype(np.float32)


def read32(t: NkiTensor) -> np.ndarray:
    """The elements as float32: a view where they are stored so, else a converted copy."""
    dtype = t.dtype
    if dtype is float32 or dtype is tfloat32:
        return t.values
    return t.values.astype(F32)


def as_shape(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``values`` under another shape of as many elements, partition by partition."""
    return values if values.shape == shape else values.reshape(shape)


def convert(values: np.ndarray, dtype: DType, carrier: np.dtype[Any]) -> np.ndarray:
    """Float or boolean values as elements of ``dtype``, to be stored as ``carrier``.

    The carrier is ``dtype.numpy``, or float32 where low-precision floats are not rounded
    (``NKI_PRECISE_FP=0``).
    """
    if dtype is float32 or (carrier is _WIDE and dtype.is_float and dtype.exact):
        return values
    if dtype is tfloat32:
        return round_tf32(values.astype(F32, copy=False))
    if dtype.is_int:
        if dtype.kind == BOOL:
            return (values != 0).astype(np.uint8)
        if values.dtype == np.bool_:
            return values.astype(dtype.numpy)
        return to_integer(values, dtype)
    return values.astype(dtype.numpy)


def write(t: NkiTensor, values: np.ndarray) -> None:
    """Store float32 (or boolean) values of any shape with as many elements."""
    out = t.values
    if values.shape != out.shape:
        values = values.reshape(out.shape)
    if t.dtype is float32:
        out[...] = values
    else:
        out[...] = convert(values, t.dtype, out.dtype)


def write_exact(t: NkiTensor, values: np.ndarray, source: DType) -> None:
    """Store elements of ``source``: bit for bit where the dtypes agree, else through float32."""
    out = t.values
    if values.shape != out.shape:
        values = values.reshape(out.shape)
    if t.dtype is source:
        out[...] = values
    else:
        out[...] = convert(values.astype(F32), t.dtype, out.dtype)


def scalar32(value: Any) -> np.float32:
    """A Python number as the float32 that an instruction carries."""
    return F32(value)


def column(values: np.ndarray, ndim: int) -> np.ndarray:
    """A [P, 1] operand shaped to broadcast over ``ndim`` dimensions."""
    return values.reshape((values.shape[0],) + (1,) * (ndim - 1))
