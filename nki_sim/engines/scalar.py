"""ScalarE: activation functions of a scaled and shifted tile, and their running sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.activations import ACTIVATIONS, Activation
from nki_sim.alu import op_name
from nki_sim.alu import reduce_op as reducing_op
from nki_sim.dtypes import tfloat32
from nki_sim.enums import reduce_cmd as Reduce
from nki_sim.machine import Core, current, instruction
from nki_sim.numerics import F32, column, read32, write
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

_by_function: dict[Any, Activation] = {}


def activation_fn(op: Any) -> Activation:
    """The scalar engine's function for an ``nl`` operator.

    Raises:
        RuleError: where it has none.
    """
    found = _by_function.get(op)
    if found is None:
        named = ACTIVATIONS.get(op_name(op)) if callable(op) else None
        if named is None:
            rules.broken(rules.ACTIVATION, "op", getattr(op, "__name__", op))
        found = _by_function[op] = named
    return found


def activation(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
    reduce_op: Any = None,
    reduce_res: NkiTensor | None = None,
    reduce_cmd: Reduce = Reduce.idle,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = op(data * scale + bias)`` in float32, and its sum along the free dimensions.

    ``scale`` is a constant or a float32 [P, 1] vector; ``bias`` a [P, 1] vector, on gen3 and newer
    also a constant. ``reduce_cmd`` drives one register a partition: ``reset`` zeroes it,
    ``reset_reduce`` replaces it by the sum of this instruction, ``reduce`` adds to it;
    ``reduce_res`` receives it (nki.isa.activation, NKI 0.6).
    """
    return _activate(
        "activation", dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd, name
    )


def activation_reduce(
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    reduce_op: Any,
    reduce_res: NkiTensor,
    bias: Any = None,
    scale: Any = 1.0,
    name: str | None = None,
) -> NkiInstruction:
    """``activation`` with ``reduce_cmd.reset_reduce``: dst, and ``reduce_res`` with row sums."""
    return _activate(
        "activation_reduce",
        dst,
        op,
        data,
        bias,
        scale,
        reduce_op,
        reduce_res,
        Reduce.reset_reduce,
        name,
    )


@instruction
def _activate(
    opcode: str,
    dst: NkiTensor,
    op: Any,
    data: NkiTensor,
    bias: Any,
    scale: Any,
    reduce_op: Any,
    reduce_res: NkiTensor | None,
    command: Reduce,
    name: str | None,
) -> NkiInstruction:
    core = current()
    function = activation_fn(op)
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    checks.same_layout(dst, "dst", data, "data")
    checks.member(command, Reduce, "reduce_cmd")
    reads: list[tuple[str, NkiTensor]] = [("data", data)]
    attrs: dict[str, Any] = {"op": function.name}
    scaled = _scale(scale, data, reads, attrs)
    shifted = _bias(bias, function, data, core, reads, attrs)
    writes: tuple[tuple[str, NkiTensor], ...] = (("dst", dst),)
    if command is not Reduce.idle or reduce_res is not None:
        attrs["reduce_cmd"] = command.name
        if command is Reduce.load_reduce:
            rules.broken(rules.REDUCE_CMD, "reduce_cmd", command.name, opcode)
        if command in (Reduce.reduce, Reduce.reset_reduce):
            if reduce_op is None:
                rules.broken(rules.REDUCE_CMD, "reduce_op", None, f"reduce_cmd is {command.name}")
            reducing_op(reduce_op, "reduce_op", core.version, ("add",))
        if reduce_res is not None:
            checks.column(reduce_res, "reduce_res", data)
            writes = (("dst", dst), ("reduce_res", reduce_res))
    made = core.issue("scalar", opcode, writes, tuple(reads), data.free, name, attrs)

    x = read32(data)
    if scaled is not None:
        x = x * scaled
    if shifted is not None:
        x = x + shifted
    y = function.fn(x)
    if command is not Reduce.idle or reduce_res is not None:
        _accumulate(core, y, command, reduce_res, data.shape[0])
    write(dst, y)
    return made


def _scale(
    scale: Any, data: NkiTensor, reads: list[tuple[str, NkiTensor]], attrs: dict[str, Any]
) -> Any:
    """The factor as something to multiply by, or None for 1."""
    if isinstance(scale, NkiTensor):
        checks.column(scale, "scale", data, fp32=True)
        reads.append(("scale", scale))
        return column(scale.values, data.ndim)
    attrs["scale"] = scale
    return None if scale == 1.0 else F32(scale)


def _bias(
    bias: Any,
    function: Activation,
    data: NkiTensor,
    core: Core,
    reads: list[tuple[str, NkiTensor]],
    attrs: dict[str, Any],
) -> Any:
    """The shift as something to add, or None for nothing."""
    if bias is None:
        return None
    if function.name == "reciprocal" and core.version < 3:
        rules.broken(
            rules.BIAS, "bias", bias, "reciprocal takes no bias on gen2 (nki.api.shared.rst)"
        )
    if isinstance(bias, NkiTensor):
        checks.column(bias, "bias", data)
        if bias.dtype is tfloat32:
            rules.broken(rules.DTYPE, "bias", bias.dtype)
        reads.append(("bias", bias))
        return column(read32(bias), data.ndim)
    if not core.target.scalar_bias:
        rules.broken(rules.BIAS, "bias", bias, core.target.generation)
    attrs["bias"] = bias
    return None if bias == 0 else F32(bias)


def _accumulate(
    core: Core, values: np.ndarray, command: Reduce, result: NkiTensor | None, partitions: int
) -> None:
    """Run the reduce command on ScalarE's registers and read them out."""
    registers = core.scalar_accumulator
    if command is Reduce.reset:
        registers[:] = 0
    elif command in (Reduce.reset_reduce, Reduce.reduce):
        total = values.reshape(partitions, -1).sum(axis=1, dtype=F32)
        if command is Reduce.reset_reduce:
            registers[:] = 0
            registers[:partitions] = total
        else:
            registers[:partitions] += total
    if result is not None:
        write(result, registers[:partitions].copy())
