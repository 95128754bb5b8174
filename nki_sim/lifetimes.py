"""Who lives in SBUF and PSUM, and when: tenants of the on-chip memories, and where they would fit.

A tensor lives from the first instruction that touches it to the last. What a dynamic loop's body
declares is one tensor for all iterations, alive through them all
(nki/deep-dives/nki-dynamic-loops.rst). Where the compiler puts tensors is not known before it has
compiled, so ``first_fit`` only shows one placement: the next tensor goes to the lowest bytes that
are free for as long as it lives.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from nki_sim.memory import PSUM, Allocation, MemoryRegion
from nki_sim.targets import PSUM_BANK_BYTES
from nki_sim.trace import Trace


@dataclass(slots=True)
class Tenant:
    """One tensor, or what a declaration in a dynamic loop makes in all iterations.

    Attributes:
        info: the (first) allocation.
        first, last: indices of the instructions that touched it first and last.
    """

    info: Allocation
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        """Bytes in each of its partitions."""
        return self.info.partition_bytes

    @property
    def quadrants(self) -> int:
        """Groups of 32 partitions that it spans, wherever it starts."""
        return -(-self.info.partitions // 32)


def tenants(trace: Trace, space: MemoryRegion, core: int) -> list[Tenant]:
    """The tensors of one memory of one core that were touched, by first use."""
    found: list[Tenant] = []
    bodies: dict[object, Tenant] = {}
    for a in trace.allocations:
        if a.space is not space or a.core != core or a.first is None or a.last is None:
            continue
        if a.slot is not None:
            key = (a.slot, a.shape, a.dtype)
            known = bodies.get(key)
            if known is not None:
                known.first, known.last = min(known.first, a.first), max(known.last, a.last)
                continue
            bodies[key] = found_now = Tenant(a, a.first, a.last)
            found.append(found_now)
            continue
        found.append(Tenant(a, a.first, a.last))
    return sorted(found, key=lambda t: t.first)


def first_fit(inhabitants: list[Tenant]) -> int:
    """Bytes per partition that a first-fit placement needs, every tensor from partition 0.

    Tensors with an explicit address stay there. In PSUM a tensor of at most 2 KiB stays inside one
    bank and a larger one starts one.
    """
    taken: list[tuple[int, int, int]] = []  # (start, end, last), by start
    fixed = [t for t in inhabitants if t.info.byte0 is not None]
    highest = 0
    for tenant in inhabitants:
        taken = [one for one in taken if one[2] >= tenant.first]
        size = tenant.nbytes
        if tenant.info.byte0 is not None:
            start = tenant.info.byte0
        else:
            blocked = [
                (t.info.byte0, t.info.byte0 + t.nbytes, t.last)
                for t in fixed
                if t.info.byte0 is not None and t.first <= tenant.last and t.last >= tenant.first
            ]
            start = _gap(sorted(taken + blocked), size, tenant.info.space is PSUM)
            insort(taken, (start, start + size, tenant.last))
        highest = max(highest, start + size)
    return highest


def _gap(taken: list[tuple[int, int, int]], size: int, banks: bool) -> int:
    """The lowest start with ``size`` free bytes."""
    start = 0
    for low, high, _ in taken:
        start = _aligned(start, size, banks)
        if start + size <= low:
            return start
        start = max(start, high)
    return _aligned(start, size, banks)


def _aligned(start: int, size: int, banks: bool) -> int:
    if banks and start % PSUM_BANK_BYTES + size > PSUM_BANK_BYTES:
        return -(-start // PSUM_BANK_BYTES) * PSUM_BANK_BYTES
    return start


@dataclass(frozen=True, slots=True)
class Idle:
    """Tensors that a kernel could do without.

    Attributes:
        untouched: declared on chip, but no instruction touched them.
        never_read: written on chip, but never read, though no instruction had to have them (an
            instruction with several outputs may leave some unused).
        never_written: read on chip or in HBM, but nothing wrote them.
    """

    untouched: tuple[Allocation, ...]
    never_read: tuple[Allocation, ...]
    never_written: tuple[Allocation, ...]


def idle(trace: Trace) -> Idle:
    """Tensors that are declared, written or read in vain. Reads of a part count as reads."""
    read: set[int] = set()
    written: set[int] = set()
    needed: set[int] = set()
    placed: set[tuple[MemoryRegion, int]] = set()
    for i in trace.instructions:
        read.update(a.allocation.id for _, a in i.reads)
        written.update(a.allocation.id for _, a in i.writes)
        if len(i.writes) > 1:
            needed.update(a.allocation.id for _, a in i.writes)
    for a in trace.allocations:
        if a.byte0 is not None and a.id in written:
            placed.add((a.space, a.core))

    def shares(a: Allocation) -> bool:
        return a.byte0 is not None and (a.space, a.core) in placed

    on_chip = [a for a in trace.allocations if a.partitions]
    return Idle(
        tuple(a for a in on_chip if a.first is None and not a.argument),
        tuple(
            a
            for a in on_chip
            if a.id in written and a.id not in read and a.id not in needed and not shares(a)
        ),
        tuple(
            a
            for a in trace.allocations
            if a.id in read and a.id not in written and not a.argument and not shares(a)
        ),
    )
