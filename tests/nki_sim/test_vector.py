"""VectorE instructions on odd shapes, each against an independent NumPy expression."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from tests.nki_sim.helpers import BF16, apply, normal, rng

pytestmark = pytest.mark.sim

F32 = np.float32


@pytest.mark.parametrize("target", ["trn1", "trn2", "trn3"])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, BF16, np.int8, np.uint16, np.int32, ml_dtypes.float8_e5m2]
)
def test_tensor_copy_is_bit_exact_between_equal_dtypes(dtype, target):
    x = (normal(67, 3, 5) * 50).astype(dtype)
    (y,) = apply(nisa.tensor_copy, x, out=[((67, 15), dtype)], target=target)
    np.testing.assert_array_equal(y.view(np.uint8), x.reshape(67, 15).view(np.uint8))


def test_large_integers_survive_a_copy():
    x = rng().integers(-(2**31), 2**31 - 1, (128, 7)).astype(np.int32)
    (y,) = apply(nisa.tensor_copy, x, out=[(x.shape, np.int32)])
    np.testing.assert_array_equal(y, x)


def test_float_to_integer_rounds_to_even_and_saturates():
    values = [
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        3.2,
        -3.7,
        300.0,
        -300.0,
        1e12,
        -1e12,
        np.inf,
        -np.inf,
        np.nan,
    ]
    x = np.array([values], F32)
    (y,) = apply(nisa.tensor_copy, x, out=[(x.shape, np.int8)])
    assert y[0].tolist() == [0, 2, 2, 0, -2, 3, -4, 127, -128, 127, -128, 127, -128, 0]
    (y,) = apply(nisa.tensor_copy, x, out=[(x.shape, np.int32)])
    assert y[0, 9:13].tolist() == [2**31 - 1, -(2**31), 2**31 - 1, -(2**31)]
    (y,) = apply(nisa.tensor_copy, x, out=[(x.shape, np.uint8)])
    assert y[0, :9].tolist() == [0, 2, 2, 0, 0, 3, 0, 255, 0]


def test_conversions_go_through_float32():
    x = np.array([[2**24 + 1, -(2**24) - 1, 7]], np.int32)
    (y,) = apply(nisa.tensor_copy, x, out=[(x.shape, np.float32)])
    assert y.tolist() == [[float(2**24), -float(2**24), 7.0]]
    z = normal(5, 9)
    (b,) = apply(nisa.tensor_copy, z, out=[(z.shape, BF16)])
    np.testing.assert_array_equal(b, z.astype(BF16))


def test_tfloat32_keeps_ten_mantissa_bits():
    x = np.array([[1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-11 + 2**-12, 1 + 3 * 2**-11, -np.inf]], F32)

    def body(dst, tile):
        t = nl.ndarray(tile.shape, nl.tfloat32, nl.sbuf)
        nisa.tensor_copy(t, tile)
        nisa.tensor_copy(dst, t)

    (y,) = apply(body, x, out=[(x.shape, np.float32)])
    assert y[0].tolist() == [1.0, 1 + 2**-10, 1.0, 1 + 2**-10, 1 + 2**-9, -np.inf]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (nl.add, np.add), (nl.subtract, np.subtract), (nl.multiply, np.multiply),
        (nl.maximum, np.maximum), (nl.minimum, np.minimum),
        (nl.equal, np.equal), (nl.not_equal, np.not_equal), (nl.greater, np.greater),
        (nl.greater_equal, np.greater_equal), (nl.less, np.less), (nl.less_equal, np.less_equal),
        (nl.logical_and, np.logical_and), (nl.logical_or, np.logical_or),
        (nl.logical_xor, np.logical_xor),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.int16])
def test_tensor_tensor_arithmetic(op, expected, dtype):
    x = np.round(normal(33, 7, 3) * 3).astype(dtype)
    y = np.round(normal(33, 21, seed=1) * 3).astype(dtype)
    (z,) = apply(
        lambda dst, a, b: nisa.tensor_tensor(dst, a, b, op), x, y, out=[((33, 21), np.float32)]
    )
    wide = expected(x.reshape(33, 21).astype(F32), y.astype(F32)).astype(F32)
    np.testing.assert_array_equal(z, wide)


def test_tensor_tensor_rounds_once_into_the_destination():
    x, y = normal(20, 11).astype(BF16), normal(20, 11, seed=1).astype(BF16)
    (z,) = apply(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, nl.multiply), x, y, out=[((20, 11), BF16)]
    )
    np.testing.assert_array_equal(z, (x.astype(F32) * y.astype(F32)).astype(BF16))


def test_int32_tiles_are_exact_on_gpsimd_and_fp32_on_vector():
    x = np.array([[2**24 + 1, 2**31 - 1]], np.int32)
    y = np.array([[2, 1]], np.int32)
    (z,) = apply(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, nl.add), x, y, out=[(x.shape, np.int32)]
    )
    assert z.tolist() == [[2**24 + 3, -(2**31)]]  # 32-bit integers wrap
    (z,) = apply(
        lambda d, a, b: nisa.tensor_tensor(d, a, b, nl.add, engine=nisa.engine.vector),
        x, y, out=[(x.shape, np.int32)],
    )  # fmt: skip
    assert z.tolist() == [[2**24 + 2, 2**31 - 1]]


def test_power_runs_on_gpsimd():
    x, y = np.abs(normal(5, 6)) + 0.1, normal(5, 6, seed=1)
    (z,) = apply(lambda d, a, b: nisa.tensor_tensor(d, a, b, nl.power), x, y, out=[((5, 6), F32)])
    np.testing.assert_allclose(z, x**y, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32])
def test_bitvec_operators(dtype):
    info = np.iinfo(dtype)
    x = rng().integers(info.min, info.max, (9, 14), dtype=dtype, endpoint=True)
    y = rng(1).integers(info.min, info.max, (9, 14), dtype=dtype, endpoint=True)
    for op, expected in (
        (nl.bitwise_and, x & y), (nl.bitwise_or, x | y), (nl.bitwise_xor, x ^ y),
    ):  # fmt: skip
        (z,) = apply(
            lambda d, a, b, op=op: nisa.tensor_tensor(d, a, b, op), x, y, out=[((9, 14), dtype)]
        )
        np.testing.assert_array_equal(z, expected)
    unsigned = x.view(f"u{x.itemsize}")
    for op, expected in (
        (nl.left_shift, (unsigned << 3).view(dtype)), (nl.right_shift, (unsigned >> 3).view(dtype)),
    ):  # fmt: skip
        (z,) = apply(lambda d, a, op=op: nisa.tensor_scalar(d, a, op, 3), x, out=[((9, 14), dtype)])
        np.testing.assert_array_equal(z, expected)
    (z,) = apply(
        lambda d, a: nisa.tensor_scalar(d, a, nl.invert, None, op1=nl.bitwise_and, operand1=0x7F),
        x, out=[((9, 14), dtype)],
    )  # fmt: skip
    np.testing.assert_array_equal(z, ~x & dtype(0x7F))


@pytest.mark.parametrize("reverse0", [False, True])
@pytest.mark.parametrize("reverse1", [False, True])
@pytest.mark.parametrize("out", [np.float32, BF16, np.int32])
def test_tensor_scalar_two_operators_vector_and_constant(reverse0, reverse1, out):
    x, v = normal(77, 3, 5) * 4, normal(77, 1, seed=1)

    def body(dst, tile, column):
        nisa.tensor_scalar(dst, tile, nl.subtract, column, reverse0, nl.subtract, 1.25, reverse1)

    (z,) = apply(body, x, v, out=[((77, 15), out)])
    wide = x.reshape(77, 15)
    t = v - wide if reverse0 else wide - v
    t = F32(1.25) - t if reverse1 else t - F32(1.25)
    np.testing.assert_array_equal(z, np.rint(t).astype(out) if out is np.int32 else t.astype(out))


def test_tensor_scalar_chained_comparison_counts_in_float():
    x = normal(12, 9)
    (z,) = apply(
        lambda d, a: nisa.tensor_scalar(d, a, nl.greater, 0.0, op1=nl.subtract, operand1=1.0),
        x, out=[((12, 9), F32)],
    )  # fmt: skip
    np.testing.assert_array_equal(z, (x > 0).astype(F32) - 1)


def test_tensor_scalar_when_the_destination_is_an_operand():
    m, x = normal(9, 1), normal(9, 1, seed=1)

    def body(dst, total, value):
        nisa.tensor_copy(dst, total)
        nisa.tensor_scalar(dst, value, nl.multiply, 3.0, op1=nl.add, operand1=dst)

    (z,) = apply(body, m, x, out=[((9, 1), F32)])
    np.testing.assert_array_equal(z, x * 3 + m)


def test_tensor_scalar_unary_operators():
    x = np.abs(normal(6, 10)) + 0.5
    for op, expected in ((nl.rsqrt, 1 / np.sqrt(x)), (nl.reciprocal, 1 / x), (nl.abs, np.abs(x))):
        (z,) = apply(lambda d, a, op=op: nisa.tensor_scalar(d, a, op, 0.0), x, out=[((6, 10), F32)])
        np.testing.assert_allclose(z, expected, rtol=2e-7)


@pytest.mark.parametrize("reverse", [(False, False), (True, False), (False, True), (True, True)])
def test_scalar_tensor_tensor(reverse):
    x, v, y = normal(31, 8), normal(31, 1, seed=1), normal(31, 8, seed=2).astype(BF16)

    def body(dst, a, column, b):
        nisa.scalar_tensor_tensor(dst, a, nl.subtract, column, nl.subtract, b, *reverse)

    (z,) = apply(body, x, v, y, out=[((31, 8), F32)])
    t = v - x if reverse[0] else x - v
    np.testing.assert_array_equal(z, y.astype(F32) - t if reverse[1] else t - y.astype(F32))


def test_scalar_tensor_tensor_in_place():
    x, y = normal(31, 8), normal(31, 8, seed=2)

    def body(dst, a, b):
        nisa.tensor_copy(dst, b)
        nisa.scalar_tensor_tensor(dst, a, nl.multiply, 2.0, nl.add, dst)

    (z,) = apply(body, x, y, out=[((31, 8), F32)])
    np.testing.assert_array_equal(z, x * 2 + y)


@pytest.mark.parametrize("value", [0, 3, -2])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.int8, np.int32])
def test_memset(value, dtype):
    (z,) = apply(lambda dst: nisa.memset(dst, value), out=[((7, 5), dtype)])
    np.testing.assert_array_equal(z, np.full((7, 5), value, dtype))


def test_memset_wraps_bit_patterns_of_unsigned_tiles():
    (z,) = apply(lambda dst: nisa.memset(dst, 0xFFFFFFFF), out=[((2, 2), np.uint32)])
    assert (z == 0xFFFFFFFF).all()


def test_reciprocal():
    x = normal(13, 4, 3).astype(BF16)
    (z,) = apply(nisa.reciprocal, x, out=[((13, 12), BF16)])
    np.testing.assert_array_equal(z, (1 / x.astype(F32)).astype(BF16).reshape(13, 12))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (nl.add, np.sum), (nl.maximum, np.max), (nl.minimum, np.min), (nl.multiply, np.prod),
        (nl.max, np.max), (nl.logical_and, np.all), (nl.logical_or, np.any),
    ],
)  # fmt: skip
@pytest.mark.parametrize("axis", [3, (2, 3), (1, 2, 3), -1])
@pytest.mark.parametrize("negate", [False, True])
def test_tensor_reduce(op, expected, axis, negate):
    x = np.round(normal(19, 2, 3, 4) * 2) / 2
    want = expected(x.astype(np.float64), axis=axis).astype(np.float64)
    (z,) = (
        apply(
            lambda d, a: nisa.tensor_reduce(d, op, a, axis, negate=negate),
            x,
            out=[(want.shape, F32)],
        )
        if want.ndim > 1
        else apply(
            lambda d, a: nisa.tensor_reduce(d, op, a, axis, negate=negate), x, out=[((19, 1), F32)]
        )
    )
    np.testing.assert_allclose(
        z.reshape(want.shape), -want if negate else want, rtol=1e-6, atol=1e-6
    )


def test_tensor_reduce_bitvec():
    x = rng().integers(0, 255, (5, 6, 7), dtype=np.uint8)
    (z,) = apply(
        lambda d, a: nisa.tensor_reduce(d, nl.bitwise_or, a, 2), x, out=[((5, 6), np.uint8)]
    )
    np.testing.assert_array_equal(z, np.bitwise_or.reduce(x, axis=2))


@pytest.mark.parametrize(
    ("op", "reduce"),
    [(nl.add, np.sum), (nl.maximum, np.max), (nl.min, np.min), (nl.multiply, np.prod)],
)
def test_tensor_scalar_reduce(op, reduce):
    x = normal(21, 3, 4)
    z, r = apply(
        lambda d, res, a: nisa.tensor_scalar_reduce(d, a, nl.multiply, 1.5, op, res),
        x, out=[((21, 12), BF16), ((21, 1), F32)],
    )  # fmt: skip
    wide = (x * F32(1.5)).reshape(21, 12)
    np.testing.assert_array_equal(z, wide.astype(BF16))
    np.testing.assert_allclose(r[:, 0], reduce(wide, axis=1), rtol=1e-5)


def test_accumulator_survives_instructions():
    x = normal(11, 6)

    def body(d, res, a):
        cmd = nisa.reduce_cmd
        nisa.tensor_scalar_reduce(d, a, nl.add, 0.0, nl.add)
        nisa.tensor_scalar_reduce(d, a, nl.add, 1.0, nl.add, None, reduce_cmd=cmd.reduce)
        nisa.tensor_scalar_reduce(
            d, a, nl.add, 0.0, nl.add, res, reduce_cmd=cmd.reduce, reduce_res_negate=True
        )

    _, r = apply(body, x, out=[((11, 6), F32), ((11, 1), F32)])
    np.testing.assert_allclose(r[:, 0], -(3 * x.sum(1) + 6), rtol=1e-5)


def test_load_reduce_starts_from_a_vector():
    x, start = normal(11, 6), normal(11, 1, seed=1)

    def body(d, res, a, init):
        nisa.tensor_scalar_reduce(
            d, a, nl.add, 0.0, nl.maximum, res,
            reduce_cmd=nisa.reduce_cmd.load_reduce, reduce_init=init,
        )  # fmt: skip

    _, r = apply(body, x, start, out=[((11, 6), F32), ((11, 1), F32)])
    np.testing.assert_array_equal(r, np.maximum(x.max(1, keepdims=True), start))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_tensor_copy_predicated(reverse, dtype):
    x, base = normal(17, 9), normal(17, 9, seed=1)
    p = rng().integers(0, 3, (17, 9)).astype(dtype)

    def body(dst, a, b, pred):
        nisa.tensor_copy(dst, b)
        nisa.tensor_copy_predicated(dst, a, pred, reverse_pred=reverse)

    (z,) = apply(body, x, base, p, out=[((17, 9), F32)])
    np.testing.assert_array_equal(z, np.where((p != 0) != reverse, x, base))

    def scalar(dst, b, pred):
        nisa.tensor_copy(dst, b)
        nisa.tensor_copy_predicated(dst, -7.5, pred, reverse_pred=reverse)

    (z,) = apply(scalar, base, p, out=[((17, 9), F32)])
    np.testing.assert_array_equal(z, np.where((p != 0) != reverse, F32(-7.5), base))


@pytest.mark.parametrize("column", [False, True])
def test_select_reduce(column):
    x, p = normal(10, 7), rng().integers(0, 2, (10, 7)).astype(np.uint8)
    fill = normal(10, 1, seed=2)

    def body(dst, res, a, pred, v):
        nisa.select_reduce(
            dst, pred, a, v if column else -2.0, res, nisa.reduce_cmd.reset_reduce, nl.maximum
        )

    z, r = apply(body, x, p, fill, out=[((10, 7), F32), ((10, 1), F32)])
    want = np.where(p != 0, x, fill if column else F32(-2.0))
    np.testing.assert_array_equal(z, want)
    np.testing.assert_array_equal(r, want.max(1, keepdims=True))


@pytest.mark.parametrize("out", [np.float32, BF16])
def test_range_select(out):
    x = normal(14, 20)
    low = rng().integers(0, 10, (14, 1)).astype(F32) + 100
    high = rng(1).integers(8, 25, (14, 1)).astype(F32) + 100

    def body(dst, res, a, lo, hi):
        nisa.range_select(
            dst, a, nl.greater_equal, nl.less, lo, hi, reduce_res=res, range_start=100
        )

    z, r = apply(body, x, low, high, out=[((14, 20), out), ((14, 1), F32)], target="trn2")
    at = 100 + np.arange(20, dtype=F32)
    mask = (at >= low) & (at < high)
    smallest = np.finfo(F32).min
    np.testing.assert_array_equal(r, np.where(mask, x, smallest).max(1, keepdims=True))
    fill = smallest if out is np.float32 else -np.inf
    np.testing.assert_array_equal(z, np.where(mask, x, fill).astype(out))
