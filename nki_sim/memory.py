"""Memories as bytes: what an allocation is (``Allocation``) and the bytes behind it (``Storage``).

On chip, a tensor occupies the same byte range of consecutive partitions, so its bytes are kept as
partitions x bytes-per-partition, row after row; an HBM tensor is one run of bytes. Fresh bytes
hold NaN (floats) or 4 (integers), the sentinels AWS documents for its simulator. Beside the bytes
stands one state an element (never written, written, written by the tensor engine), which is what
the PSUM accumulation rules and the reports of never-written reads need.
"""

from __future__ import annotations

from enum import Enum
from types import CodeType
from typing import Any

import numpy as np

from nki_sim.dtypes import DType, float32
from nki_sim.source import source_line


class MemoryRegion(Enum):
    """The memories a tensor can live in."""

    sbuf = "sbuf"
    psum = "psum"
    private_hbm = "private_hbm"
    shared_hbm = "shared_hbm"

    def __repr__(self) -> str:
        return f"nl.{self.value}"


SBUF, PSUM = MemoryRegion.sbuf, MemoryRegion.psum
PRIVATE_HBM, SHARED_HBM = MemoryRegion.private_hbm, MemoryRegion.shared_hbm
ON_CHIP = (SBUF, PSUM)
HBM = (PRIVATE_HBM, SHARED_HBM)

NEVER, WRITTEN, MATMUL, READ_ONLY = 0, 1, 2, 3
"""States of one element: nothing wrote it; an instruction or the caller did; the tensor engine did;
the caller did, in an array that must not be written."""

INTEGER_SENTINEL = 4
"""What fresh integer memory holds (NKI CPU Simulator guide, "Uninitialized Memory Detection")."""


class Allocation:
    """What the trace remembers of one allocated tensor, without its bytes.

    Attributes:
        id: number of the allocation within its launch.
        space: the memory it lives in.
        shape, dtype, name: as declared.
        nbytes: bytes in all; on chip, ``partitions`` x ``partition_bytes``.
        partitions: partitions it spans (0 in HBM).
        partition_bytes: bytes in each partition (all bytes, in HBM).
        partition0, byte0: where an explicit ``address=`` placed it (None, None where the compiler
            places it).
        core: the core that allocated it (shared HBM: the first one).
        born: index of the first instruction issued after the declaration.
        argument: True where it is an argument of the kernel.
        first, last: indices of the first and last instruction that touched it (None where none
            did).
        site: where the kernel declared it, for ``source``.
        slot: which declaration of a dynamic loop's body it stems from (None outside such loops):
            on the device, those of all iterations are one tensor.
    """

    __slots__ = (
        "argument", "born", "byte0", "core", "dtype", "first", "id", "last", "name", "nbytes",
        "partition0", "partition_bytes", "partitions", "shape", "site", "slot", "space",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        space: MemoryRegion,
        shape: tuple[int, ...],
        dtype: DType,
        name: str,
        core: int = 0,
        born: int = 0,
        address: tuple[int, int] | None = None,
        argument: bool = False,
    ) -> None:
        self.id = id
        self.space = space
        self.shape = shape
        self.dtype = dtype
        self.name = name
        self.core = core
        self.born = born
        self.argument = argument
        self.first: int | None = None
        self.last: int | None = None
        self.site: tuple[CodeType, int] | None = None
        self.slot: tuple[int, ...] | None = None
        size = 1
        for n in shape:
            size *= n
        self.nbytes = size * dtype.itemsize
        if space is SBUF or space is PSUM:
            self.partitions = shape[0]
            self.partition_bytes = self.nbytes // shape[0]
        else:
            self.partitions = 0
            self.partition_bytes = self.nbytes
        self.partition0: int | None
        self.byte0: int | None
        self.partition0, self.byte0 = address if address is not None else (None, None)

    @property
    def source(self) -> tuple[str, int]:
        """(file, line) of the kernel statement that declared it."""
        return source_line(*(self.site or (None, 0)))

    def __repr__(self) -> str:
        label = f" {self.name!r}" if self.name else ""
        return f"<{self.space.value}#{self.id}{label} {self.shape} {self.dtype}>"


class Storage:
    """The bytes of one allocation and their state. Bytes appear on first touch.

    Attributes:
        info: the ``Allocation``.
        data: flat ``uint8`` bytes, or for a placed tensor the bytes of its whole memory.
        pitch: bytes from one partition to the next in ``data`` (equal to ``info.partition_bytes``
            unless placed).
        base: byte of ``data`` where the tensor starts.
        state: one state for all elements, or an array with one state per element of ``info.dtype``.
    """

    __slots__ = ("_data", "base", "carrier", "info", "initial", "pitch", "placed", "state")

    def __init__(
        self, info: Allocation, data: np.ndarray | None = None, state: int = NEVER
    ) -> None:
        self.info = info
        self._data = data
        self.pitch = info.partition_bytes
        self.base = 0
        self.state: Any = state
        self.carrier: np.dtype[Any] | None = None  # float32 under NKI_PRECISE_FP=0
        self.placed: Any = None  # a placement.Placed where address= was given
        self.initial: np.ndarray | None = None  # bytes a replay starts from (arguments, constants)

    @property
    def data(self) -> np.ndarray:
        data = self._data
        if data is None:
            data = self._data = self.fresh()
        return data

    def fresh(self) -> np.ndarray:
        """The bytes of the tensor before anything is written to it."""
        info = self.info
        if self.carrier is None:
            return fresh_bytes(info.nbytes, info.dtype)
        return fresh_bytes(info.nbytes // info.dtype.itemsize * 4, float32)

    @property
    def allocated(self) -> bool:
        """Whether the bytes exist already."""
        return self._data is not None

    def states(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int
    ) -> np.ndarray:
        """The states of a view, as an array that writes through. Needs ``state`` to be an array."""
        unit = self.info.dtype.itemsize
        return elements_of(self.state, unit, offset, shape, strides, itemsize)

    def ensure_state_array(self) -> None:
        """Turn a uniform state into one state per element."""
        if isinstance(self.state, int):
            n = self.info.nbytes // self.info.dtype.itemsize
            self.state = np.full(n, self.state, np.uint8)


def elements_of(
    marks: np.ndarray,
    unit: int,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
) -> np.ndarray:
    """What stands beside the elements of a view, as an array that writes through.

    Args:
        marks: one entry for each ``unit`` bytes of an allocation.
        offset, shape, strides: the view, in elements of ``itemsize`` bytes.
    """
    if itemsize != unit:
        if itemsize < unit:  # several elements of the view share one unit
            index = offset + _offsets(shape, strides)
            return _Gather(marks, index * itemsize // unit)  # type: ignore[return-value]
        ratio = itemsize // unit  # one element of the view covers several units
        offset *= ratio
        strides = (*(s * ratio for s in strides), 1)
        shape = (*shape, ratio)
    item = marks.itemsize
    return np.ndarray(shape, marks.dtype, marks, offset * item, tuple(s * item for s in strides))


class _Gather:
    """Read and write access to ``base[index]`` with the few array operations that states need."""

    def __init__(self, base: np.ndarray, index: np.ndarray) -> None:
        self._base = base
        self._index = index

    def __setitem__(self, key: Any, value: Any) -> None:
        self._base[self._index[key]] = value

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._base[self._index[key]]

    def all(self) -> bool:
        return bool(self._base[self._index].all())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._base[self._index]


def _offsets(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Element offsets of a strided view relative to its start, as an int64 array of ``shape``."""
    total = np.zeros(shape, np.int64)
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        line = np.arange(n, dtype=np.int64) * stride
        total += line.reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return total


def fresh_bytes(nbytes: int, dtype: DType) -> np.ndarray:
    """Never-written bytes: NaN for float types, 4 for integers, zero for packed MX words."""
    data = np.empty(nbytes, np.uint8)
    if dtype.kind == "float":
        data.view(dtype.numpy).fill(np.nan)
    elif dtype.kind == "packed":
        data.fill(0)
    else:
        data.view(dtype.numpy).fill(INTEGER_SENTINEL)
    return data
