"""TensorE: products, accumulation in PSUM, transposes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError
from tests.nki_sim.helpers import BF16, apply, normal, run

pytestmark = pytest.mark.sim

F32 = np.float32
FP8 = ml_dtypes.float8_e4m3


@pytest.mark.parametrize("shape", [(1, 1, 1), (128, 128, 512), (77, 33, 129), (5, 128, 1)])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, FP8])
def test_matmul(shape, dtype):
    k, m, n = shape
    a, b = normal(k, m).astype(dtype), normal(k, n, seed=1).astype(dtype)
    (c,) = apply(nisa.nc_matmul, a, b, out=[((m, n), F32)], dst_buffer=nl.psum)
    want = a.astype(np.float64).T @ b.astype(np.float64)
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max()))


def test_free_dimensions_are_flattened():
    a, b = normal(20, 3, 4), normal(20, 5, 2, seed=1)
    (c,) = apply(nisa.nc_matmul, a, b, out=[((12, 5, 2), F32)], dst_buffer=nl.psum)
    want = np.einsum("km,kn->mn", a.reshape(20, 12), b.reshape(20, 10)).reshape(12, 5, 2)
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-5)


def test_accumulate_modes():
    a, b = normal(30, 8), normal(30, 9, seed=1)
    product = a.T @ b

    def body(auto, explicit, overwritten, x, y):
        for i in range(3):
            nisa.nc_matmul(auto, x, y)
            nisa.nc_matmul(explicit, x, y, accumulate=i > 0)
            nisa.nc_matmul(overwritten, x, y, accumulate=False)

    auto, explicit, once = apply(body, a, b, out=[((8, 9), F32)] * 3, dst_buffer=nl.psum)
    np.testing.assert_allclose(auto, 3 * product, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(auto, explicit)
    np.testing.assert_allclose(once, product, rtol=1e-5, atol=1e-5)


def test_auto_accumulation_is_per_element():
    a, b = normal(30, 8), normal(30, 12, seed=1)

    def body(dst, x, y):
        nisa.nc_matmul(dst[:, 0:8], x, y[:, 0:8])
        nisa.nc_matmul(dst[:, 4:12], x, y[:, 4:12])

    (c,) = apply(body, a, b, out=[((8, 12), F32)], dst_buffer=nl.psum)
    want = a.T @ b
    want[:, 4:8] *= 2
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-5)


def test_first_matmul_overwrites_zeros():
    a, b = normal(30, 8), normal(30, 9, seed=1)

    def body(dst, x, y):
        nisa.memset(dst, 0.0)
        nisa.nc_matmul(dst, x, y)
        nisa.nc_matmul(dst, x, y)

    (c,) = apply(body, a, b, out=[((8, 9), F32)], dst_buffer=nl.psum)
    np.testing.assert_allclose(c, 2 * a.T @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["trn1", "trn2"])
def test_accumulating_onto_other_data_is_refused(target):
    a, b = normal(30, 8), normal(30, 9, seed=1)

    def never_written(dst, x, y):
        nisa.nc_matmul(dst, x, y, accumulate=True)

    def initialised(dst, x, y):
        nisa.memset(dst, 1.0)
        nisa.nc_matmul(dst, x, y, accumulate=True)

    def ambiguous(dst, x, y):
        nisa.memset(dst, 1.0)
        nisa.nc_matmul(dst, x, y)

    for body in (never_written, initialised, ambiguous):
        with pytest.raises(RuleError, match=r"matmul\.accumulate"):
            apply(body, a, b, out=[((8, 9), F32)], dst_buffer=nl.psum, target=target)


def test_gen4_accumulates_onto_initialised_psum():
    a, b = normal(30, 8), normal(30, 9, seed=1)

    def body(dst, x, y):
        nisa.memset(dst, 1.0)
        nisa.nc_matmul(dst, x, y, accumulate=True)

    (c,) = apply(body, a, b, out=[((8, 9), F32)], dst_buffer=nl.psum, target="trn3")
    np.testing.assert_allclose(c, 1 + a.T @ b, rtol=1e-5, atol=1e-5)


def test_double_row_contracts_partitions_and_rows():
    a, b = normal(64, 2, 16).astype(FP8), normal(64, 2, 24, seed=1).astype(ml_dtypes.float8_e5m2)
    mode = nisa.matmul_perf_mode.double_row
    (c,) = apply(
        lambda d, x, y: nisa.nc_matmul(d, x, y, perf_mode=mode),
        a, b, out=[((16, 24), F32)], dst_buffer=nl.psum, target="trn2",
    )  # fmt: skip
    want = np.einsum("ktm,ktn->mn", a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-4)


def test_exact_matmul_does_not_depend_on_the_tile():
    a, b = normal(128, 128), normal(128, 512, seed=1)
    (whole,) = apply(
        nisa.nc_matmul, a, b, out=[((128, 512), F32)], dst_buffer=nl.psum, exact_matmul=True
    )
    (part,) = apply(
        nisa.nc_matmul, a[:, :3].copy(), b[:, 7:8].copy(),
        out=[((3, 1), F32)], dst_buffer=nl.psum, exact_matmul=True,
    )  # fmt: skip
    np.testing.assert_array_equal(whole[:3, 7:8], part)


@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize("shape", [(128, 128), (1, 7), (100, 3), (33, 2, 16)])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_transpose_on_tensor_engine(shape, dtype, target):
    x = normal(*shape).astype(dtype)
    f = x[0].size
    (y,) = apply(
        nisa.nc_transpose, x, out=[((f, shape[0]), dtype)], dst_buffer=nl.psum, target=target
    )
    np.testing.assert_array_equal(y, x.reshape(shape[0], f).T)


def test_transpose_on_vector_engine():
    x = normal(32, 17)
    (y,) = apply(nisa.nc_transpose, x, out=[((17, 32), F32)])
    np.testing.assert_array_equal(y, x.T)


def test_gen2_transpose_spreads_nan_and_gen3_does_not():
    x = normal(4, 3)
    x[2, 1] = np.inf
    (old,) = apply(nisa.nc_transpose, x, out=[((3, 4), F32)], dst_buffer=nl.psum)
    assert np.isnan(old[1]).all() and np.isfinite(old[[0, 2]]).all()
    (new,) = apply(nisa.nc_transpose, x, out=[((3, 4), F32)], dst_buffer=nl.psum, target="trn2")
    np.testing.assert_array_equal(new, x.T)


def test_matmul_with_identity_transposes():
    x = normal(40, 24)

    def kernel(a):
        eye = nl.shared_identity_matrix(40, dtype=nl.float32)
        tile = nl.load(a)
        psum = nl.ndarray((24, 40), nl.float32, nl.psum)
        nisa.nc_matmul(psum, tile, eye, is_transpose=True)
        out = nl.ndarray((24, 40), nl.float32, nl.shared_hbm)
        nl.store(out, nl.copy(psum))
        return out

    np.testing.assert_array_equal(run(kernel, x), x.T)


def test_a_part_of_the_array_changes_no_number():
    a, b = normal(64, 32), normal(64, 45, seed=1)

    def body(dst, x, y):
        nisa.nc_matmul(dst, x[32:64], y[32:64], tile_position=(32, 64), tile_size=(32, 32))

    (c,) = apply(body, a, b, out=[((32, 45), F32)], dst_buffer=nl.psum, target="trn2")
    np.testing.assert_allclose(c, a[32:].T @ b[32:], rtol=1e-5, atol=1e-5)


def test_parts_of_psum_and_strided_operands():
    a, b = normal(64, 48), normal(64, 48, seed=1)

    def kernel(x, y):
        left, right = nl.load(x), nl.load(y)
        psum = nl.ndarray((128, 2, 512), nl.float32, nl.psum)
        nisa.nc_matmul(psum[64:88, 1, 100:124], left[:, 0:48:2], right[:, 1:48:2])
        out = nl.ndarray((24, 24), nl.float32, nl.shared_hbm)
        nl.store(out, nl.copy(psum[64:88, 1, 100:124]))
        return out

    np.testing.assert_allclose(run(kernel, a, b), a[:, ::2].T @ b[:, 1::2], rtol=1e-5, atol=1e-5)
