"""VectorE: reductions along the free dimensions and the instructions that share its accumulator.

``tensor_scalar_reduce``, ``range_select``, ``select_reduce``, ``exponential`` and
``tensor_scalar_cumulative`` accumulate into one set of registers, one float32 a partition, which
survives from instruction to instruction as ``reduce_cmd`` says (nki.isa, Accumulator behavior).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import AluOp, alu_op, reduce_op
from nki_sim.engines.vector import _apply, _operand
from nki_sim.enums import reduce_cmd as Reduce
from nki_sim.machine import Core, current, instruction
from nki_sim.numerics import F32, column, read32, write
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction


@instruction
def tensor_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    axis: int | tuple[int, ...] | list[int],
    negate: bool = False,
    keepdims: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """Reduce the last free dimensions of ``data``, optionally times -1 (arithmetic operators).

    ``axis`` names dimensions of ``data`` and must end at the last one; dst holds one element per
    remaining position (nki.isa.tensor_reduce, NKI 0.6).
    """
    core = current()
    alu = reduce_op(op, "op", core.version)
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    axes = sorted(
        a + data.ndim if a < 0 else a for a in ((axis,) if isinstance(axis, int) else axis)
    )
    kept = data.ndim - len(axes)
    if not axes or axes != list(range(kept, data.ndim)) or kept < 1:
        rules.broken(rules.REDUCE_AXIS, "axis", axis, f"data is {data.shape}")
    if negate and alu.bitvec:
        rules.broken(rules.OP, "negate", negate, f"{alu.name} is a bitvec operator")
    outer = data.shape[:kept]
    rows = 1
    for n in outer:
        rows *= n
    if dst.size != rows or dst.shape[0] != data.shape[0]:
        rules.broken(
            rules.REDUCE_DST, "dst", dst.shape, f"data {data.shape} reduced over {tuple(axes)}"
        )
    made = core.issue(
        "vector",
        "tensor_reduce",
        (("dst", dst),),
        (("data", data),),
        data.free,
        name,
        {"op": alu.name, "axis": tuple(axes), "negate": negate},
    )
    assert alu.reduce is not None
    if alu.bitvec:
        for t in (dst, data):
            if not t.dtype.is_int:
                rules.broken(rules.OP_INTEGER, "tile", t.dtype)
        result = alu.reduce(data.values.reshape(*outer, -1))
        dst.values[...] = result.reshape(dst.shape).astype(dst.dtype.numpy)
        return made
    values = read32(data)
    result = alu.reduce(values if len(axes) == 1 else values.reshape(*outer, -1))
    write(dst, -result if negate else result)
    return made


@instruction
def tensor_scalar_reduce(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: Any,
    reduce_op: Any,
    reduce_res: NkiTensor | None = None,
    reverse0: bool = False,
    reduce_cmd: Reduce = Reduce.reset_reduce,
    reduce_init: Any = None,
    reduce_res_negate: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = data <op0> operand0``, and its reduction over all free dimensions.

    The reduction sees the float32 result before it is rounded to ``dst.dtype``; ``reduce_res``
    receives the accumulator, negated if asked, while the registers keep their sign.
    """
    core = current()
    first = alu_op(op0, "op0", core.version)
    if first.bitvec:
        rules.broken(rules.OP, "op0", first.name, "tensor_scalar_reduce is arithmetic")
    reducer = _reducer(reduce_op, ("add", "multiply", "maximum", "minimum"), core)
    if reverse0:
        rules.broken(rules.REDUCE_CMD, "reverse0", reverse0, "documented as not supported yet")
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    checks.same_layout(dst, "dst", data, "data")
    reads: list[tuple[str, NkiTensor]] = [("data", data)]
    attrs: dict[str, Any] = {"op0": first.name, "reduce_op": reducer.name}
    a = _operand(first, operand0, "operand0", data, reads, attrs)
    accumulate = Accumulation(
        core, data, reducer, reduce_cmd, reduce_res, reduce_init, reads, attrs,
        (Reduce.reset_reduce, Reduce.reduce, Reduce.load_reduce),
    )  # fmt: skip
    made = core.issue(
        "vector",
        "tensor_scalar_reduce",
        accumulate.writes(dst),
        tuple(reads),
        data.free,
        name,
        attrs,
    )
    values = _apply(first, read32(data), a, reverse0)
    accumulate.run(values, negate=reduce_res_negate)
    write(dst, values)
    return made


class Accumulation:
    """One instruction's use of VectorE's accumulator: checks its arguments, then runs the command.

    Args:
        reads, attrs: the record's operands and attributes, extended with what the accumulator
            takes.
        commands: reduce commands the instruction supports.
    """

    def __init__(
        self,
        core: Core,
        data: NkiTensor,
        op: AluOp,
        command: Reduce,
        result: NkiTensor | None,
        init: Any,
        reads: list[tuple[str, NkiTensor]],
        attrs: dict[str, Any],
        commands: tuple[Reduce, ...],
    ) -> None:
        checks.member(command, Reduce, "reduce_cmd")
        if command not in commands:
            rules.broken(rules.REDUCE_CMD, "reduce_cmd", command.name)
        if command is not Reduce.load_reduce and init is not None and init != 0.0:
            rules.broken(rules.REDUCE_CMD, "reduce_init", init, f"reduce_cmd is {command.name}")
        if command is Reduce.load_reduce and init is None:
            rules.broken(rules.REDUCE_CMD, "reduce_init", init, "load_reduce needs one")
        if command is Reduce.reduce and core.vector_accumulator is None:
            rules.broken(rules.REDUCE_STATE, "reduce_cmd", command.name)
        if result is not None:
            checks.column(result, "reduce_res", data)
        if isinstance(init, NkiTensor):
            checks.column(init, "reduce_init", data, fp32=True)
            reads.append(("reduce_init", init))
        elif init is not None:
            attrs["reduce_init"] = init
        attrs["reduce_cmd"] = command.name
        self._core, self._op, self._command = core, op, command
        self._result, self._init = result, init
        self._partitions = data.shape[0]

    def writes(self, dst: NkiTensor) -> tuple[tuple[str, NkiTensor], ...]:
        """The instruction's outputs."""
        if self._result is None:
            return (("dst", dst),)
        return (("dst", dst), ("reduce_res", self._result))

    def run(self, values: np.ndarray, negate: bool = False) -> None:
        """Reduce ``values`` [P, ...] into the accumulator and hand the accumulator out."""
        core, n = self._core, self._partitions
        if self._command is Reduce.idle:
            core.vector_accumulator = None  # "the accumulator state may still be modified"
            if self._result is not None:
                rules.broken(rules.REDUCE_CMD, "reduce_res", "given", "reduce_cmd is idle")
            return
        assert self._op.reduce is not None
        registers = core.vector_accumulator
        if registers is None:
            registers = core.vector_accumulator = np.zeros(128, F32)
        partial = self._op.reduce(values.reshape(n, -1))
        if self._command is Reduce.reset_reduce:
            total = partial
        else:
            if self._command is Reduce.load_reduce:
                init = self._init
                registers[:n] = init.values.reshape(-1) if isinstance(init, NkiTensor) else init
            total = self._op.fn(registers[:n], partial)
        registers[:n] = total
        if self._result is not None:
            write(self._result, column(-registers[:n] if negate else registers[:n].copy(), 2))


def _reducer(op: Any, allowed: tuple[str, ...], core: Core) -> AluOp:
    return reduce_op(op, "reduce_op", core.version, allowed)
