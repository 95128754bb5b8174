"""Two cores and one shared HBM tensor: accesses that no barrier orders must not conflict.

The cores of a launch meet at barriers and exchanges; between two meetings their accesses have no
order on hardware. Beside each shared tensor stands, per core and element, the stretch between
meetings in which the core last read and last wrote it, so that the test is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nki_sim import rules
from nki_sim.footprint import boxes_meet, geometry_of, overlap
from nki_sim.memory import Storage

if TYPE_CHECKING:
    from nki_sim.machine import Core
    from nki_sim.tensor import NkiTensor

_READ, _WRITE = 0, 1


class Footprints:
    """Where each core last read and wrote one shared tensor.

    As numbers of stretches, 0 being never.
    """

    def __init__(self, storage: Storage) -> None:
        n = storage.info.nbytes // storage.info.dtype.itemsize
        self.marks = np.zeros((2, 2, n), np.uint32)  # [core, read or write, element]


def check(core: Core, t: NkiTensor, label: str, writes: bool) -> None:
    """Compare one access with the other core's in the same stretch, then remember it."""
    launch = core.launch
    where = _touched(t, launch.shapes_only)
    if where is None:
        return
    storage = t.storage
    prints = launch.footprints.get(storage.info.id)
    if prints is None:
        prints = launch.footprints[storage.info.id] = Footprints(storage)
    stretch = launch.epochs[core.id] + 1
    theirs = prints.marks[1 - core.id]
    if _any(theirs[_WRITE], where, stretch) or (writes and _any(theirs[_READ], where, stretch)):
        rules.broken(
            rules.RACE,
            label,
            t.access,
            f"core {core.id} {'writes' if writes else 'reads'} what core {1 - core.id} "
            f"{_other(core, t, writes)}",
        )
    mine = prints.marks[core.id][_WRITE if writes else _READ]
    if isinstance(where, tuple):
        np.ndarray(where[0], np.uint32, mine, where[1], where[2])[...] = stretch
    else:
        mine[where] = stretch


def _any(marks: np.ndarray, where: Any, stretch: int) -> bool:
    if isinstance(where, tuple):
        part = np.ndarray(where[0], np.uint32, marks, where[1], where[2])
    else:
        part = marks[where]
    return bool((part == stretch).any())


def _touched(t: NkiTensor, shapes_only: bool) -> Any:
    """The allocation's elements that a view is about to touch.

    Returns:
        (shape, offset, strides) into the bytes of ``marks``, or an array of indices; None where a
        run-time address is not known.
    """
    if t.index is not None:
        return None if shapes_only else elements(t)
    if t.dtype.itemsize == t.storage.info.dtype.itemsize:
        return t.shape, 4 * t.offset, tuple(4 * s for s in t.strides)
    return elements(t)


def elements(t: NkiTensor) -> np.ndarray:
    """Numbers of the allocation's elements that a view touches, those outside it left out."""
    info = t.storage.info
    shape, strides, offset = t.shape, t.strides, t.offset
    item, unit = t.dtype.itemsize, info.dtype.itemsize
    if t.index is None:
        at = _grid(shape, strides) + offset
    else:
        index = t.index
        numbers = (
            index.index.value
            if index.kind == "scalar" and hasattr(index.index, "value")
            else index.index.values.T.reshape(-1)
        )
        rows = np.asarray(numbers, np.int64).reshape(-1)
        rows = rows[: 1 if index.kind == "scalar" else shape[0]]
        rows = rows[(rows >= 0) & (rows < index.limit)] * index.stride
        if index.kind == "vector":
            shape, strides = shape[1:], strides[1:]
        at = rows.reshape((-1,) + (1,) * len(shape)) + _grid(shape, strides) + offset
        at = at[(at >= 0) & (at < info.nbytes // item)]  # beyond: skipped, or refused by the DMA
    if item < unit:
        return at * item // unit
    if item > unit:
        ratio = item // unit
        return at[..., None] * ratio + np.arange(ratio)
    return at


def _grid(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    at = np.zeros((1,) * len(shape), np.int64)
    for axis, (n, s) in enumerate(zip(shape, strides, strict=True)):
        at = at + (np.arange(n, dtype=np.int64) * s).reshape((-1,) + (1,) * (len(shape) - axis - 1))
    return at


def _other(core: Core, t: NkiTensor, writes: bool) -> str:
    """The other core's latest instruction that conflicts with an access, in words."""
    info = t.storage.info
    geometry = geometry_of(info)
    mine = geometry.footprint(t.access)
    for record in reversed(core.trace.instructions):
        if record.core == core.id:
            continue
        for name, access in (*record.writes, *(record.reads if writes else ())):
            if access.allocation is info:
                theirs = geometry.footprint(access)
                if boxes_meet(mine, theirs) and overlap(mine, theirs):
                    file, line = record.source
                    where = f"{record.opcode} ({name}) at {file}:{line}"
                    return f"touches in {where}, without a barrier between"
    return "touches without a barrier between"
