"""Placed tensors that share bytes: what another tensor's write destroyed must not be read.

Placing two tensors at overlapping addresses is how kernels reuse memory, and legal while their
contents are not needed at the same time. So what is checked is use: reading bytes of a tensor whose
own value there was overwritten through another one. A tensor that was never written itself only
gives another's bytes a second name, as allocators do to read them as another dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nki_sim.footprint import geometry_of, overlap
from nki_sim.memory import Allocation
from nki_sim.trace import Access

Box = tuple[int, int, int, int]  # first partition, last + 1, first byte, last + 1


@dataclass(slots=True)
class Placed:
    """One placed tensor, its neighbours in the same bytes, and what they destroyed."""

    info: Allocation
    box: Box
    neighbours: list[Placed] = field(default_factory=list)
    destroyed: list[tuple[Box, Access, int]] = field(default_factory=list)
    written: bool = False  # whether it has a value of its own
    memory: object = None  # where its bytes are: all in one place, but for NKI_PRECISE_FP=0

    def reset(self) -> None:
        """Forget all writes."""
        self.destroyed.clear()
        self.written = False

    def box_of(self, access: Access) -> Box:
        """The memory's own partitions and bytes that an access touches."""
        p0, p1, b0, b1 = access.extent()
        dp, db = self.box[0], self.box[2]
        return p0 + dp, p1 + dp, b0 + db, b1 + db

    def wrote(self, access: Access, index: int) -> None:
        """Remember a write: it makes its own bytes good and spoils the neighbours' values there."""
        box = self.box_of(access)
        self.written = True
        if self.destroyed:
            self.destroyed = [
                (rest, by, at) for bad, by, at in self.destroyed for rest in _without(bad, box)
            ]
        for other in self.neighbours:
            if other.written and _overlap(box, other.box):
                other.destroyed.append((_common(box, other.box), access, index))

    def is_second_name(self, access: Access) -> bool:
        """Whether ``access`` reads what another tensor holds, through one without a value.

        Raises:
            NotImplementedError: where that is held as float32 (``NKI_PRECISE_FP=0``).
        """
        if self.written:
            return False
        box = self.box_of(access)
        held = [o for o in self.neighbours if o.written and _overlap(box, o.box)]
        for other in held:
            if other.memory != self.memory:
                raise NotImplementedError(
                    f"NKI_PRECISE_FP=0: reading {other.info!r} through {self.info!r}, placed at "
                    "the same addresses with another dtype; take a view of the tensor instead"
                )
        return bool(held)

    def spoiled(self, access: Access) -> tuple[Allocation, int] | None:
        """The tensor and instruction that destroyed what ``access`` is about to read, if any."""
        if not self.destroyed:
            return None
        box = self.box_of(access)
        for spoiled, by, index in self.destroyed:
            if _overlap(box, spoiled) and _share(access, by):
                return by.allocation, index
        return None


def _share(a: Access, b: Access) -> bool:
    """Whether accesses to placed tensors, whose boxes meet, share a byte."""
    geometry = geometry_of(a.allocation)
    return overlap(geometry.footprint(a), geometry.footprint(b))


def _without(a: Box, b: Box) -> list[Box]:
    """The parts of ``a`` outside ``b``."""
    if not _overlap(a, b):
        return [a]
    c = _common(a, b)
    parts = [
        (a[0], c[0], a[2], a[3]),
        (c[1], a[1], a[2], a[3]),
        (c[0], c[1], a[2], c[2]),
        (c[0], c[1], c[3], a[3]),
    ]
    return [p for p in parts if p[0] < p[1] and p[2] < p[3]]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def _common(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), min(a[3], b[3])


def place(info: Allocation, memory: list[Placed], where: object) -> Placed:
    """Add a tensor to a memory's placed tensors and find its neighbours."""
    assert info.partition0 is not None and info.byte0 is not None
    box = (
        info.partition0,
        info.partition0 + info.partitions,
        info.byte0,
        info.byte0 + info.partition_bytes,
    )
    made = Placed(info, box, memory=where)
    for other in memory:
        if _overlap(box, other.box):
            made.neighbours.append(other)
            other.neighbours.append(made)
    memory.append(made)
    return made
