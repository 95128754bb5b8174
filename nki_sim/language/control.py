"""Loops, the launch grid, and what else a kernel asks of its surroundings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nki_sim.machine import current, current_or_none
from nki_sim.memory import HBM, MemoryRegion
from nki_sim.registers import DynamicSlice
from nki_sim.tensor import NkiTensor


def ds(start: Any, size: int) -> DynamicSlice:
    """``size`` elements from ``start``, an integer or a register, as an index."""
    return DynamicSlice(start, size)


class AffineRange:
    """A static range whose iterations the record remembers.

    So ``advice`` can tell which of them depend on each other.
    """

    def __init__(self, values: range) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> int:
        return self._values[index]

    def __iter__(self) -> Iterator[int]:
        core = current_or_none()
        if core is None:
            yield from self._values
            return
        outside, loop = core.affine, core.loop_count
        core.loop_count += 1
        try:
            for i in self._values:
                core.affine = (*outside, (loop, i))
                yield i
        finally:
            core.affine = outside


def affine_range(start: int, stop: int | None = None, step: int = 1) -> AffineRange:
    """``range``, unrolled when the kernel is specialised.

    Since NKI 0.3 all static ranges are alike.
    """
    return AffineRange(_static(start, stop, step, "affine_range"))


def sequential_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``: unrolled when the kernel is specialised."""
    return _static(start, stop, step, "sequential_range")


def static_range(start: int, stop: int | None = None, step: int = 1) -> range:
    """``range``: unrolled when the kernel is specialised."""
    return _static(start, stop, step, "static_range")


def _static(start: Any, stop: Any, step: Any, name: str) -> range:
    for value in (start, stop, step):
        if value is not None and not hasattr(value, "__index__"):
            raise TypeError(f"{name}({start!r}, {stop!r}, {step!r}) takes compile-time integers")
    return range(start) if stop is None else range(start, stop, step)


def program_id(axis: int = 0) -> int:
    """The number of the core that executes, along the launch grid's only axis."""
    if axis != 0:
        raise ValueError(
            f"axis = {axis}: the launch grid has one axis, the cores of a logical core"
        )
    return current().id


def num_programs(axes: Any = 0) -> int:
    """Cores in the launch."""
    return current().launch.lnc


def program_ndim() -> int:
    """Axes of the launch grid: 1, or 0 without a grid."""
    return 1 if current().launch.lnc > 1 else 0


@contextmanager
def no_reorder() -> Iterator[None]:
    """Run the instructions inside in program order.

    In simulation they always do; the record says so.
    """
    core = current()
    core.ordered += 1
    try:
        yield
    finally:
        core.ordered -= 1


def device_print(print_prefix: str, tensor: NkiTensor) -> None:
    """Print a tensor's elements."""
    core = current()
    who = f"[core {core.id}] " if core.launch.lnc > 1 else ""
    print(f"{who}{print_prefix} {tensor.shape} {tensor.dtype}\n{np.array2string(tensor.values)}")


def is_hbm(buffer: MemoryRegion) -> bool:
    """Whether a memory region is HBM of either kind."""
    return buffer in HBM


def is_on_chip(buffer: MemoryRegion) -> bool:
    """Whether a memory region is SBUF or PSUM."""
    return buffer in (MemoryRegion.sbuf, MemoryRegion.psum)


def is_psum(buffer: MemoryRegion) -> bool:
    """Whether a memory region is PSUM."""
    return buffer is MemoryRegion.psum


def is_sbuf(buffer: MemoryRegion) -> bool:
    """Whether a memory region is SBUF."""
    return buffer is MemoryRegion.sbuf
