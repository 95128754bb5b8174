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


@pytest.mark.parametrize("placed", [False, True])
def test_high_precision_mode_through_views_of_other_dtypes(monkeypatch, placed):
    x = normal(40, 12, dtype=BF16).astype(F32)

    def kernel(a):
        address = {"address": (64, 64)} if placed else {}
        tile = nl.ndarray((40, 12), nl.bfloat16, nl.sbuf, **address)
        nisa.dma_copy(tile, a)
        nisa.tensor_scalar(tile, tile, nl.multiply, 1 / 3)
        words = nl.copy(tile.view(nl.uint16))  # the bits of the rounded values
        signs = tile.view(nl.uint16)[:, 0:4]
        nisa.tensor_scalar(signs, signs, nl.bitwise_and, 0x7FFF)  # |.| of four columns
        two = nl.copy(tile.view(nl.uint32)[:, 1:2])
        out = [
            nl.ndarray((40, n), d, nl.shared_hbm)
            for n, d in ((12, nl.bfloat16), (12, nl.uint16), (1, nl.uint32))
        ]
        for dst, src in zip(out, (tile, words, two), strict=True):
            nisa.dma_copy(dst, src)
        return tuple(out)

    third = (x * F32(1 / 3)).astype(BF16)
    want = third.copy()
    want[:, :4] = np.abs(want[:, :4])
    kept, words, pair = run(kernel, x)
    np.testing.assert_array_equal(kept, want)
    np.testing.assert_array_equal(words, third.view(np.uint16))
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    wide, wide_words, wide_pair = run(kernel, x)
    np.testing.assert_array_equal(wide_words, words)
    np.testing.assert_array_equal(wide_pair, pair)
    # only what went through the bits is rounded: the sign of negative numbers was taken there
    exact = x * np.float32(1 / 3)
    np.testing.assert_array_equal(wide[:, 4:], exact[:, 4:])
    negative = exact[:, :4] < 0
    np.testing.assert_array_equal(wide[:, :4][negative], want[:, :4].astype(F32)[negative])
    np.testing.assert_array_equal(wide[:, :4][~negative], exact[:, :4][~negative])


def test_high_precision_mode_views_of_arguments_and_rows(monkeypatch):
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    x = normal(10, 6).astype(BF16)
    rows = np.array([[3], [0], [7]], np.int32)
    before = x.copy()

    def kernel(a, index):
        at = nl.load(index)
        words = a.view(nl.uint16)
        tile = nl.ndarray((3, 6), nl.uint16)
        nisa.dma_copy(tile, words.ap([[6, 3], [1, 6]], vector_offset=at))
        nisa.tensor_scalar(tile, tile, nl.bitwise_xor, 0x8000)
        nisa.dma_copy(words.ap([[6, 3], [1, 6]], vector_offset=at), tile)

    run(kernel, x, rows)
    before[rows[:, 0]] *= -1
    np.testing.assert_array_equal(x, before)


def test_high_precision_mode_with_addresses(monkeypatch):
    def kernel(a, dtype):
        first = nl.ndarray((64, 8), nl.bfloat16, nl.sbuf, address=(0, 16))
        again = nl.ndarray((32, 8), dtype, nl.sbuf, address=(32, 16))  # a second name of its half
        nisa.dma_copy(first, a)
        nisa.tensor_scalar(first, first, nl.multiply, 1 / 3)
        out = nl.ndarray((32, 8), dtype, nl.shared_hbm)
        nisa.dma_copy(out, again)
        return out

    x = normal(64, 8, dtype=BF16).astype(F32)
    monkeypatch.setenv("NKI_PRECISE_FP", "0")
    np.testing.assert_array_equal(run(kernel, x, nl.bfloat16), (x * F32(1 / 3))[32:])
    with pytest.raises(NotImplementedError, match="NKI_PRECISE_FP=0"):
        run(kernel, x, nl.uint16)
    monkeypatch.setenv("NKI_PRECISE_FP", "1")
    bits = (x * F32(1 / 3)).astype(BF16).view(np.uint16)
    np.testing.assert_array_equal(run(kernel, x, nl.uint16), bits[32:])


def test_partition_steps_of_placed_tensors():
    def kernel(a):
        tile = nl.ndarray((64, 8), nl.float32, nl.sbuf, address=(0, 16))
        nisa.dma_copy(tile, a)
        out = nl.ndarray((16, 8), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile[0:64:4])
        return out

    x = normal(64, 8)
    np.testing.assert_array_equal(run(kernel, x), x[::4])


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
