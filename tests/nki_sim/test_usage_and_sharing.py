"""Capacity by lifetime, explicit placement, and two cores on one tensor."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError, Trace, memory_usage
from nki_sim.kernel import jit
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim


def usage(body, target="trn1"):
    trace = Trace()
    run(body, target=target, trace=trace)
    return {u.space: u for u in memory_usage(trace, nki_sim.get_target(target))}


def test_high_water_mark_counts_what_is_alive_together():
    def kernel():
        for _ in range(10):
            a = nl.zeros((128, 1000), nl.float32)
            b = nl.ndarray((128, 1000), nl.float32)
            nisa.tensor_copy(b, a)
        nl.ndarray((128, 40000), nl.float32)  # never touched: takes nothing

    found = usage(kernel)[nl.sbuf]
    assert found.peak == found.needed == 8000 and len(found.occupants) == 2
    assert found.capacity == 180224 and "bytes per partition" in str(found)


def test_partitions_share_a_byte_range():
    def kernel():
        tiles = [nl.zeros((32, 1000), nl.float32) for _ in range(4)]
        nisa.tensor_tensor(tiles[0], tiles[1], tiles[2], nl.add)
        nisa.tensor_tensor(tiles[0], tiles[3], tiles[0], nl.add)

    found = usage(kernel)[nl.sbuf]
    assert found.peak == 16000 and found.needed == 4000


def test_a_kernel_that_cannot_fit_is_refused():
    def sbuf():
        tiles = [nl.zeros((128, 12000), nl.float32) for _ in range(4)]
        for t in tiles:
            nisa.tensor_copy(t, tiles[0])

    with pytest.raises(RuleError, match=r"memory\.capacity.*") as caught:
        run(sbuf)
    assert "192000 of 180224 bytes per partition" in str(caught.value)
    assert "test_usage_and_sharing.py:" in caught.value.line
    run(sbuf, target="trn2")

    def psum():
        a, b = nl.zeros((16, 128), nl.float32), nl.zeros((16, 512), nl.float32)
        tiles = [nl.ndarray((128, 512), nl.float32, nl.psum) for _ in range(9)]
        for t in tiles:
            nisa.nc_matmul(t, a, b)
        for t in tiles:
            nisa.tensor_copy(nl.ndarray(t.shape, nl.float32), t)

    with pytest.raises(RuleError, match=r"psum of core 0"):
        run(psum)


def test_tensors_that_could_be_loaded_again_do_not_refuse_a_kernel():
    """Version 4 of AWS's kernel-optimization tutorial hoists more loads than SBUF holds."""

    def kernel(a):
        tiles = [nl.ndarray((128, 12000), nl.float32) for _ in range(4)]
        for t in tiles:
            nisa.dma_copy(t, a)
        total = nl.zeros((128, 12000), nl.bfloat16)
        for t in tiles:
            nisa.tensor_tensor(total, total, t, nl.add)

    trace = Trace()
    run(kernel, np.ones((128, 12000), np.float32), trace=trace)
    (found,) = [f for f in trace.findings if f.kind == "capacity"]
    assert "216000 of 180224 bytes per partition are alive in program order" in found.text


def place(shape, byte, dtype=nl.float32):
    return nl.ndarray(shape, dtype, nl.sbuf, address=(0, byte))


def test_placed_tensors_may_share_bytes_in_turn():
    def kernel():
        a, b = place((128, 64), 0), place((128, 64), 128)
        out = nl.ndarray((128, 64), nl.float32)
        for _ in range(3):
            nisa.memset(a, 1.0)
            nisa.tensor_copy(out, a)
            nisa.memset(b, 2.0)
            nisa.tensor_copy(out, b)

    run(kernel)


def test_one_address_may_have_two_names():
    """Allocators read bytes as another dtype through a second tensor at the same address."""

    def kernel():
        a, bits = place((4, 4), 64), place((4, 4), 64, nl.uint32)
        nisa.memset(a, 1.5)
        out = nl.ndarray((4, 4), nl.uint32, nl.shared_hbm)
        nisa.dma_copy(out, bits)
        return out

    assert (run(kernel) == np.float32(1.5).view(np.uint32)).all()


def test_a_partial_keeps_its_arguments():
    def kernel(a, factor):
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nl.store(out, nl.multiply(nl.load(a), factor))
        return out

    a = normal(4, 6)
    assert (run(functools.partial(kernel, factor=2.0), a) == 2 * a).all()


def test_reading_a_destroyed_value_is_refused():
    def kernel():
        a, b = place((128, 64), 0), place((128, 64), 128)
        nisa.memset(a, 1.0)
        nisa.memset(b, 2.0)
        out = nl.ndarray((128, 32), nl.float32)
        nisa.tensor_copy(out, a[:, 0:32])  # the first half is still good
        nisa.tensor_copy(out, a[:, 16:48])

    with pytest.raises(RuleError, match=r"memory\.overlap") as caught:
        run(kernel)
    assert "was written there at" in str(caught.value)


def two_cores(body, *arrays):
    return nki_sim.simulate(jit(body)[2], target="trn2")(*arrays)


def test_a_race_names_both_instructions():
    def unordered(a):
        me = nl.program_id(0)
        nisa.dma_copy(a[nl.ds(me * 2, 2)], nl.full((2, 6), float(me), nl.float32))
        nl.load(a[nl.ds((1 - me) * 2, 2)])

    with pytest.raises(RuleError, match=r"race.*") as caught:
        two_cores(unordered, normal(4, 6))
    text = str(caught.value)
    assert text.count("test_usage_and_sharing.py:") == 2 and "without a barrier" in text

    def both_write(a):
        nisa.dma_copy(a, nl.zeros((4, 6), nl.float32))

    with pytest.raises(RuleError, match="core 1 writes what core 0"):
        two_cores(both_write, normal(4, 6))


def test_no_race_on_disjoint_interleaved_parts_or_across_barriers():
    def columns(a):
        me = nl.program_id(0)
        nisa.dma_copy(a[:, me::2], nl.full((4, 3), float(me), nl.float32))
        nisa.core_barrier(a, (0, 1))
        nl.load(a)
        nisa.core_barrier(a, (0, 1))
        nisa.dma_copy(a[:, (1 - me) :: 2], nl.full((4, 3), 5.0, nl.float32))

    x = normal(4, 6)
    two_cores(columns, x)
    np.testing.assert_array_equal(x, np.full((4, 6), 5.0))
