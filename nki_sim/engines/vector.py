"""VectorE: copies, and arithmetic between tiles, with scalars and with per-partition vectors.

Reductions, selections and the other VectorE instructions stand in the neighbouring modules
``vector_reduce``, ``vector_select`` and ``vector_special``. Everything is computed in float32 and
rounded into ``dst`` (nki.isa, Data types). Parameters are those of NKI 0.6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.alu import AluOp, alu_op, integer_fn
from nki_sim.dtypes import PACKED, float32, int32, uint32
from nki_sim.enums import engine as Engine
from nki_sim.machine import current, instruction
from nki_sim.memory import PSUM
from nki_sim.numerics import F32, as_shape, column, read32, write, write_exact
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

engine = Engine

_COPY_ENGINES = (Engine.unknown, Engine.vector, Engine.scalar, Engine.gpsimd)
_MEMSET_ENGINES = (Engine.unknown, Engine.vector, Engine.gpsimd)
_WIDE = (int32, uint32)


@instruction
def tensor_copy(
    dst: NkiTensor, src: NkiTensor, engine: Engine = Engine.unknown, name: str | None = None
) -> NkiInstruction:
    """``dst = src``, rounded to ``dst.dtype``; bit for bit where the dtypes agree.

    Runs on VectorE unless told otherwise; ScalarE copies through float32 (gen3 and newer only, on
    gen2 use ``activation(op=nl.copy)``); GpSimd reaches no PSUM (nki.isa.tensor_copy, NKI 0.6).
    """
    core = current()
    checks.tile(dst, "dst")
    checks.tile(src, "src")
    checks.same_layout(dst, "dst", src, "src")
    chosen = "vector"
    if engine is not Engine.unknown:
        checks.member(engine, Engine, "engine")
        if engine not in _COPY_ENGINES or (engine is Engine.scalar and core.version < 3):
            rules.broken(
                rules.ENGINE, "engine", engine.name, f"tensor_copy on {core.target.generation}"
            )
        if engine is Engine.gpsimd and (dst.buffer is PSUM or src.buffer is PSUM):
            rules.broken(rules.OPERAND_SPACE, "engine", "gpsimd", "gpsimd cannot access PSUM")
        chosen = engine.name
    made = core.issue(chosen, "tensor_copy", (("dst", dst),), (("src", src),), src.free, name)
    if chosen == "scalar":
        write(dst, read32(src))
    else:
        write_exact(dst, src.values, src.dtype)
    return made


@instruction
def memset(
    dst: NkiTensor, value: Any, engine: Engine = Engine.unknown, name: str | None = None
) -> NkiInstruction:
    """Fill ``dst`` with a constant of its own kind: integers for integers, floats for floats.

    Python integers are also taken for float tiles; a float for an integer tile is refused
    (nki/migration, NKI 0.3.0). Packed MX tiles take only 0.
    """
    core = current()
    checks.tile(dst, "dst")
    chosen = "vector"
    if engine is not Engine.unknown:
        checks.member(engine, Engine, "engine")
        if engine not in _MEMSET_ENGINES:
            rules.broken(rules.ENGINE, "engine", engine.name, "memset")
        if engine is Engine.gpsimd and dst.buffer is PSUM:
            rules.broken(rules.OPERAND_SPACE, "engine", "gpsimd", "gpsimd cannot access PSUM")
        chosen = engine.name
    if isinstance(value, NkiTensor):
        raise TypeError("value is a tensor; memset takes a compile-time constant")
    dtype = dst.dtype
    if dtype.kind == PACKED and value != 0:
        rules.broken(rules.MEMSET_VALUE, "value", value, f"{dtype} takes 0 only")
    if dtype.is_int and (isinstance(value, float) or int(value) != value):
        rules.broken(rules.MEMSET_VALUE, "value", value, f"dst is {dtype}")
    made = core.issue(chosen, "memset", (("dst", dst),), (), dst.free, name, {"value": value})
    if dtype.is_int:
        dst.values[...] = (
            np.array(int(value) & ((1 << dtype.bits) - 1))
            .astype(f"u{dtype.itemsize}")
            .view(dtype.numpy)
        )
    elif dtype is float32:
        dst.values.fill(value)
    else:
        write(dst, np.full(dst.shape, value, F32))
    return made


@instruction
def reciprocal(dst: NkiTensor, data: NkiTensor, name: str | None = None) -> NkiInstruction:
    """``dst = 1 / data``."""
    core = current()
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    checks.same_layout(dst, "dst", data, "data")
    made = core.issue("vector", "reciprocal", (("dst", dst),), (("data", data),), data.free, name)
    if dst.dtype is float32 and dst.shape == data.shape:
        np.divide(F32(1), read32(data), out=dst.values)
    else:
        write(dst, F32(1) / read32(data))
    return made


@instruction
def tensor_tensor(
    dst: NkiTensor,
    data1: NkiTensor,
    data2: NkiTensor,
    op: Any,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = data1 <op> data2``, element by element; no broadcasting.

    Float32 arithmetic, except that tiles that are all int32/uint32 and all in SBUF go to GpSimd,
    which computes exact 32-bit integers; ``power`` runs on GpSimd too (nki.isa.tensor_tensor, NKI
    0.6).
    """
    core = current()
    alu = alu_op(op, "op", core.version)
    if alu.unary:
        rules.broken(rules.OP, "op", alu.name, "tensor_tensor takes binary operators")
    checks.tile(dst, "dst")
    checks.tile(data1, "data1")
    checks.tile(data2, "data2")
    checks.not_both_psum(data1, "data1", data2, "data2")
    checks.same_layout(data1, "data1", data2, "data2")
    checks.same_layout(dst, "dst", data1, "data1")
    in_psum = dst.buffer is PSUM or data1.buffer is PSUM or data2.buffer is PSUM
    chosen = "vector"
    if engine is not Engine.unknown:
        checks.member(engine, Engine, "engine")
        if engine not in (Engine.vector, Engine.gpsimd):
            rules.broken(rules.ENGINE, "engine", engine.name, "tensor_tensor")
        chosen = engine.name
    elif alu.name == "power":
        chosen = "gpsimd"
    elif not alu.bitvec and dst.dtype in _WIDE and data1.dtype in _WIDE and data2.dtype in _WIDE:
        chosen = "vector" if in_psum else "gpsimd"
    if chosen == "gpsimd" and in_psum:
        rules.broken(
            rules.OPERAND_SPACE, "engine", "gpsimd", f"{alu.name}: gpsimd cannot access PSUM"
        )
    if alu.name == "power" and chosen != "gpsimd":
        rules.broken(rules.ENGINE, "engine", chosen, "power runs on gpsimd")
    made = core.issue(
        chosen,
        "tensor_tensor",
        (("dst", dst),),
        (("data1", data1), ("data2", data2)),
        data1.free,
        name,
        {"op": alu.name},
    )
    if alu.bitvec:
        _bitvec_tiles(dst, data1, data2)
        write_exact(dst, alu.fn(data1.values, as_shape(data2.values, data1.shape)), data1.dtype)
        return made
    if chosen == "gpsimd" and dst.dtype in _WIDE and data1.dtype in _WIDE and data2.dtype in _WIDE:
        exact = integer_fn(alu)
        if exact is not None:
            both = (
                data1.values,
                as_shape(data2.values, data1.shape).astype(data1.dtype.numpy, copy=False),
            )
            dst.values[...] = as_shape(exact(*both), dst.shape).astype(dst.dtype.numpy)
            return made
    x, y = read32(data1), as_shape(read32(data2), data1.shape)
    if alu.ufunc and dst.dtype is float32 and dst.shape == data1.shape:
        alu.fn(x, y, out=dst.values)
    else:
        write(dst, alu.fn(x, y))
    return made


@instruction
def tensor_scalar(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: Any,
    reverse0: bool = False,
    op1: Any = None,
    operand1: Any = None,
    reverse1: bool = False,
    engine: Engine = Engine.unknown,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = (data <op0> operand0) <op1> operand1``; operands are constants or [P, 1] vectors.

    ``reverseN`` swaps the two inputs of an operator. Both operators are arithmetic (float32) or
    both bitvec (integer tiles, VectorE only). ScalarE supports multiply-add, multiply and add on
    gen3; ``rsqrt`` runs on GpSimd (nki.isa.tensor_scalar, NKI 0.6).
    """
    core = current()
    first = alu_op(op0, "op0", core.version)
    second = None if op1 is None else alu_op(op1, "op1", core.version)
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    checks.same_layout(dst, "dst", data, "data")
    if second is None:
        if operand1 is not None:
            rules.broken(rules.OP_PAIR, "operand1", operand1, "op1 is None")
    elif first.bitvec != second.bitvec:
        rules.broken(rules.OP_MIXED, "op0, op1", f"{first.name}, {second.name}")
    elif operand1 is None and not second.unary:
        rules.broken(rules.OP_PAIR, "op1", second.name, "operand1 is None")
    reads: list[tuple[str, NkiTensor]] = [("data", data)]
    attrs: dict[str, Any] = {"op0": first.name, "op1": None if second is None else second.name}
    a = _operand(first, operand0, "operand0", data, reads, attrs)
    b = None if second is None else _operand(second, operand1, "operand1", data, reads, attrs)
    chosen = _tensor_scalar_engine(engine, first, second, dst, data, core.version)
    if reverse0:
        attrs["reverse0"] = True
    if reverse1:
        attrs["reverse1"] = True
    made = core.issue(
        chosen, "tensor_scalar", (("dst", dst),), tuple(reads), data.free, name, attrs
    )
    if first.bitvec:
        _bitvec_tiles(dst, data)
        x = data.values
        x = _apply(first, x, _bits(a, x), reverse0)
        if second is not None:
            x = _apply(second, x, _bits(b, x), reverse1)
        write_exact(dst, x, data.dtype)
        return made
    out = dst.values
    # computed in place unless operand1 lies in dst, which the first operator would overwrite
    if (
        dst.dtype is float32
        and dst.shape == data.shape
        and not (b.__class__ is np.ndarray and np.may_share_memory(b, out))
    ):
        x = _apply_into(first, read32(data), a, reverse0, out)
        if second is not None:
            x = _apply_into(second, x, b, reverse1, out)
        if x is not out:
            out[...] = x
        return made
    x = _apply(first, read32(data), a, reverse0)
    if second is not None:
        x = _apply(second, x, b, reverse1)
    write(dst, x)
    return made


@instruction
def scalar_tensor_tensor(
    dst: NkiTensor,
    data: NkiTensor,
    op0: Any,
    operand0: Any,
    op1: Any,
    operand1: NkiTensor,
    reverse0: bool = False,
    reverse1: bool = False,
    name: str | None = None,
) -> NkiInstruction:
    """``dst = (data <op0> operand0) <op1> operand1`` with a tile as operand1.

    Both operators are arithmetic.
    """
    core = current()
    first, second = alu_op(op0, "op0", core.version), alu_op(op1, "op1", core.version)
    for alu, label in ((first, "op0"), (second, "op1")):
        if alu.bitvec:
            rules.broken(rules.OP, label, alu.name, "scalar_tensor_tensor is arithmetic")
    if second.unary:
        rules.broken(rules.OP, "op1", second.name, "op1 is binary")
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    checks.tile(operand1, "operand1")
    checks.not_both_psum(data, "data", operand1, "operand1")
    checks.same_layout(operand1, "operand1", data, "data")
    checks.same_layout(dst, "dst", data, "data")
    reads: list[tuple[str, NkiTensor]] = [("data", data), ("operand1", operand1)]
    attrs: dict[str, Any] = {"op0": first.name, "op1": second.name}
    a = _operand(first, operand0, "operand0", data, reads, attrs)
    if reverse0 or reverse1:
        attrs["reverse"] = (reverse0, reverse1)
    made = core.issue(
        "vector", "scalar_tensor_tensor", (("dst", dst),), tuple(reads), data.free, name, attrs
    )
    y = as_shape(read32(operand1), data.shape)
    if dst.dtype is float32 and dst.shape == data.shape and not np.may_share_memory(dst.values, y):
        out = dst.values
        x = _apply_into(
            second, _apply_into(first, read32(data), a, reverse0, out), y, reverse1, out
        )
        if x is not out:
            out[...] = x
        return made
    write(dst, _apply(second, _apply(first, read32(data), a, reverse0), y, reverse1))
    return made


# ---------------------------------------------------------------------- parts shared by the above


def _operand(
    alu: AluOp,
    operand: Any,
    label: str,
    data: NkiTensor,
    reads: list[tuple[str, NkiTensor]],
    attrs: dict[str, Any],
) -> Any:
    """The value of a scalar or vector operand: a scalar, or an array to broadcast."""
    if isinstance(operand, NkiTensor):
        if alu.unary:
            rules.broken(rules.OP_UNARY, label, operand, alu.name)
        checks.column(operand, label, data, fp32=not alu.bitvec)
        reads.append((label, operand))
        return column(operand.values, data.ndim)
    attrs[label] = operand
    if alu.unary:
        if operand is not None and operand != 0:
            rules.broken(rules.OP_UNARY, label, operand, alu.name)
        return None
    if operand is None:
        rules.broken(rules.OP_PAIR, label, operand, alu.name)
    return int(operand) if alu.bitvec else F32(operand)


def _apply(alu: AluOp, x: np.ndarray, operand: Any, reverse: bool) -> np.ndarray:
    if alu.unary:
        return alu.fn(x)
    return alu.fn(operand, x) if reverse else alu.fn(x, operand)


def _apply_into(
    alu: AluOp, x: np.ndarray, operand: Any, reverse: bool, out: np.ndarray
) -> np.ndarray:
    """As ``_apply``, into ``out`` where the operator is a ufunc.

    NumPy handles overlapping memory.
    """
    if not alu.ufunc:
        return _apply(alu, x, operand, reverse)
    if alu.unary:
        return alu.fn(x, out=out)
    return alu.fn(operand, x, out=out) if reverse else alu.fn(x, operand, out=out)


def _bits(operand: Any, x: np.ndarray) -> Any:
    """An operand as a bit pattern of ``x``'s dtype."""
    if isinstance(operand, int):
        mask = (1 << (8 * x.dtype.itemsize)) - 1
        return np.array(operand & mask, f"u{x.dtype.itemsize}").view(x.dtype)
    return None if operand is None else operand.astype(x.dtype, copy=False)


def _bitvec_tiles(*tiles: NkiTensor) -> None:
    for t in tiles:
        if not t.dtype.is_int:
            rules.broken(rules.OP_INTEGER, "tile", t.dtype)


_SCALAR_PAIRS = (("multiply", "add"), ("multiply", None), ("add", None))


def _tensor_scalar_engine(
    asked: Engine, first: AluOp, second: AluOp | None, dst: NkiTensor, data: NkiTensor, version: int
) -> str:
    """The engine that runs it: the one asked for if legal, else GpSimd for rsqrt, else VectorE."""
    pair = (first.name, None if second is None else second.name)
    if asked is Engine.unknown:
        chosen = "gpsimd" if "rsqrt" in pair and PSUM not in (dst.buffer, data.buffer) else "vector"
    else:
        checks.member(asked, Engine, "engine")
        chosen = asked.name
    if chosen not in ("vector", "scalar", "gpsimd") or (first.bitvec and chosen != "vector"):
        rules.broken(rules.ENGINE, "engine", chosen, f"tensor_scalar {pair}")
    if chosen == "gpsimd":
        if "rsqrt" not in pair:
            rules.broken(rules.ENGINE, "engine", chosen, "tensor_scalar on gpsimd is for rsqrt")
        if PSUM in (dst.buffer, data.buffer):
            rules.broken(rules.OPERAND_SPACE, "engine", "gpsimd", "gpsimd cannot access PSUM")
    if chosen == "scalar" and (version < 3 or (version == 3 and pair not in _SCALAR_PAIRS)):
        rules.broken(rules.ENGINE, "engine", chosen, f"tensor_scalar {pair} on gen{version}")
    return chosen
