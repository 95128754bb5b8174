"""The functions of the scalar engine (nki.api.shared.rst, Supported Activation Functions).

All take and give float32. The hardware approximates them with piecewise polynomials; here they are
as exact as NumPy, except ``sin``, whose extrapolation outside [-pi, pi] AWS documents and its
simulator reproduces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
F32 = np.float32

_ERF_EDGE = 4.0  # 1 - erf(4) is 1.5e-8, below half an ulp of float32 at 1


def _erf_ratio(t: Array) -> Array:
    """erf(x) / x as a function of t = x * x: smooth through 0, and even, so that erf stays odd."""
    return np.array([math.erf(math.sqrt(v)) / math.sqrt(v) for v in t])


_ERF = np.polynomial.Chebyshev.interpolate(_erf_ratio, 40, domain=[0.0, _ERF_EDGE**2])
_SQRT_2 = math.sqrt(2.0)
_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)


def erf(x: Array) -> Array:
    """The error function, to float32 rounding: a Chebyshev interpolant of ``math.erf``."""
    wide = np.clip(x, -_ERF_EDGE, _ERF_EDGE).astype(np.float64)
    return np.where(np.isnan(x), x, wide * _ERF(wide * wide)).astype(F32)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, F32(1), e) / (F32(1) + e)


def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return np.maximum(x, F32(0)) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: Array) -> Array:
    """x times the normal distribution function."""
    return F32(0.5) * x * (F32(1) + erf(x / F32(_SQRT_2)))


def _density(x: Array) -> Array:
    return F32(1 / math.sqrt(2 * math.pi)) * np.exp(F32(-0.5) * x * x)


def _gelu_dx(x: Array) -> Array:
    return F32(0.5) * (F32(1) + erf(x / F32(_SQRT_2))) + x * _density(x)


def _gelu_tanh(x: Array) -> Array:
    inner = F32(_SQRT_2_OVER_PI) * (x + F32(0.044715) * x * x * x)
    return F32(0.5) * x * (F32(1) + np.tanh(inner))


def _gelu_sigmoid(x: Array) -> Array:
    return x * sigmoid(F32(1.702) * x)


def _gelu_sigmoid_dx(x: Array) -> Array:
    s = sigmoid(F32(1.702) * x)
    return s + F32(1.702) * x * s * (F32(1) - s)


def _silu_dx(x: Array) -> Array:
    s = sigmoid(x)
    return s * (F32(1) + x * (F32(1) - s))


def _sin(x: Array) -> Array:
    """Sine in [-pi, pi]; outside, the cubic that AWS documents (``sin(9.0)`` is about 27.65)."""
    inside = np.abs(x) <= F32(math.pi)
    return np.where(inside, np.sin(np.where(inside, x, F32(0))), _sin_cubic(x))


def _sin_cubic(x: Array) -> Array:
    """The cubic through (pi, 0) with the sine's slope -1 there and through (9, 27.65), odd in x.

    AWS publishes one point of the extrapolation and its degree, no coefficients. With u = |x| - pi,
    value = -u + c u**3; c follows from the published point.
    """
    u = np.abs(x) - F32(math.pi)
    c = F32((27.65 + (9.0 - math.pi)) / (9.0 - math.pi) ** 3)
    return np.sign(x) * (c * u * u * u - u)


@dataclass(frozen=True, slots=True)
class Activation:
    """One function: its name, what it computes, and the input range within which it is valid."""

    name: str
    fn: Callable[[Array], Array]
    low: float = -math.inf
    high: float = math.inf


_FUNCTIONS = (
    Activation("copy", lambda x: x),
    Activation("square", np.square),
    Activation("sigmoid", sigmoid),
    Activation("relu", lambda x: np.maximum(x, F32(0))),
    Activation("gelu", gelu),
    Activation("gelu_dx", _gelu_dx),
    Activation("gelu_apprx_tanh", _gelu_tanh),
    Activation("gelu_apprx_sigmoid", _gelu_sigmoid),
    Activation("gelu_apprx_sigmoid_dx", _gelu_sigmoid_dx),
    Activation("silu", lambda x: x * sigmoid(x)),
    Activation("silu_dx", _silu_dx),
    Activation("tanh", np.tanh),
    Activation("softplus", softplus),
    Activation("mish", lambda x: x * np.tanh(softplus(x))),
    Activation("erf", erf),
    Activation("erf_dx", lambda x: F32(2 / math.sqrt(math.pi)) * np.exp(-x * x)),
    Activation("exp", np.exp),
    Activation("log", np.log, 2.0**-64, 2.0**64),
    Activation("sin", _sin, -math.pi, math.pi),
    Activation("arctan", np.arctan, -math.pi / 2, math.pi / 2),
    Activation("sqrt", np.sqrt, 2.0**-116, 2.0**118),
    Activation("rsqrt", lambda x: F32(1) / np.sqrt(x), 2.0**-87, 2.0**97),
    Activation("reciprocal", lambda x: F32(1) / x, -(2.0**42), 2.0**42),
    Activation("sign", np.sign),
    Activation("abs", np.abs),
)

ACTIVATIONS: dict[str, Activation] = {a.name: a for a in _FUNCTIONS}
"""By ``nki.language`` name. ``prelu`` exists in ``activate2`` only (its slope is an argument
there)."""
