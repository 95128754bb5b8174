"""The element-wise functions of ``nki.language``, which also serve as the operators of ``nki.isa``.

Called on tiles, each makes a new SBUF tile with one or a few instructions. Passed as ``op=``, it
is only a name: the engines look their own definition up in ``alu`` and ``activations``.
"""

from __future__ import annotations

import math
from typing import Any

from nki_sim.dtypes import DType, as_dtype, bfloat16, float16, float32, int32
from nki_sim.machine import current
from nki_sim.memory import SBUF
from nki_sim.tensor import NkiTensor


class OperatorMarker:
    """An operator that exists only as an argument of ``nki.isa`` instructions."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"nl.{self.__name__} is an operator for nki.isa instructions, not a function"
        )

    def __repr__(self) -> str:
        return f"nl.{self.__name__}"


average = OperatorMarker("average")
prelu = OperatorMarker("prelu")
bypass = OperatorMarker("bypass")


def new_tile(shape: tuple[int, ...], dtype: DType) -> NkiTensor:
    """A fresh SBUF tile."""
    return NkiTensor(shape, dtype, current().allocate(tuple(shape), dtype, SBUF), SBUF)


def result_dtype(dtype: Any, *operands: Any) -> DType:
    """``dtype`` if given, else that of the tiles: the wider float, floats before integers."""
    if dtype is not None:
        return as_dtype(dtype)
    tiles = [t.dtype for t in operands if isinstance(t, NkiTensor)]
    if not tiles:
        raise TypeError("at least one operand must be a tile")
    best = tiles[0]
    for other in tiles[1:]:
        if other is best:
            continue
        if {best, other} == {bfloat16, float16}:
            best = float32
        elif (other.is_float, other.itemsize) > (best.is_float, best.itemsize):
            best = other
    return best


def _binary(op: Any, x: Any, y: Any, dtype: Any) -> NkiTensor:
    """One tensor_tensor, or one tensor_scalar where an operand is a number or a [P, 1] column."""
    from nki_sim.engines import vector

    out_dtype = result_dtype(dtype, x, y)
    reverse = not isinstance(x, NkiTensor)
    if not reverse and isinstance(y, NkiTensor) and x.free == 1 and y.free > 1:
        reverse = True
    tile, other = (y, x) if reverse else (x, y)
    dst = new_tile(tile.shape, out_dtype)
    if isinstance(other, NkiTensor) and not (other.free == 1 and tile.free > 1):
        vector.tensor_tensor(dst, x, y, op)
    else:
        vector.tensor_scalar(dst, tile, op, _number(other), reverse0=reverse)
    return dst


def _number(value: Any) -> Any:
    """A column as a float32 column (what arithmetic operands must be); numbers unchanged."""
    if isinstance(value, NkiTensor) and value.dtype is not float32:
        return copy(value, dtype=float32)
    return value


def _activate(op: Any, x: Any, dtype: Any) -> NkiTensor:
    from nki_sim.engines import scalar

    dst = new_tile(x.shape, result_dtype(dtype, x))
    scalar.activation(dst, op, x)
    return dst


def add(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x + y."""
    return _binary(add, x, y, dtype)


def subtract(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x - y."""
    return _binary(subtract, x, y, dtype)


def multiply(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x * y."""
    return _binary(multiply, x, y, dtype)


def divide(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x / y, as the product with the reciprocal (AWS lists division as unsupported on hardware)."""
    _not_on_hardware("divide")
    if not isinstance(y, NkiTensor):
        return _binary(multiply, x, 1.0 / y, dtype)
    inverse = new_tile(y.shape, float32)
    from nki_sim.engines import vector

    vector.reciprocal(inverse, y)
    return _binary(multiply, x, inverse, result_dtype(dtype, x, y))


def maximum(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """The larger of x and y."""
    return _binary(maximum, x, y, dtype)


def minimum(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """The smaller of x and y."""
    return _binary(minimum, x, y, dtype)


def abs_max(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Whichever of x and y has the larger magnitude, sign kept; y on ties. gen4 only."""
    return _binary(abs_max, x, y, dtype)


def abs_min(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Whichever of x and y has the smaller magnitude, sign kept; y on ties. gen4 only."""
    return _binary(abs_min, x, y, dtype)


def power(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x ** y; on hardware the exponent must be a tile."""
    return _binary(power, x, y, dtype)


def equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x == y, else 0."""
    return _binary(equal, x, y, dtype)


def not_equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x != y, else 0."""
    return _binary(not_equal, x, y, dtype)


def less(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x < y, else 0."""
    return _binary(less, x, y, dtype)


def less_equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x <= y, else 0."""
    return _binary(less_equal, x, y, dtype)


def greater(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x > y, else 0."""
    return _binary(greater, x, y, dtype)


def greater_equal(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where x >= y, else 0."""
    return _binary(greater_equal, x, y, dtype)


def bitwise_and(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x & y of integer tiles."""
    return _bits(bitwise_and, x, y, dtype)


def bitwise_or(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x | y of integer tiles."""
    return _bits(bitwise_or, x, y, dtype)


def bitwise_xor(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x ^ y of integer tiles."""
    return _bits(bitwise_xor, x, y, dtype)


def left_shift(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x << y of integer tiles."""
    return _bits(left_shift, x, y, dtype)


def right_shift(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """Logical x >> y of integer tiles."""
    return _bits(right_shift, x, y, dtype)


def _bits(op: Any, x: Any, y: Any, dtype: Any) -> NkiTensor:
    from nki_sim.engines import vector

    reverse = not isinstance(x, NkiTensor)
    tile, other = (y, x) if reverse else (x, y)
    dst = new_tile(tile.shape, result_dtype(dtype, x, y))
    if isinstance(other, NkiTensor) and other.free == tile.free:
        vector.tensor_tensor(dst, x, y, op)
    else:
        vector.tensor_scalar(dst, tile, op, other, reverse0=reverse)
    return dst


def invert(x: Any, dtype: Any = None) -> NkiTensor:
    """Bitwise not, as xor with all ones."""
    return _bits(bitwise_xor, x, -1, dtype)


def logical_and(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where both are not zero."""
    return _binary(logical_and, x, y, dtype)


def logical_or(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where either is not zero."""
    return _binary(logical_or, x, y, dtype)


def logical_xor(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """1 where exactly one is not zero."""
    return _binary(logical_xor, x, y, dtype)


def logical_not(x: Any, dtype: Any = None) -> NkiTensor:
    """Xor with 1: for inputs of 0 and 1."""
    return _binary(logical_xor, x, 1.0, dtype)


def abs(x: Any, dtype: Any = None) -> NkiTensor:
    """Magnitude."""
    return _binary(abs, x, 0.0, dtype)


def square(x: Any, dtype: Any = None) -> NkiTensor:
    """x * x."""
    return _binary(multiply, x, x, dtype)


def negative(x: Any, dtype: Any = None) -> NkiTensor:
    """-x."""
    return _binary(multiply, x, -1.0, dtype)


def reciprocal(x: Any, dtype: Any = None) -> NkiTensor:
    """1 / x on VectorE."""
    from nki_sim.engines import vector

    dst = new_tile(x.shape, result_dtype(dtype, x))
    vector.reciprocal(dst, x)
    return dst


def rsqrt(x: Any, dtype: Any = None) -> NkiTensor:
    """1 / sqrt(x) on GpSimd (no PSUM operand)."""
    return _binary(rsqrt, x, 0.0, dtype)


def copy(x: Any, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the elements of x (VectorE since NKI 0.6)."""
    from nki_sim.engines import vector

    dst = new_tile(x.shape, result_dtype(dtype, x))
    vector.tensor_copy(dst, x)
    return dst


def exp(x: Any, dtype: Any = None) -> NkiTensor:
    """e ** x."""
    return _activate(exp, x, dtype)


def log(x: Any, dtype: Any = None) -> NkiTensor:
    """Natural logarithm."""
    return _activate(log, x, dtype)


def sqrt(x: Any, dtype: Any = None) -> NkiTensor:
    """Square root."""
    return _activate(sqrt, x, dtype)


def tanh(x: Any, dtype: Any = None) -> NkiTensor:
    """Hyperbolic tangent."""
    return _activate(tanh, x, dtype)


def sigmoid(x: Any, dtype: Any = None) -> NkiTensor:
    """1 / (1 + e ** -x)."""
    return _activate(sigmoid, x, dtype)


def relu(x: Any, dtype: Any = None) -> NkiTensor:
    """x where positive, else 0."""
    return _activate(relu, x, dtype)


def gelu(x: Any, dtype: Any = None) -> NkiTensor:
    """x times the normal distribution function."""
    return _activate(gelu, x, dtype)


def gelu_dx(x: Any, dtype: Any = None) -> NkiTensor:
    """Derivative of gelu."""
    return _activate(gelu_dx, x, dtype)


def gelu_apprx_tanh(x: Any, dtype: Any = None) -> NkiTensor:
    """gelu through tanh."""
    return _activate(gelu_apprx_tanh, x, dtype)


def gelu_apprx_sigmoid(x: Any, dtype: Any = None) -> NkiTensor:
    """gelu as x * sigmoid(1.702 x)."""
    return _activate(gelu_apprx_sigmoid, x, dtype)


def gelu_apprx_sigmoid_dx(x: Any, dtype: Any = None) -> NkiTensor:
    """Derivative of gelu_apprx_sigmoid."""
    return _activate(gelu_apprx_sigmoid_dx, x, dtype)


def silu(x: Any, dtype: Any = None) -> NkiTensor:
    """x * sigmoid(x)."""
    return _activate(silu, x, dtype)


def silu_dx(x: Any, dtype: Any = None) -> NkiTensor:
    """Derivative of silu."""
    return _activate(silu_dx, x, dtype)


def softplus(x: Any, dtype: Any = None) -> NkiTensor:
    """log(1 + e ** x)."""
    return _activate(softplus, x, dtype)


def mish(x: Any, dtype: Any = None) -> NkiTensor:
    """x * tanh(softplus(x))."""
    return _activate(mish, x, dtype)


def erf(x: Any, dtype: Any = None) -> NkiTensor:
    """Error function."""
    return _activate(erf, x, dtype)


def erf_dx(x: Any, dtype: Any = None) -> NkiTensor:
    """Derivative of erf."""
    return _activate(erf_dx, x, dtype)


def arctan(x: Any, dtype: Any = None) -> NkiTensor:
    """Inverse tangent."""
    return _activate(arctan, x, dtype)


def sign(x: Any, dtype: Any = None) -> NkiTensor:
    """-1, 0 or 1."""
    return _activate(sign, x, dtype)


def sin(x: Any, dtype: Any = None) -> NkiTensor:
    """Sine over all inputs: the argument is reduced to [-pi, pi] before the activation."""
    return _sine(x, 0.0, result_dtype(dtype, x))


def cos(x: Any, dtype: Any = None) -> NkiTensor:
    """Cosine, as sin(x + pi / 2)."""
    return _sine(x, math.pi / 2, result_dtype(dtype, x))


def tan(x: Any, dtype: Any = None) -> NkiTensor:
    """Tangent, as sine over cosine."""
    return _binary(multiply, _sine(x, 0.0, float32), reciprocal(_sine(x, math.pi / 2, float32)),
                   result_dtype(dtype, x))  # fmt: skip


_TWO_PI_HIGH = 6.28125  # 2 pi in two parts, so that k * high is exact in float32 for moderate k
_TWO_PI_LOW = 2 * math.pi - _TWO_PI_HIGH


def _sine(x: Any, shift: float, dtype: DType) -> NkiTensor:
    """sin(x + shift): k = round((x + shift) / 2 pi) by a cast to int32, then x + shift - 2 pi k."""
    from nki_sim.engines import scalar, vector

    turns = new_tile(x.shape, int32)
    vector.tensor_scalar(
        turns, x, multiply, 1 / (2 * math.pi), op1=add, operand1=shift / (2 * math.pi)
    )
    reduced = new_tile(x.shape, float32)
    vector.scalar_tensor_tensor(reduced, turns, multiply, -_TWO_PI_HIGH, add, x)
    vector.scalar_tensor_tensor(reduced, turns, multiply, -_TWO_PI_LOW, add, reduced)
    vector.tensor_scalar(reduced, reduced, add, shift)
    vector.tensor_scalar(reduced, reduced, minimum, math.pi, op1=maximum, operand1=-math.pi)
    dst = new_tile(x.shape, dtype)
    scalar.activation(dst, sin, reduced)
    return dst


def _rounded(x: NkiTensor) -> NkiTensor:
    """x rounded to an integer, as float32, through an int32 tile (beyond 32 bits it saturates)."""
    return copy(copy(x, dtype=int32), dtype=float32)


def floor(x: Any, dtype: Any = None) -> NkiTensor:
    """Largest integer not above x: round, then step down where that went up."""
    nearest = _rounded(x)
    return _binary(subtract, nearest, greater(nearest, x, dtype=float32), result_dtype(dtype, x))


def ceil(x: Any, dtype: Any = None) -> NkiTensor:
    """Smallest integer not below x."""
    nearest = _rounded(x)
    return _binary(add, nearest, less(nearest, x, dtype=float32), result_dtype(dtype, x))


def trunc(x: Any, dtype: Any = None) -> NkiTensor:
    """x without its fraction."""
    whole = floor(abs(x, dtype=float32))
    return _binary(multiply, whole, sign(x, dtype=float32), result_dtype(dtype, x))


def fmod(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x - y * trunc(x / y): the remainder with the sign of x."""
    _not_on_hardware("fmod")
    return _remainder(x, y, trunc, result_dtype(dtype, x, y))


def mod(x: Any, y: Any, dtype: Any = None) -> NkiTensor:
    """x - y * floor(x / y): the remainder with the sign of y."""
    _not_on_hardware("mod")
    return _remainder(x, y, floor, result_dtype(dtype, x, y))


def _remainder(x: Any, y: Any, toward: Any, dtype: DType) -> NkiTensor:
    quotient = toward(divide(x, y, dtype=float32))
    return _binary(subtract, x, multiply(quotient, y), dtype)


def _not_on_hardware(name: str) -> None:
    current().note(
        "not-on-hardware",
        f"nl.{name} works in simulation; the release notes list it as unsupported on hardware",
    )
