"""``nki.language``: tile-level functions against NumPy, and the documented examples' habits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.objects import NKIObject
from tests.nki_sim.helpers import BF16, normal, run

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore:.*unsupported on hardware")]

F32 = np.float32


def call(fn, *arrays, target="trn1"):
    """Result of an nl function on loaded tiles."""

    def kernel(*inputs):
        tile = fn(*[nl.load(x) for x in inputs])
        if tile.buffer is nl.psum:
            tile = nl.copy(tile)
        out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
        nl.store(out, tile)
        return out

    return run(kernel, *arrays, target=target)


@pytest.mark.parametrize(
    ("fn", "want"),
    [
        (nl.add, np.add), (nl.subtract, np.subtract), (nl.multiply, np.multiply),
        (nl.divide, np.divide), (nl.maximum, np.maximum), (nl.minimum, np.minimum),
        (nl.fmod, np.fmod), (nl.mod, np.mod), (nl.equal, np.equal), (nl.less, np.less),
        (nl.greater_equal, np.greater_equal), (nl.logical_or, np.logical_or),
    ],
)  # fmt: skip
def test_binary(fn, want):
    x, y = np.round(normal(9, 7) * 8) / 4, np.round(normal(9, 7, seed=1) * 8) / 4 + F32(0.125)
    np.testing.assert_allclose(call(fn, x, y), want(x, y).astype(F32), rtol=1e-5, atol=2e-6)
    if fn not in (nl.fmod, nl.mod):
        np.testing.assert_allclose(call(lambda a: fn(a, 2.0), x), want(x, F32(2)), rtol=1e-5)
    if fn in (nl.add, nl.subtract, nl.less):
        np.testing.assert_allclose(call(lambda a: fn(2.0, a), x), want(F32(2), x), rtol=1e-5)


def test_power_and_columns():
    x, y, column = np.abs(normal(9, 7)) + 0.2, normal(9, 7, seed=1), normal(9, 1, seed=2)
    np.testing.assert_allclose(call(nl.power, x, y), x**y, rtol=1e-5)
    np.testing.assert_array_equal(call(nl.subtract, x, column), x - column)
    np.testing.assert_array_equal(call(nl.subtract, column, x), column - x)


@pytest.mark.parametrize(
    ("fn", "want"),
    [
        (nl.abs, np.abs), (nl.square, np.square), (nl.negative, np.negative), (nl.sign, np.sign),
        (nl.exp, np.exp), (nl.tanh, np.tanh), (nl.sin, np.sin), (nl.cos, np.cos),
        (nl.arctan, np.arctan), (nl.floor, np.floor), (nl.ceil, np.ceil), (nl.trunc, np.trunc),
        (nl.reciprocal, np.reciprocal), (nl.copy, np.copy),
    ],
)  # fmt: skip
def test_unary(fn, want):
    x = normal(9, 7) * 5
    x[0, :4] = [0.5, -0.5, 2.0, -3.0]
    np.testing.assert_allclose(call(fn, x), want(x.astype(np.float64)), rtol=3e-5, atol=2e-5)


def test_positive_unary():
    x = np.abs(normal(9, 7)) + 0.1
    angle = np.clip(normal(9, 7), -1.4, 1.4)  # the tangent's poles magnify any rounding
    np.testing.assert_allclose(call(nl.tan, angle), np.tan(angle), rtol=1e-5, atol=1e-6)
    for fn, want in ((nl.log, np.log), (nl.sqrt, np.sqrt), (nl.rsqrt, lambda v: 1 / np.sqrt(v))):
        np.testing.assert_allclose(call(fn, x), want(x), rtol=1e-5, atol=1e-6)


def test_integers_and_logic():
    x, y = (np.arange(24, dtype=np.int32).reshape(4, 6) * 7) % 16, np.full((4, 6), 5, np.int32)
    for fn, want in (
        (nl.bitwise_and, x & y), (nl.bitwise_or, x | y), (nl.bitwise_xor, x ^ y),
        (nl.left_shift, x << y), (nl.right_shift, x >> y),
    ):  # fmt: skip
        np.testing.assert_array_equal(call(fn, x, y), want)
    np.testing.assert_array_equal(call(nl.invert, x), ~x)
    flags = (x % 2).astype(F32)
    np.testing.assert_array_equal(call(nl.logical_not, flags), 1 - flags)


def test_dtypes_of_results():
    x, y = normal(4, 5).astype(BF16), normal(4, 5, seed=1)
    assert call(nl.add, x, x).dtype == BF16
    assert call(nl.add, x, y).dtype == F32
    assert call(lambda a: nl.add(a, 1.0, dtype=nl.float16), x).dtype == np.float16


@pytest.mark.parametrize(
    ("fn", "want"),
    [(nl.sum, np.sum), (nl.max, np.max), (nl.min, np.min), (nl.mean, np.mean), (nl.prod, np.prod)],
)
@pytest.mark.parametrize("axis", [2, (1, 2), [1, 2]])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(fn, want, axis, keepdims):
    x = normal(6, 3, 5)
    got = call(lambda a: fn(a, axis, keepdims=keepdims), x)
    expected = want(x, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)
    assert got.shape == (expected.shape if expected.ndim > 1 else (6, 1))
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def test_var_all_softmax_norm():
    x, w = normal(6, 40), normal(6, 40, seed=1)
    np.testing.assert_allclose(call(lambda a: nl.var(a, 1), x)[:, 0], x.var(1), rtol=1e-5)
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(
        call(lambda a: nl.softmax(a, 1), x), e / e.sum(1, keepdims=True), rtol=1e-5
    )
    norm = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(call(lambda a, b: nl.rms_norm(a, b, 1, 40), x, w), norm, rtol=1e-5)
    flags = (x > -1).astype(F32)
    np.testing.assert_array_equal(call(lambda a: nl.all(a, 1), flags)[:, 0], flags.all(1))


def test_where_dropout_and_random():
    x, y, c = normal(6, 9), normal(6, 9, seed=1), (normal(6, 9, seed=2) > 0).astype(F32)
    np.testing.assert_array_equal(call(nl.where, c, x, y), np.where(c, x, y))
    np.testing.assert_array_equal(call(lambda a, b: nl.where(a, b, 0.0), c, x), np.where(c, x, 0))
    assert (call(lambda a: nl.dropout(a, 1.0), x) == 0).all()

    def draw(seed):
        nl.random_seed(seed)
        first = nl.rand((64, 64), nl.float32)
        nl.random_seed(seed)
        second = nl.rand((64, 64), nl.float32)
        return nl.add(first, nl.multiply(nl.equal(first, second), 10.0))

    got = call(draw, np.array([[42]], np.int32))
    assert (got >= 10).all() and (got < 11).all() and abs(got.mean() - 10.5) < 0.02


def test_matmul_transpose_broadcast():
    a, b = normal(64, 40), normal(64, 70, seed=1)
    np.testing.assert_allclose(
        call(lambda x, y: nl.matmul(x, y, transpose_x=True), a, b), a.T @ b, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        call(nl.matmul, np.ascontiguousarray(a.T), b), a.T @ b, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(call(nl.transpose, a), a.T)
    row = normal(1, 700)
    np.testing.assert_array_equal(
        call(lambda x: nl.broadcast_to(x, (33, 700)), row), np.broadcast_to(row, (33, 700))
    )
    column = normal(9, 1, 4)
    np.testing.assert_array_equal(
        call(lambda x: nl.broadcast_to(x, (9, 3, 4)), column), np.broadcast_to(column, (9, 3, 4))
    )
    np.testing.assert_array_equal(call(lambda x: nl.expand_dims(x, 1), a), a[:, None])


def test_load_transpose_gather_constants():
    x = normal(20, 30)

    def kernel(a, idx):
        t = nl.load_transpose2d(a)
        g = nl.gather_flattened(nl.load(a), nl.load(idx))
        outs = []
        for tile in (t, g, nl.shared_identity_matrix(5, dtype=nl.float32)):
            out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
            nl.store(out, tile)
            outs.append(out)
        outs.append(nl.shared_constant(np.arange(6, dtype=np.float32).reshape(2, 3)))
        return tuple(outs)

    idx = np.tile(np.array([3, 29, 0, 3], np.uint32), (20, 1))
    t, g, eye, constant = run(kernel, x, idx)
    np.testing.assert_array_equal(t, x.T)
    np.testing.assert_array_equal(g, x[:, [3, 29, 0, 3]])
    np.testing.assert_array_equal(eye, np.eye(5))
    np.testing.assert_array_equal(constant, np.arange(6).reshape(2, 3))


def test_constants_from_a_file(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, normal(3, 4))

    def kernel():
        return nl.shared_constant(str(path))

    np.testing.assert_array_equal(run(kernel), normal(3, 4))


def test_creation():
    def kernel(out):
        assert nl.zeros_like(out).buffer == out.buffer
        tile = nl.empty_like(out, dtype=nl.bfloat16, buffer=nl.sbuf)
        assert tile.dtype == nl.bfloat16 and tile.buffer == nl.sbuf
        tiles = nl.ones((4, 4), nl.float32), nl.full((4, 4), 2.5, nl.float32, buffer=nl.psum)
        tile = nl.add(*tiles)
        hbm = nl.full((4, 4), 7, nl.float32, buffer=nl.shared_hbm)
        tile[:, 0:2] = nl.load(hbm)[:, 0:2]
        tile[:, 3] = 9.0
        out[...] = tile

    out = normal(4, 4)
    run(kernel, out)
    np.testing.assert_array_equal(out, [[7, 7, 3.5, 9]] * 4)


def test_assertions_on_tiles_pass_as_in_the_documentation():
    def kernel():
        a = nl.full((128, 512), 3.0, dtype=nl.float32, buffer=nl.sbuf)
        assert nl.equal(nl.add(a, 2.0), nl.full((128, 512), 5.0, dtype=nl.float32))

    run(kernel)


def test_device_print(capsys):
    run(lambda: nl.device_print("my tile", nl.full((1, 2), 3.0, nl.float32)))
    assert "my tile (1, 2) float32\n[[3. 3.]]" in capsys.readouterr().out


def test_buffer_predicates():
    assert nl.is_hbm(nl.hbm) and nl.is_hbm(nl.shared_hbm) and not nl.is_hbm(nl.sbuf)
    assert nl.is_on_chip(nl.psum) and nl.is_psum(nl.psum) and nl.is_sbuf(nl.sbuf)
    assert nl.hbm is nl.private_hbm


def test_kernel_classes_are_built_as_nki_builds_them():
    class Plain(NKIObject):
        size = 4
        other: int
        flag: bool = False

        def double(self):
            return self.size * 2

    p = Plain(size=8)
    assert (p.size, p.other, p.flag, p.double()) == (8, None, False, 16) and Plain().size == 4

    @dataclass
    class Data(NKIObject):
        x: int
        y: bool = False
        tile = 128

        def __post_init__(self):
            self.z = (self.x or 0) + 1

    assert (Data(1).x, Data(1).z, Data().x, Data(tile=3).tile) == (1, 2, None, 3)

    @dataclass(frozen=True)
    class Frozen(NKIObject):
        x: int = 3

    assert Frozen(x=5).x == 5
    with pytest.raises(AttributeError):
        Frozen().x = 1

    class WithFunction(NKIObject):
        act: object = nl.exp
        shift: int = 1

    assert WithFunction(shift=3).act is nl.exp and WithFunction(act=nl.relu).act is nl.relu

    class Own(NKIObject):
        x: int = 1

        def __init__(self, x):
            self.x = x + 1

    assert Own(1).x == 2
    with pytest.raises(TypeError, match="no field 'nope'"):
        Plain(nope=1)


def test_subkernels_are_plain_calls():
    from nki_sim.kernel import jit

    @jit
    def inner(tile):
        return nl.multiply(tile, 2.0)

    def outer(a):
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nisa.dma_copy(out, inner(nl.load(a)))
        return out

    x = normal(3, 4)
    np.testing.assert_array_equal(run(outer, x), x * 2)
