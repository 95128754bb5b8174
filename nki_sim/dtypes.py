"""The element types of NKI as names that are also NumPy dtypes.

NKI writes dtypes as strings (``DType = str`` in the published stubs), and kernels use them as
NumPy dtypes and as dictionary keys too. ``DType`` is a ``str`` whose text NumPy understands, with
the storage type, its size and how to round to it attached. All dtypes are singletons, so the
engines compare them with ``is``.

bfloat16 and the fp8 formats come from ml_dtypes, the library AWS's own simulator computes with
(NKI CPU Simulator guide, "Precise Floating-Point Mode"). tfloat32 is stored as float32 whose low 13
mantissa bits are zero; bool_ is stored as one byte; the packed MX types as one 32- or 16-bit word.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

FLOAT, INT, UINT, BOOL, PACKED = "float", "int", "uint", "bool", "packed"


class DType(str):
    """One NKI element type.

    Attributes:
        numpy: the NumPy dtype the elements are stored as.
        itemsize: bytes an element.
        kind: one of "float", "int", "uint", "bool", "packed".
        is_float, is_int: shorthands (bool_ counts as an integer of one byte).
        exact: numbers are stored in ``numpy`` without further rounding (all but tfloat32).
    """

    __slots__ = ("bits", "exact", "is_float", "is_int", "itemsize", "kind", "limits", "numpy")

    numpy: np.dtype[Any]
    itemsize: int
    kind: str
    bits: int
    is_float: bool
    is_int: bool
    exact: bool
    limits: tuple[int, int]

    def __new__(cls, name: str, storage: Any, kind: str) -> DType:
        self = super().__new__(cls, name)
        self.numpy = np.dtype(storage)
        self.itemsize = self.numpy.itemsize
        self.bits = 8 * self.itemsize
        self.kind = kind
        self.is_float = kind == FLOAT
        self.is_int = kind in (INT, UINT, BOOL)
        self.exact = name != "tfloat32"
        if kind in (INT, UINT):
            info = np.iinfo(self.numpy)
            self.limits = (int(info.min), int(info.max))
        else:
            self.limits = (0, 1)
        return self

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype (so that NumPy accepts the object wherever it takes a dtype)."""
        return self.numpy

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, str):
            return str.__eq__(self, other)
        if isinstance(other, (type, np.dtype)):
            try:
                return as_dtype(other) is self
            except TypeError:
                return False
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __repr__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return as_dtype, (str(self),)


bool_ = DType("bool_", np.uint8, BOOL)
int8 = DType("int8", np.int8, INT)
int16 = DType("int16", np.int16, INT)
int32 = DType("int32", np.int32, INT)
uint8 = DType("uint8", np.uint8, UINT)
uint16 = DType("uint16", np.uint16, UINT)
uint32 = DType("uint32", np.uint32, UINT)
float16 = DType("float16", np.float16, FLOAT)
float32 = DType("float32", np.float32, FLOAT)
bfloat16 = DType("bfloat16", ml_dtypes.bfloat16, FLOAT)
tfloat32 = DType("tfloat32", np.float32, FLOAT)
# The legacy fp8 of Neuron has infinities and a largest value of 240 (trainium2_arch.rst, FP8
# table).
float8_e4m3 = DType("float8_e4m3", ml_dtypes.float8_e4m3, FLOAT)
float8_e4m3fn = DType("float8_e4m3fn", ml_dtypes.float8_e4m3fn, FLOAT)
float8_e5m2 = DType("float8_e5m2", ml_dtypes.float8_e5m2, FLOAT)
float8_e8m0fnu = DType("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, FLOAT)
float8_e5m2_x4 = DType("float8_e5m2_x4", np.uint32, PACKED)
float8_e4m3fn_x4 = DType("float8_e4m3fn_x4", np.uint32, PACKED)
float4_e2m1fn_x4 = DType("float4_e2m1fn_x4", np.uint16, PACKED)

ALL: dict[str, DType] = {
    str(d): d
    for d in (
        bool_, int8, int16, int32, uint8, uint16, uint32, float16, float32, bfloat16, tfloat32,
        float8_e4m3, float8_e4m3fn, float8_e5m2, float8_e8m0fnu,
        float8_e5m2_x4, float8_e4m3fn_x4, float4_e2m1fn_x4,
    )
}  # fmt: skip

LOW_PRECISION = (bfloat16, float16, float8_e4m3, float8_e4m3fn, float8_e5m2)
"""Stored as float32 under ``NKI_PRECISE_FP=0`` (NKI CPU Simulator guide)."""

FP8 = (float8_e4m3, float8_e4m3fn, float8_e5m2)

_FROM_NUMPY = {d.numpy: d for d in ALL.values() if d.kind in (FLOAT, INT, UINT) and d.exact}
_FROM_NUMPY[np.dtype(np.bool_)] = bool_
_cache: dict[Any, DType] = {}


def as_dtype(dtype: Any) -> DType:
    """The ``DType`` of a DType, NKI name, NumPy dtype or NumPy/Python type.

    Raises:
        TypeError: for anything that NKI has no element type for (float64 and int64 among them;
            64-bit integers arrive with NKI 0.7).
    """
    if type(dtype) is DType:
        return dtype
    try:
        known = _cache.get(dtype)
    except TypeError:
        raise TypeError(f"dtype = {dtype!r} is not an NKI dtype") from None
    if known is None:
        known = _cache[dtype] = _resolve(dtype)  # an interning table: same answer for ever
    return known


def _resolve(dtype: Any) -> DType:
    if isinstance(dtype, str) and dtype in ALL:
        return ALL[dtype]
    if dtype is bool or dtype == "bool":
        return bool_
    try:
        found = _FROM_NUMPY.get(np.dtype(dtype))
    except TypeError:
        found = None
    if found is None:
        raise TypeError(
            f"dtype = {dtype!r} is not an NKI dtype; NKI has {', '.join(ALL)} "
            "(nki.api.shared.rst, Supported Data Types)"
        )
    return found


def round_tf32(values: np.ndarray) -> np.ndarray:
    """float32 values rounded to the 10 mantissa bits of tfloat32, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(
        0xFFFFE000
    )
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def to_integer(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Float values as integers of ``dtype``: to nearest, ties to even, saturating.

    NKI release notes 0.6.0: "fp32 to integer conversion rounds to nearest even and saturates". NaN
    has no documented result; here it becomes 0.
    """
    low, high = dtype.limits
    wide = np.rint(values, dtype=np.float64 if values.dtype == np.float64 else np.float32)
    # float32 cannot hold 2**31 - 1: clip in float64 for 32-bit targets, so that the bound is exact.
    if dtype.bits == 32:
        wide = wide.astype(np.float64)
    wide = np.clip(wide, low, high)
    return np.nan_to_num(wide, copy=False, nan=0.0).astype(dtype.numpy)
