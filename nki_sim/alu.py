"""The ALU operators of the engines (nki.api.shared.rst, Supported Math Operators).

Arithmetic operators take float32 in and give float32 out (comparisons and logic give 1.0 or 0.0);
bitvec operators work on integer bit patterns. The tables are keyed by the name of the
``nki.language`` function that a kernel passes as ``op``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nki_sim import rules

Array = np.ndarray
F32 = np.float32


@dataclass(frozen=True, slots=True)
class AluOp:
    """One operator.

    Attributes:
        name: its ``nki.language`` name.
        fn: what it computes, ``fn(x, y)``; ``fn(x)`` where unary. With ``ufunc`` set it accepts
            ``out=``.
        bitvec: bit pattern operator on integers, not float32 arithmetic.
        unary: takes no second operand.
        ufunc: ``fn`` is a NumPy ufunc on float32 that may write into its destination.
        reduce: the operator as a reduction over the last axis, None where AWS allows none.
        identity: what a reduction starts from.
        min_version: first NeuronCore version that has it.
    """

    name: str
    fn: Callable[..., Array]
    bitvec: bool = False
    unary: bool = False
    ufunc: bool = False
    reduce: Callable[[Array], Array] | None = None
    identity: float = 0.0
    min_version: int = 2


def _bool(fn: Callable[[Any, Any], Array]) -> Callable[[Any, Any], Array]:
    def compare(x: Any, y: Any) -> Array:
        return fn(x, y).astype(F32)

    return compare


def _logic(ufunc: np.ufunc) -> Callable[[Array], Array]:
    def reduce(x: Array) -> Array:
        return ufunc.reduce(x != 0, axis=-1).astype(F32)

    return reduce


def _last(ufunc: np.ufunc) -> Callable[[Array], Array]:
    def reduce(x: Array) -> Array:
        return ufunc.reduce(x, axis=-1)

    return reduce


def _sum(x: Array) -> Array:
    return x.sum(axis=-1, dtype=F32)


def _subtract_reduce(x: Array) -> Array:
    """First element minus all others, as a fold from the left."""
    return x[..., 0] - x[..., 1:].sum(axis=-1, dtype=F32)


def _magnitude(pick_second: Callable[[Array, Array], Array]) -> Callable[[Any, Any], Array]:
    def select(x: Any, y: Any) -> Array:
        # the second operand where the magnitudes tie (nki.language.abs_max, NKI 0.6)
        return np.where(pick_second(np.abs(x), np.abs(y)), y, x).astype(F32)

    return select


def _shift(fn: np.ufunc) -> Callable[[Any, Any], Array]:
    def shift(x: Any, y: Any) -> Array:
        """Logical shift on the bit pattern: no sign is carried."""
        x = np.asarray(x)
        unsigned = x.view(f"u{x.dtype.itemsize}")
        return fn(unsigned, np.asarray(y).astype(unsigned.dtype)).view(x.dtype)

    return shift


_OPS = (
    AluOp("add", np.add, ufunc=True, reduce=_sum),
    AluOp("subtract", np.subtract, ufunc=True, reduce=_subtract_reduce),
    AluOp("multiply", np.multiply, ufunc=True, reduce=_last(np.multiply), identity=1.0),
    AluOp("maximum", np.maximum, ufunc=True, reduce=_last(np.maximum), identity=-np.inf),
    AluOp("minimum", np.minimum, ufunc=True, reduce=_last(np.minimum), identity=np.inf),
    AluOp("equal", _bool(np.equal)),
    AluOp("not_equal", _bool(np.not_equal)),
    AluOp("greater_equal", _bool(np.greater_equal)),
    AluOp("greater", _bool(np.greater)),
    AluOp("less_equal", _bool(np.less_equal)),
    AluOp("less", _bool(np.less)),
    AluOp("logical_and", _bool(np.logical_and), reduce=_logic(np.logical_and), identity=1.0),
    AluOp("logical_or", _bool(np.logical_or), reduce=_logic(np.logical_or)),
    AluOp("logical_xor", _bool(np.logical_xor), reduce=_logic(np.logical_xor)),
    AluOp("power", np.power, ufunc=True),
    AluOp("abs_max", _magnitude(np.less_equal), min_version=4),
    AluOp("abs_min", _magnitude(np.greater_equal), min_version=4),
    AluOp("abs", np.abs, unary=True, ufunc=True),
    # 0.4.0 release notes: square and relu in tensor_scalar are new with trn3
    AluOp("square", np.square, unary=True, ufunc=True, min_version=4),
    AluOp("relu", lambda x: np.maximum(x, F32(0)), unary=True, min_version=4),
    AluOp("rsqrt", lambda x: F32(1) / np.sqrt(x), unary=True),
    AluOp("reciprocal", lambda x: F32(1) / x, unary=True),
    AluOp("invert", np.invert, bitvec=True, unary=True),
    AluOp("bitwise_and", np.bitwise_and, bitvec=True, reduce=_last(np.bitwise_and), identity=-1),
    AluOp("bitwise_or", np.bitwise_or, bitvec=True, reduce=_last(np.bitwise_or)),
    AluOp("bitwise_xor", np.bitwise_xor, bitvec=True, reduce=_last(np.bitwise_xor)),
    AluOp("left_shift", _shift(np.left_shift), bitvec=True),
    AluOp("right_shift", _shift(np.right_shift), bitvec=True),
)  # fmt: skip

ALU: dict[str, AluOp] = {op.name: op for op in _OPS}

_NUMPY_NAMES = {
    "max": "maximum", "amax": "maximum", "min": "minimum", "amin": "minimum", "sum": "add",
    "absolute": "abs", "bitwise_not": "invert",
}  # fmt: skip


def op_name(op: Any) -> str:
    """The NKI name of an operator argument: an ``nl`` function or marker, or its NumPy namesake."""
    name = getattr(op, "__name__", None) or getattr(op, "name", None) or str(op)
    return _NUMPY_NAMES.get(name, name)


_by_function: dict[Any, AluOp] = {}


def alu_op(op: Any, operand: str, version: int) -> AluOp:
    """The operator that a kernel passed, checked against the generation.

    Raises:
        RuleError: where the engines have no such operator.
    """
    found = _by_function.get(op)
    if found is None:
        named = ALU.get(op_name(op)) if callable(op) else None
        if named is None:
            rules.broken(rules.OP, operand, getattr(op, "__name__", op))
        found = _by_function[op] = named
    if found.min_version > version:
        rules.broken(rules.OP, operand, found.name, f"needs gen{found.min_version}")
    return found


def reduce_op(op: Any, operand: str, version: int, allowed: tuple[str, ...] = ()) -> AluOp:
    """As ``alu_op``, for an operator that must be able to reduce."""
    found = alu_op(op, operand, version)
    if found.reduce is None or (allowed and found.name not in allowed):
        rules.broken(
            rules.OP, operand, found.name, f"reductions: {', '.join(allowed)}" if allowed else ""
        )
    return found


def integer_fn(op: AluOp) -> Callable[[Any, Any], Array] | None:
    """The operator in exact 32-bit integer arithmetic, as GpSimd does it (wrapping), or None."""
    return _INTEGER.get(op.name)


_INTEGER: dict[str, Callable[[Any, Any], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater_equal": np.greater_equal,
    "greater": np.greater,
    "less_equal": np.less_equal,
    "less": np.less,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
