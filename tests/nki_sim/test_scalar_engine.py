"""ScalarE: activation functions, scale, bias and the running sum, against NumPy and ``math``."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from tests.nki_sim.helpers import BF16, apply, normal

pytestmark = pytest.mark.sim

F32 = np.float32


def wide(fn):
    return np.vectorize(fn, otypes=[np.float64])


def sig(x):
    return 1 / (1 + math.exp(-x))


def phi(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


FUNCTIONS = {
    nl.copy: lambda x: x,
    nl.square: lambda x: x * x,
    nl.sigmoid: sig,
    nl.relu: lambda x: max(x, 0.0),
    nl.gelu: lambda x: x * phi(x),
    nl.gelu_dx: lambda x: phi(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi),
    nl.gelu_apprx_tanh: lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    nl.gelu_apprx_sigmoid: lambda x: x * sig(1.702 * x),
    nl.gelu_apprx_sigmoid_dx: lambda x: (
        sig(1.702 * x) + 1.702 * x * sig(1.702 * x) * (1 - sig(1.702 * x))
    ),
    nl.silu: lambda x: x * sig(x),
    nl.silu_dx: lambda x: sig(x) * (1 + x * (1 - sig(x))),
    nl.tanh: math.tanh,
    nl.softplus: lambda x: math.log1p(math.exp(x)),
    nl.mish: lambda x: x * math.tanh(math.log1p(math.exp(x))),
    nl.erf: math.erf,
    nl.erf_dx: lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x),
    nl.exp: math.exp,
    nl.sin: math.sin,
    nl.arctan: math.atan,
    nl.sign: lambda x: (x > 0) - (x < 0),
    nl.abs: abs,
}
POSITIVE = {
    nl.log: math.log,
    nl.sqrt: math.sqrt,
    nl.rsqrt: lambda x: 1 / math.sqrt(x),
    nl.reciprocal: lambda x: 1 / x,
}


@pytest.mark.parametrize("op", [*FUNCTIONS, *POSITIVE], ids=lambda op: op.__name__)
def test_every_activation_function(op):
    x = np.clip(normal(61, 3, 5) * 1.3, -3.1, 3.1)
    if op in POSITIVE:
        x = np.abs(x) + F32(0.01)
    (y,) = apply(lambda d, a: nisa.activation(d, op, a), x, out=[((61, 15), F32)])
    want = wide({**FUNCTIONS, **POSITIVE}[op])(x.astype(np.float64)).reshape(61, 15)
    np.testing.assert_allclose(y, want, rtol=2e-6, atol=3e-7)


def test_sine_extrapolates_as_documented():
    x = np.array([[9.0, -9.0, math.pi, 0.5]], F32)
    (y,) = apply(lambda d, a: nisa.activation(d, nl.sin, a), x, out=[(x.shape, F32)])
    np.testing.assert_allclose(y[0], [27.65, -27.65, 0.0, math.sin(0.5)], rtol=1e-4, atol=1e-6)


def test_extremes_stay_finite():
    x = np.array([[-1e4, -100.0, 0.0, 100.0, 1e4]], F32)
    for op, want in (
        (nl.sigmoid, [0, 0, 0.5, 1, 1]), (nl.silu, [0, 0, 0, 100, 1e4]),
        (nl.erf, [-1, -1, 0, 1, 1]),
        (nl.softplus, [0, 0, math.log(2), 100, 1e4]), (nl.gelu, [0, 0, 0, 100, 1e4]),
    ):  # fmt: skip
        (y,) = apply(lambda d, a, op=op: nisa.activation(d, op, a), x, out=[(x.shape, F32)])
        np.testing.assert_allclose(y[0], want, atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_scale_and_bias(dtype):
    x, s, b = (
        normal(45, 12).astype(dtype),
        normal(45, 1, seed=1),
        normal(45, 1, seed=2).astype(dtype),
    )

    def body(dst, a, scale, bias):
        nisa.activation(dst, nl.exp, a, bias=bias, scale=scale)

    (y,) = apply(body, x, s, b, out=[((45, 12), F32)])
    want = np.exp(x.astype(np.float64) * s + b.astype(np.float64))
    np.testing.assert_allclose(y, want, rtol=2e-6)
    (y,) = apply(
        lambda d, a: nisa.activation(d, nl.copy, a, bias=0.5, scale=2.0),
        x, out=[((45, 12), F32)], target="trn2",
    )  # fmt: skip
    np.testing.assert_array_equal(y, x.astype(F32) * 2 + F32(0.5))


def test_running_sum_across_instructions():
    x = normal(23, 10)
    cmd = nisa.reduce_cmd

    def body(d, once, twice, after_reset, a):
        nisa.activation(
            d, nl.exp, a, reduce_op=nl.add, reduce_res=once, reduce_cmd=cmd.reset_reduce
        )
        nisa.activation(d, nl.copy, a)  # idle leaves the registers alone
        nisa.activation(d, nl.copy, a, reduce_op=nl.add, reduce_cmd=cmd.reduce, reduce_res=twice)
        nisa.activation(d, nl.copy, a, reduce_cmd=cmd.reset, reduce_res=after_reset)

    _, once, twice, zero = apply(body, x, out=[((23, 10), F32)] + [((23, 1), F32)] * 3)
    sums = np.exp(x.astype(np.float64)).sum(1)
    np.testing.assert_allclose(once[:, 0], sums, rtol=1e-6)
    np.testing.assert_allclose(twice[:, 0], sums + x.sum(1), rtol=1e-5)
    assert (zero == 0).all()


def test_activation_reduce_sums_before_rounding():
    x = normal(9, 300)
    y, total = apply(
        lambda d, r, a: nisa.activation_reduce(d, nl.exp, a, nl.add, r),
        x, out=[((9, 300), BF16), ((9, 1), F32)],
    )  # fmt: skip
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_array_equal(y, np.exp(x).astype(BF16))
    np.testing.assert_allclose(total[:, 0], exact.sum(1), rtol=1e-6)
