"""The dependency graph: right edges, and any order that respects them gives the same bits."""

from __future__ import annotations

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError, SimulatorError, Trace
from nki_sim.dependencies import dependencies
from nki_sim.kernel import jit
from nki_sim.replay import Replay, random_order
from tests.nki_sim.helpers import BF16, normal, rng, run
from tests.nki_sim.test_production_kernels import paged_attention

pytestmark = pytest.mark.sim


def edges(body, *arrays, **options):
    trace = Trace()
    run(body, *arrays, trace=trace, **options)
    return {i: [(d.producer, d.kind) for d in deps] for i, deps in dependencies(trace).items()}


def test_kinds_of_dependencies():
    def kernel(a):
        t = nl.ndarray((8, 8), nl.float32)
        u = nl.ndarray((8, 8), nl.float32)
        nisa.dma_copy(t, a)  # 0
        nisa.tensor_copy(u, t)  # 1 reads 0
        nisa.memset(t[:, 0:4], 0.0)  # 2 after the read 1 and the write 0
        nisa.memset(t[:, 4:8], 0.0)  # 3 not after 2
        nisa.tensor_copy(u[:, 0:2], t[:, 2:4])  # 4 reads 2, overwrites a part of 1

    found = edges(kernel, normal(8, 8))
    assert found[0] == [] and found[1] == [(0, "true")]
    assert found[2] == found[3] == [(0, "output"), (1, "anti")]
    assert found[4] == [(0, "true"), (1, "output"), (2, "true")]


def test_interleaved_columns_do_not_meet():
    def kernel():
        t = nl.ndarray((8, 9), nl.float32)
        nisa.memset(t[:, 0::3], 1.0)
        nisa.memset(t[:, 1::3], 2.0)
        nisa.memset(t[:, 2::3], 3.0)
        nisa.tensor_copy(nl.ndarray((8, 3), nl.float32), t[:, 1::3])

    assert edges(kernel) == {0: [], 1: [], 2: [], 3: [(1, "true")]}


def test_engine_state_and_declared_order():
    def kernel(a):
        x = nl.load(a)  # 0
        y, z = nl.ndarray((8, 8), nl.float32), nl.ndarray((8, 8), nl.float32)
        cmd = nisa.reduce_cmd
        nisa.activation(y, nl.exp, x, reduce_op=nl.add, reduce_cmd=cmd.reset_reduce)  # 1
        nisa.activation(z, nl.exp, x, reduce_op=nl.add, reduce_cmd=cmd.reduce)  # 2
        first = nisa.memset(nl.ndarray((2, 2), nl.float32), 0.0)  # 3
        second = nisa.memset(nl.ndarray((2, 2), nl.float32), 0.0)  # 4
        second.depends_on(first)
        with nl.no_reorder():
            nisa.memset(nl.ndarray((2, 2), nl.float32), 0.0)  # 5
            nisa.memset(nl.ndarray((2, 2), nl.float32), 0.0)  # 6

    found = edges(kernel, normal(8, 8))
    assert found[2] == [(0, "true"), (1, "true")] and found[4] == [(3, "explicit")]
    assert found[5] == [] and found[6] == [(5, "explicit")]


def test_barriers_hold_back_both_cores():
    @jit
    def kernel(a):
        me = nl.program_id(0)
        nisa.dma_copy(a[nl.ds(me, 1)], nl.full((1, 4), 1.0, nl.float32))
        nisa.core_barrier(a, (0, 1))
        nl.load(a)

    trace = Trace()
    nki_sim.simulate(kernel[2], target="trn2", trace=trace)(normal(2, 4))
    before = dependencies(trace)
    barriers = [i.index for i in trace if i.opcode == "core_barrier"]
    stores = [i.index for i in trace if i.writes and i.writes[0][1].allocation.argument]
    assert before[barriers[0]] == ((stores[0], "barrier"),)
    assert before[barriers[1]] == ((barriers[0], "barrier"), (stores[1], "barrier"))
    loads = [i.index for i in trace if i.reads and i.reads[0][1].allocation.argument]
    assert len(loads) == 2 and all(before[i] == ((barriers[1], "barrier"),) for i in loads)


def attention(q, k, v, index):
    """A small online-softmax attention with everything that can go wrong in order."""
    d, n = q.shape
    out = nl.ndarray((n, d), nl.float32, nl.shared_hbm)
    qs = nl.load(q)
    acc = nl.zeros((n, d), nl.float32)
    top = nl.full((n, 1), -3e38, nl.float32)
    total = nl.zeros((n, 1), nl.float32)
    rows = nl.load(index)
    for j in nl.affine_range(k.shape[1] // 64):
        keys = nl.ndarray((d, 64), nl.float32)
        nisa.dma_copy(keys, k[:, nl.ds(j * 64, 64)])
        logits = nl.ndarray((n, 64), nl.float32, nl.psum)
        nisa.nc_matmul(logits, qs, keys)
        new = nl.ndarray((n, 1), nl.float32)
        nisa.tensor_reduce(new, nl.maximum, logits, 1)
        nisa.tensor_tensor(new, new, top, nl.maximum)
        minus = nl.negative(new)
        weights, part = nl.ndarray((n, 64), nl.float32), nl.ndarray((n, 1), nl.float32)
        nisa.activation_reduce(weights, nl.exp, logits, nl.add, part, bias=minus)
        fade = nl.ndarray((n, 1), nl.float32)
        nisa.activation(fade, nl.exp, top, bias=minus)
        nisa.scalar_tensor_tensor(total, total, nl.multiply, fade, nl.add, part)
        nisa.tensor_copy(top, new)
        turned = nl.ndarray((64, n), nl.float32, nl.psum)
        nisa.nc_transpose(turned, weights)
        values = nl.ndarray((64, d), nl.float32)
        nisa.dma_copy(values, v.ap([[d, 64], [1, d]], vector_offset=rows[:, j : j + 1]))
        product = nl.ndarray((n, d), nl.float32, nl.psum)
        for half in range(2):
            part_rows = slice(half * 32, half * 32 + 32)
            nisa.nc_matmul(product, nl.copy(turned)[part_rows], values[part_rows])
        nisa.scalar_tensor_tensor(acc, acc, nl.multiply, fade, nl.add, product)
    nisa.reciprocal(total, total)
    nisa.tensor_scalar(acc, acc, nl.multiply, total)
    nisa.dma_copy(out, acc)
    return out


def case():
    index = rng().permutation(192).astype(np.int32).reshape(3, 64).T.copy()
    return normal(32, 20), normal(32, 192, seed=1), normal(192, 32, seed=2), index


def test_any_order_gives_the_same_bits():
    replay = Replay(attention, *case(), target="trn1")
    assert random_order(replay.before, 0) != sorted(replay.before)
    for seed in range(8):
        assert replay.run(seed) == []


@pytest.mark.parametrize("kind", ["true", "anti", "output"])
def test_a_missing_kind_of_edge_is_noticed(kind):
    def kernel(a):
        out = nl.ndarray((64, 6), nl.float32, nl.shared_hbm)
        tile = nl.ndarray((8, 6), nl.float32)
        for i in range(8):
            nisa.dma_copy(tile, a[nl.ds(i * 8, 8)])
            nisa.dma_copy(out[nl.ds(i * 8, 8)], tile)
        return out

    replay = Replay(kernel, normal(64, 6), target="trn1")
    thinner = {i: tuple(d for d in deps if d.kind != kind) for i, deps in replay.before.items()}
    if kind == "output":  # writes here are also ordered through the reads between them
        thinner = dict.fromkeys(thinner, ())
    assert any(replay.run(seed, thinner) for seed in range(10))
    assert all(replay.run(seed) == [] for seed in range(3))


def test_registers_loops_and_placed_tensors_replay():
    def kernel(x, n):
        out = nl.ndarray((1, 12), nl.float32, nl.shared_hbm)
        bound = nisa.register_alloc()
        nisa.register_load(bound, nl.load(n))
        a = nl.ndarray((1, 1), nl.float32, nl.sbuf, address=(0, 0))
        b = nl.ndarray((1, 1), nl.float32, nl.sbuf, address=(0, 0))

        def body(i):
            for tile in (a, b):
                nisa.dma_copy(tile, x.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1))
                nisa.dma_copy(out.ap([[1, 1], [1, 1]], scalar_offset=i, indirect_dim=1), tile)

        nl.fori_loop(0, bound, body)
        return out

    with pytest.warns(match="nothing wrote"):
        replay = Replay(kernel, normal(1, 12), np.array([[7]], np.int32), target="trn1")
    for seed in range(4):
        assert replay.run(seed) == []


@jit
def two_core_softmax(x, w):
    """Rows over two cores that exchange maxima and sums, halves of a product through shared HBM."""
    n, m = x.shape
    me = nl.program_id(0)
    half = m // 2
    mine = nl.ndarray((n, half), nl.float32)
    nisa.dma_copy(mine, x[:, nl.ds(me * half, half)])
    top, other = nl.ndarray((n, 1), nl.float32), nl.ndarray((n, 1), nl.float32)
    nisa.tensor_reduce(top, nl.maximum, mine, 1)
    nisa.sendrecv(top, other, 1 - me, 1 - me, pipe_id=0)
    nisa.tensor_tensor(top, top, other, nl.maximum)
    part = nl.ndarray((n, 1), nl.float32)
    nisa.activation_reduce(mine, nl.exp, mine, nl.add, part, bias=nl.negative(top))
    nisa.sendrecv(part, other, 1 - me, 1 - me, pipe_id=0)
    nisa.tensor_tensor(part, part, other, nl.add)
    nisa.reciprocal(part, part)
    nisa.tensor_scalar(mine, mine, nl.multiply, part)
    scratch = nl.ndarray((n, m), nl.float32, nl.shared_hbm)
    nisa.dma_copy(scratch[:, nl.ds(me * half, half)], mine)
    nisa.core_barrier(scratch, (0, 1))
    theirs = nl.ndarray((n, half), nl.float32)
    nisa.dma_copy(theirs, scratch[:, nl.ds((1 - me) * half, half)])
    weights = nl.ndarray((n, half), nl.float32)
    nisa.dma_copy(weights, w[:, nl.ds((1 - me) * half, half)])
    nisa.tensor_tensor(theirs, theirs, weights, nl.multiply)
    out = nl.ndarray((n, m), nl.float32, nl.shared_hbm)
    nisa.dma_copy(out[:, nl.ds((1 - me) * half, half)], theirs)
    return out


def test_two_cores_in_any_order():
    x, w = normal(48, 30), normal(48, 30, seed=1)
    weights = np.exp(x - x.max(axis=1, keepdims=True))
    want = weights / weights.sum(axis=1, keepdims=True) * w
    np.testing.assert_allclose(
        nki_sim.simulate(two_core_softmax[2], target="trn2")(x, w), want, rtol=1e-5, atol=1e-7
    )
    replay = Replay(two_core_softmax[2], x, w=w, target="trn2")
    orders = [random_order(replay.before, seed) for seed in range(8)]
    cores = [i.core for i in replay.trace]
    assert len({tuple(cores[index] for index in order) for order in orders}) > 4
    for seed in range(8):
        assert replay.run(seed) == []


@pytest.mark.parametrize("opcode", ["sendrecv", "core_barrier"])
def test_two_cores_need_their_meetings(opcode):
    replay = Replay(two_core_softmax[2], normal(48, 30), normal(48, 30, seed=1), target="trn2")
    meetings = {i.index for i in replay.trace if i.opcode == opcode}
    thinner = {
        i: tuple(d for d in deps if i not in meetings and d.producer not in meetings)
        for i, deps in replay.before.items()
    }
    assert any(changed(replay, seed, thinner) for seed in range(10))
    assert all(replay.run(seed) == [] for seed in range(3))


def changed(replay: Replay, seed: int, before) -> bool:
    """Whether an order changes a result, or breaks a rule, which is as loud."""
    try:
        return replay.run(seed, before) != []
    except (RuleError, SimulatorError):
        return True


def test_exchanges_on_one_pipe_keep_their_order():
    def kernel(a):
        me = nl.program_id(0)
        for i in range(3):
            sent = nl.full((2, 3), float(10 * me + i), nl.float32)
            got = nl.ndarray((2, 3), nl.float32)
            nisa.sendrecv(sent, got, 1 - me, 1 - me, pipe_id=7)
            nisa.dma_copy(a[nl.ds(6 * me + 2 * i, 2)], got)

    a = np.zeros((12, 3), np.float32)
    replay = Replay(jit(kernel)[2], a, target="trn2")
    assert a[::2, 0].tolist() == [10, 11, 12, 0, 1, 2]
    for seed in range(8):
        assert replay.run(seed) == []


def test_a_paged_attention_over_two_cores_in_any_order():
    d, page = 32, 16
    q, k = normal(d, 6, dtype=BF16), normal(9, page, d, dtype=BF16, seed=1)
    v, table = normal(9, page, d, dtype=BF16, seed=2), np.array([[4, 0, 7, 2, 8]], np.int32)
    arguments = (q, k, v, table, np.array([[70.0]], np.float32))
    replay = Replay(jit(paged_attention)[2], *arguments, scale=d**-0.5, target="trn2")
    for seed in range(4):
        assert replay.run(seed) == []
