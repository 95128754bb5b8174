"""Advice for older compilers, and the high-precision mode."""

from __future__ import annotations

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError, Trace
from nki_sim.advice import carried_dependencies
from tests.nki_sim.helpers import BF16, apply, normal, run

pytestmark = pytest.mark.sim

F32 = np.float32


def advice(kernel, *arrays):
    trace = Trace()
    run(kernel, *arrays, trace=trace)
    return carried_dependencies(trace)


def test_a_dependency_carried_by_affine_range_is_advised_against():
    def kernel(a):
        total = nl.zeros((8, 4), nl.float32)
        for i in nl.affine_range(3):
            nisa.tensor_tensor(total, total, nl.load(a[nl.ds(i * 8, 8)]), nl.add)

    (finding,) = advice(kernel, normal(24, 4))
    assert finding.kind == "affine-carried" and "sequential_range" in finding.text
    assert "test_advice_and_precision.py" in finding.line


def test_no_advice_for_independent_iterations_and_psum_sums():
    def kernel(a):
        out = nl.ndarray((24, 4), nl.float32, nl.shared_hbm)
        psum = nl.ndarray((4, 4), nl.float32, nl.psum)
        for i in nl.affine_range(3):
            tile = nl.load(a[nl.ds(i * 8, 8)])
            for j in nl.sequential_range(2):
                nisa.tensor_scalar(tile, tile, nl.add, float(j))
            nisa.nc_matmul(psum, tile, tile)
            nisa.dma_copy(out[nl.ds(i * 8, 8)], tile)
        nl.copy(psum)
        return out

    assert advice(kernel, normal(24, 4)) == []


def test_affine_range_is_still_a_range():
    r = nl.affine_range(2, 10, 3)
    assert list(r) == [2, 5, 8] and len(r) == 3 and r[1] == 5 and 5 in r


def test_high_precision_mode_keeps_float32(monkeypatch):
    x, w = normal(40, 30), normal(40, 20, seed=1)

    def kernel(a, b):
        lo = nl.copy(nl.load(a), dtype=nl.bfloat16)
        other = nl.copy(nl.load(b), dtype=nl.bfloat16)
        psum = nl.ndarray((30, 20), nl.float32, nl.psum)
        nisa.nc_matmul(psum, lo, other)
        narrow = nl.ndarray((30, 20), nl.float8_e4m3, nl.sbuf)
        nisa.activation(narrow, nl.tanh, psum)
        out = nl.ndarray((30, 20), nl.bfloat16, nl.shared_hbm)
        nisa.dma_copy(out, narrow)
        return out

    rounded = run(kernel, x, w)
    assert rounded.dtype == BF16
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    wide = run(kernel, x, w)
    assert wide.dtype == np.float32
    want = np.tanh(x.astype(np.float64).T @ w)
    np.testing.assert_allclose(wide, want, rtol=1e-4, atol=1e-5)
    assert np.abs(rounded.astype(F32) - want).max() > 1e-3


def test_high_precision_mode_with_low_precision_arguments(monkeypatch):
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    x = normal(8, 8).astype(BF16)
    want = x.astype(F32) / 3

    def kernel(a):
        tile = nl.load(a)
        nisa.tensor_scalar(tile, tile, nl.multiply, 1 / 3)
        nisa.dma_copy(a, tile)
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    got = run(kernel, x)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(x, want.astype(BF16))  # the caller's array keeps its dtype
    with pytest.raises(NotImplementedError, match="NKI_PRECISE_FP"):
        run(lambda a: nl.load(a.view(nl.uint16)), x)


def test_memset_takes_no_float_for_integers():
    for value in (2.0, 1.5):
        with pytest.raises(RuleError, match=r"memset\.value"):
            run(lambda value=value: nisa.memset(nl.ndarray((2, 2), nl.int32), value))
    (y,) = apply(lambda d: nisa.memset(d, 2), out=[((2, 2), F32)])
    assert (y == 2).all()


def test_versions_compare():
    v = nisa.nc_version
    assert v.gen2 < v.gen3 <= v.gen3 and v.gen4 >= v.gen3 and v.gen4 > v.gen2
    assert nki_sim.get_target("trn2").version == v.gen3.value


def test_run_time_addresses_are_recorded_as_operands():
    def kernel(a, which):
        tile, idx = nl.load(a), nl.load(which)
        nisa.tensor_copy(nl.ndarray((8, 4), nl.float32), tile.select(1, idx))

    trace = Trace()
    run(kernel, normal(8, 3, 4), np.array([[1]], np.int32), trace=trace)
    assert [name for name, _ in trace.instructions[-1].reads] == ["src", "index"]
