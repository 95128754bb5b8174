"""``NkiTensor``: a strided view of an allocation, and every way NKI has to take another view of it.

The element at index (i0, i1, ...) is element ``offset + sum(i_k * strides[k])`` of the storage
(language guide, "Tensor Values"); on chip, dimension 0 is the partition dimension. Views never
copy: engines compute on ``values``, a NumPy array over the storage's own bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import rules, views, wide
from nki_sim.dtypes import DType, as_dtype
from nki_sim.machine import Core, current, current_or_none
from nki_sim.memory import HBM, SBUF, MemoryRegion
from nki_sim.registers import DynamicSlice, VirtualRegister
from nki_sim.tensor_view import Indirection, TensorView, check_vector_offset, integer


class NkiTensor(TensorView):
    """A view of SBUF, PSUM or HBM memory; made by ``nl.ndarray`` and by the methods below.

    Attributes:
        shape: sizes; on chip, shape[0] is the number of partitions.
        strides: strides in elements of ``dtype``.
        offset: first element, from the start of the storage.
        dtype: element type.
        buffer: memory region.
        name: as declared.
        storage: the bytes.
    """

    _nki_native_ = True
    __slots__ = ()

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        storage: Any,
        buffer: MemoryRegion | str = SBUF,
        name: str = "",
    ) -> None:
        self._fill(tuple(shape), views.row_major(shape), 0, as_dtype(dtype), storage, None)
        self.buffer = MemoryRegion(buffer) if isinstance(buffer, str) else buffer
        self.name = name

    # ------------------------------------------------------------------ what it is

    @property
    def free(self) -> int:
        """Elements per partition."""
        return self.size // self.shape[0]

    @property
    def start_partition(self) -> int:
        """First partition: relative to the tensor, plus that of an explicit address."""
        info = self.storage.info
        if not info.partitions:
            return 0
        start = self.offset * self.dtype.itemsize // info.partition_bytes
        return start + (info.partition0 or 0)

    @property
    def carrier(self) -> np.dtype[Any]:
        """The NumPy dtype of ``values``: the dtype's own, or float32 with ``NKI_PRECISE_FP=0``."""
        held = self.storage.carrier
        return self.dtype.numpy if held is None or self._reinterprets else held

    @property
    def _reinterprets(self) -> bool:
        """Whether it looks at a storage as another dtype than it was declared with."""
        return self.dtype is not self.storage.info.dtype

    def _bits(self) -> np.ndarray:
        """The storage, which is wide, as its own dtype's bits; changes go back to it."""
        overlay = wide.Overlay(self.storage)
        core = current_or_none()
        if core is not None:
            core.launch.overlays.append(overlay)
        return overlay.bits

    @property
    def flat(self) -> np.ndarray:
        """All elements of the storage, which is not placed, in one line (writes go through)."""
        if self.storage.carrier is not None:
            self._commit()
            if self._reinterprets:
                return self._bits().view(self.dtype.numpy)
        return self.storage.data.view(self.carrier)

    def _commit(self) -> None:
        """Bring what the running instruction changed in other views into the storages."""
        core = current_or_none()
        for overlay in core.launch.overlays if core is not None else ():
            overlay.commit()

    @property
    def values(self) -> np.ndarray:
        """The elements as a NumPy array over the storage's bytes (writes go through)."""
        if self.index is not None:
            return self.resolved().values
        values = self._values
        if values is None:
            storage = self.storage
            held = storage.carrier
            carrier = self.carrier
            item = carrier.itemsize
            offset = self.offset * item
            strides = [s * item for s in self.strides]
            if held is not None:
                self._commit()
                if self._reinterprets:
                    return np.ndarray(self.shape, carrier, self._bits(), offset, tuple(strides))
            if storage.placed is not None:  # partitions are further apart than the tensor is wide
                row = storage.info.partition_bytes * item // self.dtype.itemsize
                partition, byte = divmod(offset, row)
                offset = storage.base + partition * storage.pitch + byte
                strides[0] = strides[0] // row * storage.pitch
            values = np.ndarray(self.shape, carrier, storage.data, offset, tuple(strides))
            if held is None:
                self._values = values
        return values

    def resolved(self) -> NkiTensor:
        """This view with its scalar indirection replaced by the address it has right now."""
        index = self.index
        if index is None:
            return self
        if index.kind != "scalar":
            rules.broken(rules.AP_DYNAMIC, "operand", self, "only DMA takes a vector offset")
        at = scalar_value(index.index)
        t = self._view(self.shape, self.strides, self.offset + at * index.stride)
        t.index = None
        low, high = t.span()
        total = self.storage.info.nbytes // self.dtype.itemsize
        if low < 0 or high > total or not 0 <= at < index.limit:
            rules.broken(
                rules.DMA_BOUNDS,
                "scalar offset",
                at,
                f"tensor of {total} elements, limit {index.limit}",
            )
        return t

    def covers_storage(self) -> bool:
        """Whether the view is all of its storage, in order."""
        return (
            self.size * self.dtype.itemsize == self.storage.info.nbytes
            and self.strides == views.row_major(self.shape)
        )

    def is_contiguous(self) -> bool:
        """Whether the view is dense and row-major (on chip: within each partition)."""
        expected = 1
        first = 1 if self.on_chip else 0
        for n, s in zip(reversed(self.shape[first:]), reversed(self.strides[first:]), strict=True):
            if n != 1:
                if s != expected:
                    return False
                expected *= n
        return True

    def get_pattern(self) -> list[list[int]]:
        """The view as ``[[stride, count], ...]``, the form ``ap`` takes."""
        return [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]

    def is_indirect(self) -> bool:
        """Whether the view has a run-time address."""
        return self.index is not None

    def __repr__(self) -> str:
        label = f" {self.name!r}" if self.name else ""
        head = f"NkiTensor{label} {self.shape} {self.dtype} {self.buffer.value}"
        if self.storage is None or self.index is not None or not self.storage.allocated:
            return f"<{head}>"
        return f"<{head}\n{self.values!r}>"

    # ------------------------------------------------------------------ indexing

    def __getitem__(self, key: Any) -> NkiTensor:
        """Integers, slices with step, Ellipsis, ``nl.ds``, and run-time registers or [1, 1] tiles.

        On chip an integer on the partition dimension keeps it at size 1 and the result keeps at
        least two dimensions; in HBM the dimension goes (language guide, "Tensor Indexing").
        """
        if key.__class__ is not tuple:
            key = (key,)
        shape, strides = self.shape, self.strides
        if Ellipsis in key or len(key) != len(shape):
            key = self._full_key(key)
        on_chip = self.buffer not in HBM
        new_shape: list[int] = []
        new_strides: list[int] = []
        offset = self.offset
        dynamic: Indirection | None = None
        last_dropped: int | None = None
        for dim, k in enumerate(key):
            n, stride = shape[dim], strides[dim]
            kind = k.__class__
            if kind is slice:
                start, stop, step = k.start, k.stop, k.step
                start = 0 if start is None else integer(start, "slice start")
                stop = n if stop is None else integer(stop, "slice stop")
                step = 1 if step is None else integer(step, "slice step")
                if start < 0:
                    start += n
                if stop < 0:
                    stop += n
                if not (0 <= start < stop <= n) or step < 1:
                    rules.broken(
                        rules.VIEW, f"index {dim}", f"{k.start}:{k.stop}:{k.step}", f"size {n}"
                    )
                new_shape.append((stop - start + step - 1) // step)
                new_strides.append(stride * step)
                offset += start * stride
            elif kind is DynamicSlice:
                size = integer(k.size, "nl.ds size")
                if isinstance(k.start, (VirtualRegister, NkiTensor)):
                    dynamic = self._dynamic(dynamic, dim, k.start, n - size + 1)
                else:
                    start = integer(k.start, "nl.ds start")
                    if not (start >= 0 and size >= 1 and start + size <= n):
                        rules.broken(rules.VIEW, f"index {dim}", k, f"size {n}")
                    offset += start * stride
                new_shape.append(size)
                new_strides.append(stride)
            else:
                if isinstance(k, (VirtualRegister, NkiTensor)):
                    dynamic = self._dynamic(dynamic, dim, k, n)
                else:
                    at = integer(k, f"index {dim}")
                    if not -n <= at < n:
                        rules.broken(rules.VIEW, f"index {dim}", at, f"size {n}")
                    offset += (at + n if at < 0 else at) * stride
                if on_chip and dim == 0:
                    new_shape.append(1)
                    new_strides.append(stride)
                else:
                    last_dropped = stride
        if not new_shape or (on_chip and len(new_shape) < 2 and last_dropped is not None):
            new_shape.append(1)
            new_strides.append(last_dropped if last_dropped is not None else 1)
        if self.index is not None:
            self._check_static_dims(new_shape, new_strides, offset)
        return self._view(tuple(new_shape), tuple(new_strides), offset, index=dynamic)

    def _full_key(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        dots = [i for i, k in enumerate(key) if k is Ellipsis]
        missing = len(self.shape) - (len(key) - len(dots))
        if len(dots) > 1 or missing < 0:
            rules.broken(rules.VIEW, "index", key, f"shape {self.shape}")
        at = dots[0] if dots else len(key)
        return (*key[:at], *(slice(None),) * missing, *key[at + len(dots) :])

    def _dynamic(
        self, already: Indirection | None, dim: int, index: Any, limit: int
    ) -> Indirection:
        if already is not None or self.index is not None:
            rules.broken(rules.AP_DYNAMIC, f"index {dim}", index, "the view is indirect already")
        if self.on_chip and dim == 0:
            rules.broken(rules.VIEW_PARTITION, f"index {dim}", index, "a run-time partition index")
        return Indirection("scalar", index, self.strides[dim], None, limit)

    def _check_static_dims(self, shape: list[int], strides: list[int], offset: int) -> None:
        """A vector-indirect view keeps its first dimension whole."""
        index = self.index
        if (
            index is not None
            and index.dim == 0
            and (not shape or shape[0] != self.shape[0] or strides[0] != self.strides[0])
        ):
            rules.broken(
                rules.AP_DYNAMIC, "index 0", shape, "the indirect dimension is not sliced again"
            )

    def __setitem__(self, key: Any, value: Any) -> None:
        """Copy a tile, or set a constant, into a part of this tensor."""
        from nki_sim.language.memory import (
            assign,
        )  # the copy is an instruction, which needs the engines

        assign(self[key], value)

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> NkiTensor:
        """Elements ``start`` to ``end`` (exclusive) of one dimension, every ``step``-th."""
        dim = self._dim(dim)
        key: list[Any] = [slice(None)] * self.ndim
        start, end, step = (integer(v, "slice") for v in (start, end, step))
        if not (0 <= start < end <= self.shape[dim]) or step < 1:
            rules.broken(
                rules.VIEW,
                f"slice of dim {dim}",
                f"{start}:{end}:{step}",
                f"size {self.shape[dim]}",
            )
        key[dim] = slice(start, end, step)
        return self[tuple(key)]

    def select(self, dim: int, index: Any) -> NkiTensor:
        """One element of a dimension, which goes.

        The index may be a run-time [1, 1] tile or register.
        """
        dim = self._dim(dim)
        dynamic: Indirection | None = None
        offset = self.offset
        if isinstance(index, (NkiTensor, VirtualRegister)):
            dynamic = self._dynamic(None, dim, index, self.shape[dim])
        else:
            at = integer(index, "index")
            if not 0 <= at < self.shape[dim]:
                rules.broken(rules.VIEW, f"select of dim {dim}", at, f"size {self.shape[dim]}")
            if self.index is not None and self.index.dim == dim:
                rules.broken(
                    rules.AP_DYNAMIC, f"select of dim {dim}", at, "the dimension is indirect"
                )
            offset += at * self.strides[dim]
        if self.on_chip and dim == 0:
            return self._view((1, *self.shape[1:]), self.strides, offset, index=dynamic)
        shape = (*self.shape[:dim], *self.shape[dim + 1 :])
        strides = (*self.strides[:dim], *self.strides[dim + 1 :])
        if not shape:
            shape, strides = (1,), (1,)
        return self._view(shape, strides, offset, index=dynamic)

    def vector_select(self, dim: int, vector_offset: NkiTensor) -> NkiTensor:
        """Row ``vector_offset[p]`` of an HBM tensor for each partition p, for DMA."""
        if dim != 0 or self.on_chip or self.index is not None:
            rules.broken(rules.AP_DYNAMIC, "vector_select", f"dim {dim} of {self.access!r}")
        check_vector_offset(vector_offset)
        index = Indirection("vector", vector_offset, self.strides[0], 0, self.shape[0])
        return self._view(
            (vector_offset.shape[0], *self.shape[1:]), self.strides, self.offset, index=index
        )

    def indirect(self, index: NkiTensor, num_elem: int | None = None) -> NkiTensor:
        """Tensor indirection of NeuronCore-v4.

        Raises:
            RuleError: on gen2 and gen3.
            NotImplementedError: on gen4.
        """
        core: Core = current()
        if core.version < 4:
            rules.broken(
                rules.AVAILABILITY, "NkiTensor.indirect", core.target.generation, "needs gen4"
            )
        raise NotImplementedError("NkiTensor.indirect (tensor indirection of NeuronCore-v4)")


def scalar_value(index: Any) -> int:
    """The run-time integer of a register or a one-element tile."""
    if isinstance(index, VirtualRegister):
        return index.value
    return int(index.values.reshape(-1)[0])
