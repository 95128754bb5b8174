"""Registers, dynamic loops, and two cores."""

from __future__ import annotations

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import DeadlockError, RuleError, SimulatorError, Trace
from nki_sim.kernel import jit
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim


def test_registers():
    def kernel(a, out):
        reg = nisa.register_alloc()
        with pytest.raises(ValueError, match="before anything"):
            bool(reg)
        nisa.register_load(reg, a)
        other = nisa.register_alloc(3)
        assert bool(other)
        nisa.register_move(other, reg)
        nisa.register_store(out, other)
        nisa.register_move(other, 0)
        assert not other
        for convert in (int, range):
            with pytest.raises(TypeError):
                convert(other)
        with pytest.raises(TypeError):
            nisa.register_alloc(nl.zeros((1, 1), nl.int32))
        with pytest.raises(RuleError, match=r"register\.scalar"):
            nisa.register_load(reg, nl.zeros((1, 2), nl.int32))

    out = np.zeros((1, 1), np.int32)
    run(kernel, np.array([[-7]], np.int32), out)
    assert out[0, 0] == -7


def test_fori_loop_of_the_documentation():
    data, count = normal(1, 20), np.array([[13]], np.int32)

    def kernel(x, n):
        out = nl.ndarray((1, 20), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, nl.zeros((1, 20), nl.float32))
        bound_sb = nl.load(n)
        bound = nisa.register_alloc()
        nisa.register_load(bound, bound_sb)
        temp = nl.ndarray((1, 1), nl.float32, nl.sbuf)

        def body(i):
            nisa.dma_copy(temp, x.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1))
            nisa.dma_copy(out.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1), temp)

        nl.fori_loop(0, bound, body)
        return out

    trace = Trace()
    got = run(kernel, data, count, trace=trace)
    np.testing.assert_array_equal(got[0, :13], data[0, :13])
    assert not got[0, 13:].any()
    inside = [i for i in trace if i.loop]
    assert len(inside) == 26 and {i.loop for i in inside} == {(0,)}


def test_while_loop_of_the_documentation():
    def kernel(value, count):
        val, count_sb = nl.load(value), nl.load(count)
        acc = nl.zeros((1, 1), nl.float32)
        one = nl.full((1, 1), 1, nl.int32)
        reg = nisa.register_alloc()
        nisa.register_load(reg, count_sb)

        def body(r):
            nisa.tensor_tensor(acc, acc, val, nl.add)
            nisa.tensor_tensor(count_sb, count_sb, one, nl.subtract)
            nisa.register_load(r, count_sb)
            return r

        nl.while_loop(reg, body)
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, acc)
        return out

    for n in (0, 5):
        got = run(kernel, np.array([[1.5]], np.float32), np.array([[n]], np.int32))
        assert got[0, 0] == 1.5 * n


def test_dynamic_range_and_while_register():
    data = normal(512, 8)

    def kernel(x):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        for i in nl.dynamic_range(nisa.register_alloc(0), nisa.register_alloc(512), 128):
            tile = nl.ndarray((128, 8), nl.float32, nl.sbuf)
            nisa.dma_copy(tile, x.ap([[8, 128], [1, 8]], scalar_offset=i))
            nisa.dma_copy(out.ap([[8, 128], [1, 8]], scalar_offset=i), tile)
            with pytest.raises(RuleError, match=r"register\.frozen"):
                nisa.register_move(i, 3)
        reg, turns = nisa.register_alloc(3), 0
        while reg:
            turns += 1
            nisa.register_move(reg, 3 - turns)
        assert turns == 3
        return out

    np.testing.assert_array_equal(run(kernel, data), data)


def test_register_as_index():
    data = normal(4, 8, 6)

    def kernel(x):
        out = nl.ndarray((8, 6), x.dtype, nl.shared_hbm)
        for i in nl.dynamic_range(2, 3):
            nisa.dma_copy(out, x[i])
        return out

    np.testing.assert_array_equal(run(kernel, data), data[2])


def test_loop_rules():
    with pytest.raises(RuleError, match=r"loop\.step"):
        run(lambda: nl.fori_loop(0, 4, print, nisa.register_alloc(1)))
    with pytest.raises(TypeError, match="not a VirtualRegister"):
        run(lambda: nl.while_loop(3, print))

    def ordered():
        with nl.no_reorder():
            for _ in nl.affine_range(2):
                nl.zeros((2, 2), nl.float32)
            nl.fori_loop(0, 4, print)

    with pytest.raises(RuleError, match=r"loop\.no-reorder"):
        run(ordered)


def test_static_ranges():
    for make in (nl.affine_range, nl.sequential_range, nl.static_range):
        assert list(make(3)) == [0, 1, 2] and list(make(2, 8, 3)) == [2, 5]
        with pytest.raises(TypeError):
            make(2.0)


@jit
def halves(a):
    """Each core doubles its half; both then read the whole through the barrier."""
    n = a.shape[0] // 2
    shared = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
    out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
    me = nl.program_id(0)
    mine = nl.ds(me * n, n)
    nisa.dma_copy(shared[mine], nl.multiply(nl.load(a[mine]), 2.0))
    nisa.core_barrier(shared, (0, 1))
    other = nl.load(shared[nl.ds((1 - me) * n, n)])
    nisa.dma_copy(out[nl.ds((1 - me) * n, n)], other)
    return out


@pytest.mark.parametrize("target", ["trn2", "trn3"])
def test_two_cores_share_hbm_and_meet_at_barriers(target):
    x = normal(8, 5)
    trace = Trace()
    got = nki_sim.simulate(halves[2], target=target, trace=trace)(x)
    np.testing.assert_array_equal(got, x * 2)
    assert trace.cores == 2 and {i.core for i in trace} == {0, 1}
    assert [i.index for i in trace] == list(range(len(trace)))
    assert trace.count("core_barrier") == 2


def test_sendrecv_swaps_tiles():
    @jit
    def swap(a):
        me = nl.program_id(0)
        assert nl.num_programs(0) == 2 and nl.program_ndim() == 1
        mine = nl.load(a[me])
        theirs = nl.ndarray(mine.shape, mine.dtype, nl.sbuf)
        for pipe in (0, 1, 0):
            nisa.sendrecv(mine, theirs, 1 - me, 1 - me, pipe)
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nisa.dma_copy(out[me], theirs)
        return out

    x = normal(2, 16, 3)
    np.testing.assert_array_equal(nki_sim.simulate(swap[2], target="trn2")(x), x[::-1])


def test_private_hbm_is_per_core():
    @jit
    def kernel(out):
        me = nl.program_id(0)
        scratch = nl.ndarray((1, 4), nl.float32, nl.private_hbm)
        nisa.dma_copy(scratch, nl.full((1, 4), float(me), nl.float32))
        nisa.core_barrier(out, (0, 1))
        nisa.dma_copy(out[nl.ds(me, 1)], nl.load(scratch))

    out = normal(2, 4)
    nki_sim.simulate(kernel[2], target="trn2")(out)
    np.testing.assert_array_equal(out, [[0] * 4, [1] * 4])


def test_deadlock_says_who_waits_for_whom():
    @jit
    def lonely(a):
        if nl.program_id(0) == 0:
            nisa.core_barrier(a, (0, 1))

    with pytest.raises(DeadlockError, match=r"core 0 waits at core_barrier.*core 1 has ended"):
        nki_sim.simulate(lonely[2], target="trn2")(normal(2, 2))

    @jit
    def crossed(a):
        tile = nl.zeros((2, 2), nl.float32)
        if nl.program_id(0) == 0:
            nisa.core_barrier(a, (0, 1))
        else:
            nisa.sendrecv(tile, tile, 0, 0, 7)

    with pytest.raises(
        DeadlockError, match=r"core 0 waits at core_barrier.*core 1 waits at sendrecv"
    ):
        nki_sim.simulate(crossed[2], target="trn2")(normal(2, 2))


def test_a_failure_on_one_core_ends_the_other():
    @jit
    def broken(a):
        if nl.program_id(0) == 1:
            nl.zeros((256, 1), nl.float32)
        nisa.core_barrier(a, (0, 1))

    with pytest.raises(RuleError, match=r"tensor\.partitions"):
        nki_sim.simulate(broken[2], target="trn2")(normal(2, 2))


def test_cores_must_declare_the_same_shared_tensors():
    @jit
    def differs():
        nl.ndarray((2 + nl.program_id(0), 2), nl.float32, nl.shared_hbm)

    with pytest.raises(SimulatorError, match="same control flow"):
        nki_sim.simulate(differs[2], target="trn2")()


@pytest.mark.parametrize(
    ("rule", "exchange"),
    [
        ("operand.dtype", lambda: (nl.zeros((2, 2), nl.float32), nl.zeros((2, 2), nl.bfloat16))),
        (
            "operand.same-elements",
            lambda: (nl.zeros((2, 2), nl.float32), nl.zeros((2, 3), nl.float32)),
        ),
        (
            "operand.same-partitions",
            lambda: (nl.zeros((2, 2), nl.float32), nl.zeros((1, 4), nl.float32)),
        ),
        (
            "operand.space",
            lambda: (nl.zeros((2, 2), nl.float32, nl.psum), nl.zeros((2, 2), nl.float32)),
        ),
        (
            "operand.space",
            lambda: (nl.zeros((2, 2), nl.float32), nl.zeros((2, 2), nl.float32, nl.psum)),
        ),
    ],
)
def test_what_cores_exchange(rule, exchange):
    @jit
    def kernel():
        nisa.sendrecv(*exchange(), 1 - nl.program_id(0), 1 - nl.program_id(0), 0)

    with pytest.raises(RuleError) as caught:
        nki_sim.simulate(kernel[2], target="trn2")()
    assert caught.value.rule == rule


def test_views_exchanged_by_gpsimd():
    @jit
    def kernel(a):
        me = nl.program_id(0)
        mine, got = nl.load(a[nl.ds(me * 32, 32)]), nl.zeros((32, 12), nl.float32)
        nisa.sendrecv(
            mine[:, 0:6], got[:, 6:12], 1 - me, 1 - me, 3, dma_engine=nisa.dma_engine.gpsimd_dma
        )
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nisa.dma_copy(out[nl.ds(me * 32, 32)], got)
        return out

    x = normal(64, 12)
    got = nki_sim.simulate(kernel[2], target="trn2")(x)
    assert not got[:, :6].any()
    np.testing.assert_array_equal(got[:, 6:], np.roll(x[:, :6], 32, axis=0))


def test_register_arguments():
    register = lambda: nisa.register_alloc(1)  # noqa: E731
    for body in (
        lambda: nisa.register_move(register(), "3"),
        lambda: nisa.register_move(3, register()),
        lambda: nisa.register_load(3, nl.zeros((1, 1), nl.int32)),
        lambda: nisa.register_store(nl.zeros((1, 1), nl.int32), 3),
        lambda: nisa.register_store(3, register()),
        lambda: nisa.register_alloc(1.5),
    ):
        with pytest.raises(TypeError):
            run(body)


def test_core_rules():
    tile = lambda: nl.zeros((2, 2), nl.float32)  # noqa: E731
    cases = [
        ("trn2", lambda: nisa.core_barrier(tile(), (0, 1))),
        ("trn2", lambda: nisa.core_barrier(nl.ndarray((2, 2), nl.float32, nl.shared_hbm), (1, 0))),
        ("trn2", lambda: nisa.sendrecv(tile(), tile(), 2, 0, 0)),
        (
            "trn2",
            lambda: nisa.sendrecv(
                nl.zeros((2, 300), nl.float32), nl.zeros((2, 300), nl.float32), 1, 1, 0,
                nisa.dma_engine.gpsimd_dma,
            ),
        ),
    ]  # fmt: skip
    for target, body in cases:
        with pytest.raises(RuleError, match="breaks rule cores"):
            nki_sim.simulate(jit(lambda body=body: body())[2], target=target)()
    with pytest.raises(RuleError, match="breaks rule cores"):
        run(lambda: nisa.core_barrier(tile(), (0, 1)), target="trn2")
    with pytest.raises(RuleError, match=r"instruction\.generation"):
        run(lambda: nisa.core_barrier(tile(), (0, 1)), target="trn1")
