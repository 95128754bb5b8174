"""Instructions that compute again what an earlier one has computed, which a compiler does once.

A repeat has the operation, engine and operands of an earlier instruction, none of whose operands or
results were written since, and writes a tile that nothing else writes. Loads are left out: kernels
that load a tile twice are known to move its bytes twice (matrix_multiplication.rst, SDK 2.26).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nki_sim.trace import Access, Instruction

PURE = frozenset(
    (
        "activation",
        "affine_select",
        "iota",
        "memset",
        "reciprocal",
        "scalar_tensor_tensor",
        "tensor_copy",
        "tensor_reduce",
        "tensor_scalar",
        "tensor_tensor",
    )
)
"""Operations whose result depends on their operands alone."""

PLACE = ("affine", "no_reorder")
"""Attributes that say where in the program an instruction stands, not what it does."""


def repeats(instructions: Sequence[Instruction]) -> dict[int, int]:
    """For each repeat the earlier instruction (positions in the record)."""
    writes: dict[int, int] = {}
    for i in instructions:
        for _, a in i.writes:
            writes[a.allocation.id] = writes.get(a.allocation.id, 0) + 1
    version: dict[int, int] = {}
    known: dict[tuple[Any, ...], tuple[int, int]] = {}
    found: dict[int, int] = {}
    for k, i in enumerate(instructions):
        key = _key(i, version) if i.opcode in PURE and len(i.writes) == 1 else None
        for _, a in i.writes:
            version[a.allocation.id] = version.get(a.allocation.id, 0) + 1
        if key is None:
            continue
        result = i.writes[0][1].allocation.id
        earlier = known.get(key)
        if earlier is not None and writes[result] == 1:
            first, at = earlier
            source = instructions[first].writes[0][1].allocation.id
            if source != result and version[source] == at:
                found[k] = first
                continue
        known[key] = (k, version[result])
    return found


def _key(i: Instruction, version: dict[int, int]) -> tuple[Any, ...] | None:
    """What decides the result; None where run-time addresses or accumulators take part."""
    if any(a.indirect for _, a in (*i.writes, *i.reads)):
        return None
    if i.attrs.get("reduce_cmd", "idle") not in ("idle", None):
        return None
    operands = tuple([(n, _place(a), version.get(a.allocation.id, 0)) for n, a in i.reads])
    dst = i.writes[0][1]
    attrs = tuple(
        [(name, repr(value)) for name, value in sorted(i.attrs.items()) if name not in PLACE]
    )
    return (i.core, i.engine, i.opcode, attrs, operands, dst.shape, dst.dtype, dst.space)


def _place(a: Access) -> tuple[Any, ...]:
    return (a.allocation.id, a.dtype, a.offset, a.shape, a.strides)
