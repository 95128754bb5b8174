"""Dynamic loops that rely on fresh memory in each iteration.

A tensor that a loop's body declares is allocated once on the device and stays for the whole loop
(nki/deep-dives/nki-dynamic-loops.rst), while in simulation every iteration has its own. The two
differ in two ways. A value kept from an earlier iteration is overwritten by the next one on the
device: that is refused. A value read before its iteration wrote it is an earlier iteration's on the
device: that is reported beside the read of unwritten memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nki_sim import rules
from nki_sim.errors import RuleError
from nki_sim.footprint import Geometry, boxes_meet, geometry_of, overlap
from nki_sim.memory import Allocation
from nki_sim.trace import Access, Finding, Instruction, Trace


@dataclass(slots=True)
class _Slot:
    """What iterations did to one declaration of a loop's body."""

    geometry: Geometry
    writes: list[tuple[Access, Instruction]] = field(default_factory=list)  # of the newest tensor
    earlier: list[tuple[Access, Instruction]] = field(default_factory=list)  # of the one before


def check_loop_memory(trace: Trace) -> None:
    """Refuse reads of a body's tensor after a later iteration wrote its successor; note reads that
    on the device would find an earlier iteration's value.

    Raises:
        RuleError: naming the read and the later iteration's write.
    """
    if all(a.slot is None for a in trace.allocations):
        return
    slots: dict[object, _Slot] = {}
    found: dict[tuple[str, str], Finding] = {}
    for record in trace.instructions:
        for label, access in record.reads:
            if access.allocation.slot is not None:
                slot = _slot(slots, access.allocation)
                _check(slot, record, label, access)
                _note(found, slot, record, label, access)
        for _, access in record.writes:
            if access.allocation.slot is not None:
                slot = _slot(slots, access.allocation)
                if slot.writes and slot.writes[0][0].allocation.id < access.allocation.id:
                    slot.earlier, slot.writes = slot.writes, []
                if len(slot.writes) < _MOST:
                    slot.writes.append((access, record))
    trace.findings.extend(found.values())


_MOST = 64
"""Writes of one tensor that are remembered; the first are enough to find a stale read."""


def _slot(slots: dict[object, _Slot], a: Allocation) -> _Slot:
    key = (a.space, a.core, a.slot, a.shape, a.dtype)
    slot = slots.get(key)
    if slot is None:
        slot = slots[key] = _Slot(geometry_of(a))
    return slot


def _meeting(
    slot: _Slot, access: Access, writes: list[tuple[Access, Instruction]]
) -> Instruction | None:
    mine = slot.geometry.footprint(access)
    for other, record in writes:
        theirs = slot.geometry.footprint(other)
        if boxes_meet(mine, theirs) and overlap(mine, theirs):
            return record
    return None


def _check(slot: _Slot, record: Instruction, label: str, access: Access) -> None:
    if not slot.writes or slot.writes[0][0].allocation.id <= access.allocation.id:
        return
    writer = _meeting(slot, access, slot.writes)
    if writer is not None:
        rule = rules.LOOP_MEMORY
        raise RuleError(
            rule.id, rule.text, rule.source, label, repr(access), _line(record),
            f"a later iteration wrote it with {writer.opcode} at {_line(writer)}",
        )  # fmt: skip


def _note(
    found: dict[tuple[str, str], Finding],
    slot: _Slot,
    record: Instruction,
    label: str,
    access: Access,
) -> None:
    earlier = slot.writes
    if earlier and earlier[0][0].allocation.id == access.allocation.id:
        if len(earlier) == _MOST or _meeting(slot, access, earlier) is not None:
            return
        earlier = slot.earlier
    writer = _meeting(slot, access, earlier)
    if writer is not None:
        here, there = _line(record), _line(writer)
        text = (
            f"{record.opcode} reads {label} = {access!r}, declared in the body of a dynamic loop, "
            f"before its iteration wrote it; on the device it may hold what {writer.opcode} at "
            f"{there} wrote in an earlier one"
        )
        found.setdefault((here, there), Finding("loop-memory", text, record.index, here))


def _line(record: Instruction) -> str:
    file, line = record.source
    return f"{file}:{line}"
