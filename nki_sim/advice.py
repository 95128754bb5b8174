"""Advice on a finished launch: legal since NKI 0.3, but not for older compilers.

Up to SDK 2.28, ``nl.affine_range`` promised the compiler that iterations do not depend on each
other (but for sums in PSUM); since NKI 0.3 it is a plain range.
"""

from __future__ import annotations

from nki_sim.dependencies import TRUE, dependencies
from nki_sim.trace import Finding, Instruction, Trace


def carried_dependencies(trace: Trace) -> list[Finding]:
    """Reads of what an earlier iteration of one ``affine_range`` wrote, one per pair of lines."""
    by_index = {i.index: i for i in trace.instructions}
    found: dict[tuple[str, str], Finding] = {}
    for index, before in dependencies(trace).items():
        reader = by_index[index]
        for producer, kind in before:
            writer = by_index[producer]
            loop = _crossed(writer, reader)
            sums = writer.opcode == reader.opcode == "nc_matmul"  # accumulation in PSUM is exempt
            if kind != TRUE or loop is None or sums:
                continue
            here, there = (f"{f}:{n}" for f, n in (reader.source, writer.source))
            text = (
                f"{reader.opcode} reads what {writer.opcode} at {there} wrote in an earlier "
                "iteration of the same nl.affine_range, which SDK 2.28 and older take for "
                "independent; use nl.sequential_range there"
            )
            found.setdefault((here, there), Finding("affine-carried", text, index, here))
    return list(found.values())


def _crossed(writer: Instruction, reader: Instruction) -> int | None:
    """The affine loop of which the two are in different iterations, all outer ones being equal."""
    for (a, i), (b, j) in zip(
        writer.attrs.get("affine", ()), reader.attrs.get("affine", ()), strict=False
    ):
        if a != b:
            return None
        if i != j:
            return int(a)
    return None
