"""Dynamic loops that rely on fresh memory in each iteration.

A tensor that a loop's body declares is allocated once on the device and stays for the whole loop
(nki/deep-dives/nki-dynamic-loops.rst), while in simulation every iteration has its own. The two
differ in two ways. A value kept from an earlier iteration is overwritten by the next one on the
device: that is refused. An element read before its iteration wrote it is an earlier iteration's on
the device: that is reported beside the read of unwritten memory. Both are decided element by
element: beside each declaration stands which tensor was last written there.
"""

from __future__ import annotations

import numpy as np

from nki_sim import rules
from nki_sim.errors import RuleError
from nki_sim.memory import Allocation, elements_of
from nki_sim.trace import Access, Finding, Instruction, Trace

_NOBODY = -1


def check_loop_memory(trace: Trace) -> None:
    """Refuse reads of a body's tensor after a later iteration wrote its successor.

    Reads that on the device would find an earlier iteration's value become findings.

    Raises:
        RuleError: naming the read and the later iteration's write.
    """
    if all(a.slot is None for a in trace.allocations):
        return
    written: dict[object, np.ndarray] = {}  # the newest tensor written, for each element
    found: dict[tuple[str, str], Finding] = {}
    for position, record in enumerate(trace.instructions):
        for label, access in record.reads:
            a = access.allocation
            if a.slot is None:
                continue
            marks = written.get(_key(a))
            if marks is None:
                continue
            there = _marks(marks, access)
            newest = int(there.max())
            if newest > a.id:
                _refuse(record, label, access, _writer(trace, position, access, newest))
            if access.indirect is None:
                there = there[(there != a.id) & (there != _NOBODY)]
                if there.size:
                    writer = _writer(trace, position, access, int(there.max()))
                    _note(found, record, label, access, writer)
        for _, access in record.writes:
            a = access.allocation
            if a.slot is None:
                continue
            marks = written.get(_key(a))
            if marks is None:
                n = a.nbytes // a.dtype.itemsize
                marks = written[_key(a)] = np.full(n, _NOBODY, np.int32)
            if access.indirect is not None:
                marks[...] = a.id  # somewhere in it
            else:
                _view(marks, access)[...] = a.id
    trace.findings.extend(found.values())


def _key(a: Allocation) -> object:
    return (a.space, a.core, a.slot, a.shape, a.dtype)


def _view(marks: np.ndarray, access: Access) -> np.ndarray:
    unit = access.allocation.dtype.itemsize
    item = access.dtype.itemsize
    return elements_of(marks, unit, access.offset, access.shape, access.strides, item)


def _marks(marks: np.ndarray, access: Access) -> np.ndarray:
    """The marks of the elements that an access may touch."""
    return marks if access.indirect is not None else np.asarray(_view(marks, access))


def _writer(trace: Trace, position: int, access: Access, id: int) -> Instruction:
    """The latest writer, before ``position``, to tensor ``id`` of what ``access`` names."""
    touched = np.zeros(access.allocation.nbytes // access.allocation.dtype.itemsize, np.bool_)
    _marks(touched, access)[...] = True
    for record in reversed(trace.instructions[:position]):
        for _, write in record.writes:
            if write.allocation.id == id and np.asarray(_marks(touched, write)).any():
                return record
    raise AssertionError(f"no instruction wrote tensor {id}")


def _refuse(record: Instruction, label: str, access: Access, writer: Instruction) -> None:
    rule = rules.LOOP_MEMORY
    raise RuleError(
        rule.id, rule.text, rule.source, label, repr(access), _line(record),
        f"a later iteration wrote it with {writer.opcode} at {_line(writer)}",
    )  # fmt: skip


def _note(
    found: dict[tuple[str, str], Finding],
    record: Instruction,
    label: str,
    access: Access,
    writer: Instruction,
) -> None:
    here, there = _line(record), _line(writer)
    text = (
        f"{record.opcode} reads {label} = {access!r}, declared in the body of a dynamic loop, "
        "some or all of it before its iteration wrote it; on the device it may hold what "
        f"{writer.opcode} at {there} wrote in an earlier one"
    )
    found.setdefault((here, there), Finding("loop-memory", text, record.index, here))


def _line(record: Instruction) -> str:
    file, line = record.source
    return f"{file}:{line}"
