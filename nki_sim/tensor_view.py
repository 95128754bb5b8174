"""The part of ``NkiTensor`` that only rearranges addresses: shapes, strides and access patterns.

Nothing here touches an element. Each method returns a new tensor over the same storage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nki_sim import rules, views
from nki_sim.dtypes import DType, as_dtype
from nki_sim.memory import HBM, SBUF, MemoryRegion, Storage
from nki_sim.objects import NKIObject
from nki_sim.registers import VirtualRegister
from nki_sim.trace import Access

if TYPE_CHECKING:
    from nki_sim.tensor import NkiTensor


class Indirection:
    """A run-time address: ``index`` (register, [1, 1] or [P, n] tile) times ``stride`` elements.

    Attributes:
        kind: "scalar" or "vector".
        index: where the run-time number or numbers come from.
        stride: elements of the view's dtype that one unit of the index stands for.
        dim: dimension of the view that the indirection replaced, or None where it was removed.
        limit: legal indices are below it.
    """

    __slots__ = ("dim", "index", "kind", "limit", "stride")

    def __init__(self, kind: str, index: Any, stride: int, dim: int | None, limit: int) -> None:
        self.kind = kind
        self.index = index
        self.stride = stride
        self.dim = dim
        self.limit = limit


class TensorView(NKIObject):
    """Shape, strides, offset and storage of a tensor, and the views that follow from them alone."""

    _nki_native_ = True
    __slots__ = (
        "_access", "_values", "buffer", "dtype", "index", "name", "offset", "shape", "size",
        "storage", "strides",
    )  # fmt: skip

    storage: Storage
    buffer: MemoryRegion
    name: str
    index: Indirection | None

    def _fill(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int,
        dtype: DType,
        storage: Any,
        index: Indirection | None,
    ) -> None:
        self.shape = shape
        self.strides = strides
        self.offset = offset
        self.dtype = dtype
        self.storage = storage
        self.index = index
        n = 1
        for s in shape:
            n *= s
        self.size = n
        self._values: np.ndarray | None = None
        self._access: Access | None = None

    def _view(
        self,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        offset: int,
        dtype: DType | None = None,
        index: Indirection | None = None,
    ) -> NkiTensor:
        t: Any = object.__new__(type(self))
        t._fill(
            shape,
            strides,
            offset,
            self.dtype if dtype is None else dtype,
            self.storage,
            self.index if index is None else index,
        )
        t.buffer = self.buffer
        t.name = self.name
        return t

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def on_chip(self) -> bool:
        """Whether it lives in SBUF or PSUM."""
        return self.buffer not in HBM

    @property
    def access(self) -> Access:
        """What the trace keeps of this view."""
        access = self._access
        if access is None:
            kind = None if self.index is None else self.index.kind
            access = self._access = Access(
                self.storage.info, self.dtype, self.offset, self.shape, self.strides, kind
            )
        return access

    def span(self) -> tuple[int, int]:
        """(first element, last element + 1) that the static pattern touches in its storage."""
        low = high = self.offset
        for n, s in zip(self.shape, self.strides, strict=True):
            if s < 0:
                low += (n - 1) * s
            else:
                high += (n - 1) * s
        return low, high + 1

    # ------------------------------------------------------------------ shapes

    def permute(self, dims: tuple[int, ...]) -> NkiTensor:
        """The same elements with dimensions in another order; on chip the partition stays first."""
        if sorted(dims) != list(range(self.ndim)):
            rules.broken(rules.VIEW, "permute dims", tuple(dims), f"{self.ndim} dimensions")
        if dims[0] != 0 and (self.on_chip or (self.index is not None and self.index.dim == 0)):
            rules.broken(rules.VIEW_PARTITION, "permute dims", tuple(dims))
        return self._view(
            tuple(self.shape[d] for d in dims), tuple(self.strides[d] for d in dims), self.offset
        )

    def broadcast(self, dim: int, size: int) -> NkiTensor:
        """A dimension of size 1 repeated ``size`` times."""
        dim = self._dim(dim, keep_partition="broadcast")
        if self.shape[dim] != 1:
            rules.broken(rules.VIEW, f"broadcast of dim {dim}", self.shape[dim], "needs size 1")
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = integer(size, "size"), 0
        return self._view(tuple(shape), tuple(strides), self.offset)

    def expand_dim(self, dim: int) -> NkiTensor:
        """A new dimension of size 1 at position ``dim``."""
        if dim < 0:
            dim += self.ndim + 1
        if not 0 <= dim <= self.ndim:
            rules.broken(rules.VIEW, "expand_dim", dim, f"{self.ndim} dimensions")
        self._keep_partition(dim, "expand_dim")
        inner = self.shape[dim] * self.strides[dim] if dim < self.ndim else 1
        return self._view(
            (*self.shape[:dim], 1, *self.shape[dim:]),
            (*self.strides[:dim], inner, *self.strides[dim:]),
            self.offset,
        )

    def squeeze_dim(self, dim: int) -> NkiTensor:
        """The view without a dimension of size 1."""
        dim = self._dim(dim, keep_partition="squeeze_dim")
        if self.shape[dim] != 1:
            rules.broken(rules.VIEW, f"squeeze of dim {dim}", self.shape[dim], "needs size 1")
        return self._view(
            (*self.shape[:dim], *self.shape[dim + 1 :]),
            (*self.strides[:dim], *self.strides[dim + 1 :]),
            self.offset,
        )

    def reshape_dim(self, dim: int, shape: tuple[int, ...]) -> NkiTensor:
        """One dimension split into several; one of the sizes may be -1."""
        dim = self._dim(dim)
        if len(shape) != 1:
            self._keep_partition(dim, "reshape_dim")
        try:
            parts = views.infer(shape, self.shape[dim])
        except ValueError:
            parts = (0,)
        product = 1
        for n in parts:
            product *= n
        if product != self.shape[dim]:
            rules.broken(
                rules.VIEW, f"reshape_dim of dim {dim}", tuple(shape), f"size {self.shape[dim]}"
            )
        inner = tuple(s * self.strides[dim] for s in views.row_major(parts))
        return self._view(
            (*self.shape[:dim], *parts, *self.shape[dim + 1 :]),
            (*self.strides[:dim], *inner, *self.strides[dim + 1 :]),
            self.offset,
        )

    def flatten_dims(self, start_dim: int, end_dim: int) -> NkiTensor:
        """Dimensions ``start_dim`` to ``end_dim`` (inclusive) joined; they must be contiguous."""
        first, last = self._dim(start_dim), self._dim(end_dim)
        if first != last:
            self._keep_partition(first, "flatten_dims")
        size = 1
        for n in self.shape[first : last + 1]:
            size *= n
        inner = views.reshaped(
            self.shape[first : last + 1], self.strides[first : last + 1], (size,)
        )
        if inner is None or first > last:
            rules.broken(
                rules.VIEW,
                "flatten_dims",
                (start_dim, end_dim),
                f"{self.access!r} is not contiguous",
            )
        return self._view(
            (*self.shape[:first], size, *self.shape[last + 1 :]),
            (*self.strides[:first], *inner, *self.strides[last + 1 :]),
            self.offset,
        )

    def reshape(self, shape: tuple[int, ...]) -> NkiTensor:
        """The same elements under another shape; on chip the partition dimension keeps its size."""
        wanted: tuple[int, ...]
        try:
            wanted = views.infer(tuple(integer(n, "shape") for n in shape), self.size)
        except ValueError:
            wanted = ()
        product = 1
        for n in wanted:
            product *= n
        if product != self.size or not wanted:
            rules.broken(
                rules.VIEW, "reshape", tuple(shape), f"{self.size} elements in {self.shape}"
            )
        first = 0
        if self.on_chip or (self.index is not None and self.index.dim == 0):
            if wanted[0] != self.shape[0]:
                rules.broken(rules.VIEW_PARTITION, "reshape", tuple(shape), f"from {self.shape}")
            first = 1
        inner = views.reshaped(self.shape[first:], self.strides[first:], wanted[first:])
        if inner is None:
            rules.broken(
                rules.VIEW, "reshape", tuple(shape), f"no view of {self.access!r} has that shape"
            )
        return self._view(wanted, (*self.strides[:first], *inner), self.offset)

    def rearrange(
        self, src_pattern: tuple, dst_pattern: tuple, fixed_sizes: dict[str, int] | None = None
    ) -> NkiTensor:
        """Split, reorder and join dimensions by name, as einops does.

        For instance ``(('b', ('h', 'w')), ('b', 'w', 'h'))``.
        """
        try:
            split, order, final = views.parse_rearrange(
                self.shape, src_pattern, dst_pattern, fixed_sizes or {}
            )
        except ValueError as error:
            rules.broken(rules.VIEW, "rearrange", (src_pattern, dst_pattern), str(error))
        return self.reshape(tuple(split)).permute(tuple(order)).reshape(tuple(final))

    def view(self, dtype: Any) -> NkiTensor:
        """The same bytes as another dtype; the last dimension, contiguous, is rescaled."""
        new = as_dtype(dtype)
        old = self.dtype
        if new.itemsize == old.itemsize:
            return self._view(self.shape, self.strides, self.offset, new)
        if self.index is not None:
            rules.broken(rules.AP_DYNAMIC, "view", self, "not after a run-time selection")
        if self.strides[-1] != 1 and self.shape[-1] != 1:
            rules.broken(
                rules.VIEW, "view", new, f"the last dimension of {self.access!r} is not contiguous"
            )
        if new.itemsize < old.itemsize:
            k = old.itemsize // new.itemsize
            shape = (*self.shape[:-1], self.shape[-1] * k)
            return self._view(shape, (*(s * k for s in self.strides[:-1]), 1), self.offset * k, new)
        k = new.itemsize // old.itemsize
        outer = self.strides[:-1]
        if self.shape[-1] % k or self.offset % k or any(s % k for s in outer):
            rules.broken(rules.VIEW, "view", new, f"{self.access!r} does not divide by {k}")
        shape = (*self.shape[:-1], self.shape[-1] // k)
        return self._view(shape, (*(s // k for s in outer), 1), self.offset // k, new)

    reinterpret_cast = view

    def ap(
        self,
        pattern: Any,
        offset: int | None = None,
        scalar_offset: Any = None,
        vector_offset: NkiTensor | None = None,
        indirect_dim: int = 0,
        dtype: Any = None,
    ) -> NkiTensor:
        """An explicit access pattern ``[[stride, count], ...]`` over the storage, outermost first.

        ``offset`` counts elements from the start of the storage; None keeps this view's own (the
        language guide: "inherits the current view's storage offset ... an explicit integer to
        override"; the method's docstring speaks of adding to the base offset, which is the same
        for a whole tensor). A scalar offset counts units of this view's dimension
        ``indirect_dim``.
        """
        new = self.dtype if dtype is None else as_dtype(dtype)
        if offset is None:
            offset, rest = divmod(self.offset * self.dtype.itemsize, new.itemsize)
            if rest:
                rules.broken(rules.AP_BOUNDS, "offset", self.offset, f"not a multiple of {new}")
        if scalar_offset is not None and vector_offset is not None:
            rules.broken(rules.AP_DYNAMIC, "ap", "scalar_offset and vector_offset")
        try:
            strides = tuple(integer(s, "stride") for s, _ in pattern)
            shape = tuple(integer(n, "count") for _, n in pattern)
        except (TypeError, ValueError):
            rules.broken(rules.AP_BOUNDS, "pattern", pattern, "a list of [stride, count] pairs")
        info = self.storage.info
        if not shape or min(shape) < 1:
            rules.broken(rules.AP_BOUNDS, "pattern", pattern, "counts are positive")
        t = self._view(shape, strides, integer(offset, "offset"), new)
        if info.partitions and shape[0] > 1 and strides[0] * new.itemsize != info.partition_bytes:
            rules.broken(
                rules.AP_PARTITION_STEP,
                "pattern",
                pattern,
                f"free size {info.partition_bytes // new.itemsize} of {info!r}",
            )
        if scalar_offset is not None or vector_offset is not None:
            if self.index is not None:
                rules.broken(rules.AP_DYNAMIC, "ap", self, "the view is indirect already")
            dim = self._dim(indirect_dim)
            unit = self.strides[dim] * self.dtype.itemsize // new.itemsize
            total = info.nbytes // new.itemsize
            if vector_offset is not None:
                if dim != 0 or self.on_chip:
                    rules.broken(
                        rules.AP_DYNAMIC,
                        "vector_offset",
                        f"indirect_dim {indirect_dim} of {info!r}",
                    )
                check_vector_offset(vector_offset)
                t.index = Indirection(
                    "vector", vector_offset, unit, 0, max(1, total // max(unit, 1))
                )
            else:
                check_scalar_offset(scalar_offset)
                t.index = Indirection("scalar", scalar_offset, unit, None, total)
        else:
            t.index = None
            self._check_ap_bounds(t, pattern)
        return t

    def _check_ap_bounds(self, t: NkiTensor, pattern: Any) -> None:
        info = t.storage.info
        low, high = t.span()
        if low < 0 or high * t.dtype.itemsize > info.nbytes:
            rules.broken(
                rules.AP_BOUNDS,
                "pattern",
                pattern,
                f"touches elements {low} to {high - 1} of {info.nbytes // t.dtype.itemsize} in "
                f"{info!r}",
            )
        if info.partitions:  # on chip a row must not run over into the next partition
            row = info.partition_bytes // t.dtype.itemsize
            first = t.offset % row
            low = high = first
            for n, s in zip(t.shape[1:], t.strides[1:], strict=True):
                low, high = low + min(0, (n - 1) * s), high + max(0, (n - 1) * s)
            if low < 0 or high >= row:
                rules.broken(
                    rules.AP_BOUNDS,
                    "pattern",
                    pattern,
                    f"elements {low} to {high} of a partition of {row} in {info!r}",
                )

    # ------------------------------------------------------------------ helpers

    def _dim(self, dim: Any, keep_partition: str = "") -> int:
        at = integer(dim, "dim")
        if not -self.ndim <= at < self.ndim:
            rules.broken(rules.VIEW, "dim", dim, f"{self.ndim} dimensions")
        at %= self.ndim
        if keep_partition:
            self._keep_partition(at, keep_partition)
        return at

    def _keep_partition(self, dim: int, what: str) -> None:
        if dim == 0 and (self.on_chip or (self.index is not None and self.index.dim == 0)):
            rules.broken(rules.VIEW_PARTITION, f"{what} dim", dim)


def integer(value: Any, what: str) -> int:
    """A compile-time integer (NumPy integers count)."""
    if value.__class__ is int:
        return value
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} = {value!r} is not a compile-time integer")
    return int(value.__index__())


def check_vector_offset(index: Any) -> None:
    """A vector offset is an integer tile in SBUF."""
    if not isinstance(index, TensorView) or index.buffer is not SBUF or not index.dtype.is_int:
        rules.broken(rules.AP_DYNAMIC, "vector_offset", index, "an integer tile in SBUF")


def check_scalar_offset(index: Any) -> None:
    """A scalar offset is a register or an integer tile of one element."""
    if isinstance(index, VirtualRegister):
        return
    if not isinstance(index, TensorView) or index.size != 1 or not index.dtype.is_int:
        rules.broken(
            rules.AP_DYNAMIC, "scalar_offset", index, "a register or an integer tile of one element"
        )
