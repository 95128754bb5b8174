"""Which bytes an access touches, in a form that makes overlap cheap to decide.

Memory is addressed by a few coordinates, outermost first: the partition on chip, then the declared
dimensions of the tensor, the last one in bytes. Almost every access is a product of one set of
coordinates per dimension, so two accesses meet where they meet in every dimension. The few that
are not (a run across rows that starts inside one) are compared byte by byte. Results are kept,
because kernels repeat the same few shapes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nki_sim.memory import Allocation
from nki_sim.trace import Access

Steps = tuple[tuple[int, int], ...]
"""(stride, count) of nested strides, innermost last."""

_PLACED_PITCH = 1 << 20
"""Bytes from one partition to the next in the address space of placed tensors: more than any
memory has, so that an access never runs into the next partition."""

_MOST_BYTES = 1 << 24
"""Largest range that is compared byte by byte; larger ones count as overlapping."""


class Footprint:
    """The bytes of one access.

    Attributes:
        box: bounds (low, high) of each coordinate, one after the other.
        full: whether it touches every byte of the box.
        sets: for each coordinate (first, steps), or None where it is no product of such sets.
        start, steps: the same bytes as nested strides in one linear address.
        anywhere: True for a run-time address: the bytes are some of the box.
    """

    __slots__ = ("anywhere", "box", "full", "sets", "start", "steps")

    def __init__(
        self,
        box: tuple[int, ...],
        full: bool,
        sets: tuple[tuple[int, Steps], ...] | None,
        start: int,
        steps: Steps,
        anywhere: bool = False,
    ) -> None:
        self.box = box
        self.full = full
        self.sets = sets
        self.start = start
        self.steps = steps
        self.anywhere = anywhere


class Geometry:
    """The coordinates of one memory: sizes, and bytes from one value of each to the next.

    Attributes:
        everything: the footprint of all of it.
    """

    __slots__ = ("_kept", "everything", "partition_bytes", "pitches", "placed", "sizes")

    def __init__(self, sizes: tuple[int, ...], partition_bytes: int, placed: bool) -> None:
        self.sizes = sizes
        self.partition_bytes = partition_bytes
        self.placed = placed
        pitches = [1]
        for n in sizes[:0:-1]:
            pitches.append(pitches[-1] * n)
        self.pitches = tuple(reversed(pitches))
        box = tuple(v for n in sizes for v in (0, n))
        self.everything = Footprint(box, True, None, 0, (), True)
        self._kept: dict[object, Footprint] = {}

    def footprint(self, access: Access) -> Footprint:
        """The bytes that ``access`` touches."""
        a = access.allocation
        key: tuple[object, ...] = (
            access.offset, access.shape, access.strides, access.dtype.itemsize, access.indirect,
        )  # fmt: skip
        if self.placed:
            key = (*key, a.partition0, a.byte0, a.shape, a.partition_bytes)
        made = self._kept.get(key)
        if made is None:
            made = self._kept[key] = self._made(access)
        return made

    def _made(self, access: Access) -> Footprint:
        a = access.allocation
        box: tuple[int, ...]
        if access.indirect is not None:
            if not self.placed:
                return self.everything
            assert a.partition0 is not None and a.byte0 is not None
            p0, b0 = a.partition0, a.byte0
            box = (p0, p0 + a.partitions, b0, b0 + a.partition_bytes)
            return Footprint(box, True, None, 0, (), True)
        item = access.dtype.itemsize
        start = access.offset * item
        strides = [s * item for s in access.strides]
        if self.placed:
            assert a.partition0 is not None and a.byte0 is not None
            partition, byte = divmod(start, a.partition_bytes)
            start = (partition + a.partition0) * _PLACED_PITCH + byte + a.byte0
            strides[0] = strides[0] // a.partition_bytes * _PLACED_PITCH
        steps = []
        for n, s in zip(access.shape, strides, strict=True):
            if n == 1 or s == 0:
                continue
            if s < 0:
                start, s = start + (n - 1) * s, -s
            steps.append((s, n))
        merged = _merged(steps, item)
        sets = self._sets(start, merged)
        if sets is None:
            return Footprint(self._bounds(start, merged), False, None, start, merged)
        box = tuple(v for first, line in sets for v in (first, first + _span(line) + 1))
        return Footprint(box, all(_dense(line) for _, line in sets), sets, start, merged)

    def _sets(self, start: int, steps: Steps) -> tuple[tuple[int, Steps], ...] | None:
        """One set of values per coordinate, whose product is the access, or None."""
        first, rest = [], start
        for pitch in self.pitches:
            at, rest = divmod(rest, pitch)
            first.append(at)
        lines: list[list[tuple[int, int]]] = [[] for _ in self.sizes]
        for stride, count in steps:
            level = next(k for k, pitch in enumerate(self.pitches) if pitch <= stride)
            while True:  # a step that runs over its coordinate goes on in the one before it
                if stride % self.pitches[level]:
                    return None
                unit, size = stride // self.pitches[level], self.sizes[level]
                if first[level] + unit * (count - 1) < size:
                    if count > 1:
                        lines[level].append((unit, count))
                    break
                a_row = size // unit
                if level == 0 or size % unit or first[level] >= unit or count % a_row:
                    return None
                if a_row > 1:
                    lines[level].append((unit, a_row))
                stride, count = self.pitches[level - 1], count // a_row
                level -= 1
        for at, line, size in zip(first, lines, self.sizes, strict=True):
            if at + _span(tuple(line)) >= size:
                return None
        return tuple(
            (at, tuple(sorted(line, reverse=True))) for at, line in zip(first, lines, strict=True)
        )

    def _bounds(self, start: int, steps: Steps) -> tuple[int, ...]:
        """A box around any access: exact down to the first coordinate that varies."""
        low, high = start, start + _span(steps)
        box: list[int] = []
        varies = False
        for pitch, size in zip(self.pitches, self.sizes, strict=True):
            a, low = divmod(low, pitch)
            b, high = divmod(high, pitch)
            box += (0, size) if varies else (a, b + 1)
            varies = varies or a != b
        return tuple(box)


def geometry_of(a: Allocation) -> Geometry:
    """The coordinates of an allocation's memory (of the whole memory, where it is placed)."""
    if a.byte0 is not None:
        return Geometry((128, _PLACED_PITCH), a.partition_bytes, True)
    sizes = [n for n in a.shape[1:] if n != 1] if a.partitions else [n for n in a.shape if n != 1]
    if sizes:
        sizes[-1] *= a.dtype.itemsize
    else:
        sizes = [a.dtype.itemsize]
    if a.partitions:
        sizes.insert(0, a.partitions)
    return Geometry(tuple(sizes), a.partition_bytes, False)


def _merged(steps: list[tuple[int, int]], item: int) -> Steps:
    """Nested strides with dense ones joined, outermost first, down to single bytes."""
    merged = [(1, item)]
    for s, n in sorted(steps):
        inner, count = merged[-1]
        if s == inner * count:
            merged[-1] = (inner, count * n)
        else:
            merged.append((s, n))
    return tuple(reversed(merged))


def _span(steps: Steps) -> int:
    """From the first to the last value."""
    return sum(s * (n - 1) for s, n in steps)


def _dense(steps: Steps) -> bool:
    """Whether the values have no gaps."""
    reach = 1
    for s, n in reversed(steps):
        if s > reach:
            return False
        reach += s * (n - 1)
    return True


# ---------------------------------------------------------------------- relations


def boxes_meet(a: Footprint, b: Footprint) -> bool:
    """Whether the boxes of two footprints share a point."""
    p, q = a.box, b.box
    return all(p[k] < q[k + 1] and q[k] < p[k + 1] for k in range(0, len(p), 2))


def overlap(a: Footprint, b: Footprint) -> bool:
    """Whether two footprints whose boxes meet share a byte (run-time addresses: may share one)."""
    if (a.full and b.full) or a.anywhere or b.anywhere:
        return True
    if a.sets is not None and b.sets is not None:
        return all(p == q or _compare(*p, *q)[0] for p, q in zip(a.sets, b.sets, strict=True))
    return _compare(a.start, a.steps, b.start, b.steps)[0]


def inside(a: Footprint, b: Footprint) -> bool:
    """Whether whoever is ordered after ``b`` on its bytes is so after ``a`` on those of ``a``.

    That is, whether ``b`` covers ``a``. An access at a run-time address covers its box: all that
    meet the box are ordered after it, whatever it touches.
    """
    p, q = a.box, b.box
    for k in range(0, len(p), 2):
        if p[k] < q[k] or p[k + 1] > q[k + 1]:
            return False
    if b.full:
        return True
    if a.anywhere:
        return False
    if a.sets is not None and b.sets is not None:
        return all(p == q or _compare(*p, *q)[1] for p, q in zip(a.sets, b.sets, strict=True))
    return _compare(a.start, a.steps, b.start, b.steps)[1]


@lru_cache(maxsize=1 << 16)
def _compare(a: int, a_steps: Steps, b: int, b_steps: Steps) -> tuple[bool, bool]:
    """Whether two sets of numbers meet, and whether the first lies inside the second."""
    a_high, b_high = a + _span(a_steps), b + _span(b_steps)
    low, high = max(a, b), min(a_high, b_high)
    if low > high:
        return False, False
    within = low == a and high == a_high
    if _dense(b_steps) and within:
        return True, True
    if _dense(a_steps) and _dense(b_steps):
        return True, False
    if high - low > _MOST_BYTES:
        return True, False
    ours, theirs = _mask(a, a_steps, low, high), _mask(b, b_steps, low, high)
    both = ours & theirs
    return bool(both.any()), within and bool((both == ours).all())


def _mask(start: int, steps: Steps, low: int, high: int) -> np.ndarray:
    """Which numbers of [low, high] are in a set."""
    mask = np.zeros(high - low + 1, bool)
    values = np.array([start], np.int64)
    run = 1
    if steps and steps[-1][0] == 1:
        run, steps = steps[-1][1], steps[:-1]
    for s, n in steps:
        values = (values[:, None] + np.arange(n, dtype=np.int64) * s).reshape(-1)
        values = values[values <= high]
    values = values[values + run > low]
    if run == 1:
        mask[values - low] = True
    else:
        for v in values.tolist():
            mask[max(0, v - low) : v + run - low] = True
    return mask
