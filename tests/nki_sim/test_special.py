"""The remaining instructions of gen2 and gen3, on odd shapes, against independent NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError
from tests.nki_sim.helpers import BF16, apply, normal, rng, run

pytestmark = pytest.mark.sim

F32 = np.float32


def ints(*shape, high=6, seed=0):
    return rng(seed).integers(0, high, shape).astype(F32)


def test_max8():
    x = normal(13, 5, 7)
    (y,) = apply(nisa.max8, x, out=[((13, 8), F32)])
    np.testing.assert_array_equal(y, np.sort(x.reshape(13, 35), axis=1)[:, ::-1][:, :8])


def first_positions(data, vals, order):
    """Each value's first position not taken yet, value by value in ``order``."""
    found = np.full(vals.shape, -1)
    for p in range(data.shape[0]):
        taken = set()
        for k in order:
            for i, v in enumerate(data[p]):
                if v == vals[p, k] and i not in taken:
                    found[p, k] = i
                    taken.add(i)
                    break
    return found


@pytest.mark.parametrize("dtype", [np.uint32, np.uint16])
def test_find_index8(dtype):
    data, vals = ints(11, 30), ints(11, 8, high=9, seed=1)
    (y,) = apply(nisa.nc_find_index8, data, vals, out=[((11, 8), dtype)])
    want = first_positions(data, vals, range(8))
    np.testing.assert_array_equal(y, want.astype(dtype))  # -1 becomes all ones


def test_match_replace8():
    data, vals = ints(11, 30), ints(11, 8, high=9, seed=1)

    def body(dst, index, d, v):
        nisa.nc_match_replace8(dst, d, v, -5.0, dst_idx=index)

    y, index = apply(body, data, vals, out=[((11, 30), F32), ((11, 8), np.uint32)])
    where = first_positions(data, vals, range(7, -1, -1))
    want = data.copy()
    for p, k in zip(*np.nonzero(where >= 0), strict=True):
        want[p, where[p, k]] = -5.0
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(index, where.astype(np.uint32))


def test_match_replace8_documented_example():
    data = np.array([[1, 2, 3, 4, 8, 8, 8, 8, 8, 8, 8]], F32)
    vals = np.array([[3, 8, 8, 8, 8, 8, 8, 8]], F32)
    _, index = apply(
        lambda dst, i, d, v: nisa.nc_match_replace8(dst, d, v, 0.0, dst_idx=i),
        data, vals, out=[((1, 11), F32), ((1, 8), np.uint32)],
    )  # fmt: skip
    assert index[0].tolist() == [2, 10, 9, 8, 7, 6, 5, 4]


@pytest.mark.parametrize("n", [1, 2, 7, 512])
def test_bn_stats(n):
    x = normal(9, n)
    (y,) = apply(nisa.bn_stats, x, out=[((9, 6), F32)])
    for half, got in ((x[:, 0::2], y[:, :3]), (x[:, 1::2], y[:, 3:])):
        wide = half.astype(np.float64)
        assert (got[:, 0] == half.shape[1]).all()
        if half.shape[1]:
            np.testing.assert_allclose(got[:, 1], wide.mean(1), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(got[:, 2], wide.var(1) * half.shape[1], rtol=1e-4, atol=1e-5)


def test_bn_aggr_of_two_tiles():
    x = normal(9, 700) * 3 + 2

    def body(dst, a):
        stats = nl.ndarray((9, 12), nl.float32, nl.sbuf)
        nisa.bn_stats(stats[:, 0:6], a[:, 0:512])
        nisa.bn_stats(stats[:, 6:12], a[:, 512:700])
        nisa.bn_aggr(dst, stats)

    (y,) = apply(body, x, out=[((9, 2), F32)])
    np.testing.assert_allclose(y[:, 0], x.mean(1, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(y[:, 1], x.var(1, dtype=np.float64), rtol=1e-4)


@pytest.mark.parametrize("reverse", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("vector", [False, True])
def test_tensor_tensor_scan(reverse, vector):
    a, b, start = normal(10, 12), normal(10, 12, seed=1), normal(10, 1, seed=2)

    def body(dst, x, y, initial):
        nisa.tensor_tensor_scan(
            dst, x, y, initial if vector else 0.5, nl.subtract, nl.subtract, *reverse
        )

    (got,) = apply(body, a, b, start, out=[((10, 12), F32)])
    state = start[:, 0] if vector else np.full(10, 0.5, F32)
    for i in range(12):
        t = state - a[:, i] if reverse[0] else a[:, i] - state
        state = b[:, i] - t if reverse[1] else t - b[:, i]
        np.testing.assert_array_equal(got[:, i], state)


@pytest.mark.parametrize(
    ("op", "fold", "start"),
    [(nl.add, lambda v, r: v + r, 0.0), (nl.subtract, lambda v, r: v - r, 0.0),
     (nl.multiply, lambda v, r: v * r, 1.0), (nl.maximum, np.maximum, -np.inf),
     (nl.minimum, np.minimum, np.inf)],
)  # fmt: skip
def test_tensor_scalar_cumulative(op, fold, start):
    x = normal(7, 9)
    cmd = nisa.reduce_cmd

    def body(first, second, loaded, a):
        nisa.tensor_scalar_cumulative(first, a, nl.multiply, op, 2.0)
        nisa.tensor_scalar_cumulative(second, a, nl.multiply, op, 2.0, reduce_cmd=cmd.reduce)
        nisa.tensor_scalar_cumulative(
            loaded, a, nl.multiply, op, 2.0, 0.25, reduce_cmd=cmd.load_reduce
        )

    first, second, loaded = apply(body, x, out=[((7, 9), F32)] * 3)
    reg = np.full(7, start, F32)
    for got in (first, second):
        for i in range(9):
            reg = fold(x[:, i] * F32(2), reg).astype(F32)
            np.testing.assert_array_equal(got[:, i], reg)
    reg = np.full(7, 0.25, F32)
    for i in range(9):
        reg = fold(x[:, i] * F32(2), reg).astype(F32)
    np.testing.assert_array_equal(loaded[:, -1], reg)


def test_stream_shuffle():
    x = normal(96, 5)
    mask = [(i - 1) % 32 for i in range(32)]
    (y,) = apply(lambda d, a: nisa.nc_stream_shuffle(d, a, mask), x, out=[((96, 5), F32)])
    want = np.concatenate([np.roll(x[q : q + 32], 1, axis=0) for q in (0, 32, 64)])
    np.testing.assert_array_equal(y, want)

    def keep(dst, a):
        nisa.tensor_copy(dst, a)
        nisa.nc_stream_shuffle(dst, dst, [0, 255] + [1] * 30)

    (y,) = apply(keep, x[:32].copy(), out=[((32, 5), F32)])
    np.testing.assert_array_equal(y, x[[0, 1] + [1] * 30])
    (y,) = apply(lambda d, a: nisa.nc_stream_shuffle(d, a[0:1], [0] * 32), x, out=[((32, 5), F32)])
    np.testing.assert_array_equal(y, np.broadcast_to(x[0], (32, 5)))


def test_local_gather():
    src = normal(32, 20, 4)
    index = rng().integers(0, 20, (32, 3)).astype(np.uint16)
    (y,) = apply(
        lambda d, s, i: nisa.local_gather(d, s, i, 4, 41), src, index * np.uint16(4),
        out=[((32, 41, 4), F32)],
    )  # fmt: skip
    for group in (slice(0, 16), slice(16, 32)):
        flat = index[group].flatten(order="F")[:41]
        np.testing.assert_array_equal(y[group], np.take(src[group], flat, axis=1))


def test_n_gather():
    data, index = normal(9, 4, 8), rng().integers(0, 32, (9, 11)).astype(np.uint32)
    (y,) = apply(nisa.nc_n_gather, data, index, out=[((9, 11), F32)])
    np.testing.assert_array_equal(y, np.take_along_axis(data.reshape(9, 32), index.astype(int), 1))


def test_nonzero_with_count():
    x = (ints(48, 8, high=3) == 0).astype(np.int32)
    x[0] = [0, 1, 1, 0, 0, 1, 0, 0]

    def body(dst, a):
        nisa.memset(dst, 77)
        nisa.nonzero_with_count(dst, a, index_offset=16, padding_val=-1)

    (y,) = apply(body, x, out=[((48, 9), np.int32)], target="trn2")
    assert y[0].tolist() == [17, 18, 21, -1, -1, -1, -1, -1, 3]
    for p in (16, 32):
        where = np.flatnonzero(x[p])
        assert y[p].tolist() == [*(where + 16), *[-1] * (8 - where.size), where.size]
    assert (np.delete(y, [0, 16, 32], axis=0) == 77).all()


def test_topk():
    x = normal(32, 3).astype(BF16)

    def body(values, places, a):
        nisa.topk(values, places, a, 42)

    values, places = apply(body, x, out=[((32, 8), BF16), ((32, 8), np.uint32)])
    for group in (slice(0, 16), slice(16, 32)):
        snake = x[group].astype(F32).flatten(order="F")[:42]
        for p in range(16):
            np.testing.assert_array_equal(values[group][p].astype(F32), np.sort(snake)[-8:])
            np.testing.assert_array_equal(snake[places[group][p]], np.sort(snake)[-8:])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_sequence_bounds(dtype):
    ids = np.array([[0, 1, 1, 2, 2, 2, 0, 3, 3]], dtype)
    (y,) = apply(nisa.sequence_bounds, ids, out=[((1, 2, 9), dtype)])
    assert y[0, 0].tolist() == [9, 1, 1, 3, 3, 3, 9, 7, 7]  # the documented example
    assert y[0, 1].tolist() == [-1, 3, 3, 6, 6, 6, -1, 9, 9]


def test_partition_reduce():
    x = normal(37, 3, 4)
    for op, want in ((nl.add, x.sum(0)), (nl.max, x.max(0)), (nl.average, x.mean(0))):
        (y,) = apply(
            lambda d, a, op=op: nisa.tensor_partition_reduce(d, op, a), x, out=[((1, 12), F32)]
        )
        np.testing.assert_allclose(y[0], want.reshape(-1), rtol=1e-4, atol=1e-5)
    b = rng().integers(0, 255, (37, 5), dtype=np.uint8)
    (y,) = apply(
        lambda d, a: nisa.tensor_partition_reduce(d, nl.bitwise_or, a), b, out=[((1, 5), np.uint8)]
    )
    np.testing.assert_array_equal(y[0], np.bitwise_or.reduce(b, axis=0))


def test_random_numbers_repeat_with_their_seed():
    seed = np.array([[42]], np.int32)

    def body(first, second, third, s):
        nisa.set_rng_seed(s)
        nisa.rng(first)
        nisa.rng(second)
        nisa.set_rng_seed(s)
        nisa.rng(third)

    first, second, third = apply(body, seed, out=[((64, 64), np.uint32)] * 3)
    np.testing.assert_array_equal(first, third)
    assert (first != second).mean() > 0.99
    assert abs(first.astype(np.float64).mean() / 2**32 - 0.5) < 0.02


def test_random_state_round_trip():
    words = rng().integers(0, 2**32, (16, 6), dtype=np.uint32)

    def body(back, a, b, w):
        gpsimd = nisa.engine.gpsimd
        nisa.rand_set_state(w)
        nisa.rand_get_state(back)
        nisa.rng(a, engine=gpsimd)
        nisa.rand_set_state(w)
        nisa.rng(b, engine=gpsimd)

    back, a, b = apply(
        body, words, out=[((16, 6), np.uint32)] + [((16, 9), np.int16)] * 2, target="trn2"
    )
    np.testing.assert_array_equal(back, words)
    np.testing.assert_array_equal(a, b)


def test_random_state_after_drawing_continues():
    words = rng(1).integers(0, 2**32, (32, 6), dtype=np.uint32)

    def body(first, second, again, untouched, w):
        gpsimd = nisa.engine.gpsimd
        nisa.rand_set_state(w)
        nisa.rng(first, engine=gpsimd)
        state = nl.ndarray((32, 6), nl.uint32)
        nisa.rand_get_state(state)
        nisa.rng(second, engine=gpsimd)
        nisa.rand_set_state(state)
        nisa.rng(again, engine=gpsimd)
        unused = nl.ndarray((128, 6), nl.uint32)  # of an engine that nothing seeded
        nisa.rand_get_state(unused)
        nisa.tensor_copy(untouched, unused[96:128])

    out = [((32, 7), np.uint32), ((32, 5), np.uint32), ((32, 5), np.uint32), ((32, 6), np.uint32)]
    first, second, again, untouched = apply(body, words, out=out, target="trn2")
    np.testing.assert_array_equal(second, again)
    assert (first[:, :5] != second).all() and len(np.unique(untouched)) > 180
    for partition in (0, 31):
        drawn = xorwow(words[partition].tolist(), 12)
        assert first[partition].tolist() + second[partition].tolist() == drawn


def xorwow(state: list[int], n: int) -> list[int]:
    """Marsaglia's generator, a number at a time."""
    x, y, z, w, v, d = state
    drawn = []
    for _ in range(n):
        t = x ^ (x >> 2)
        x, y, z, w = y, z, w, v
        v = (v ^ (v << 4) ^ t ^ (t << 1)) & 0xFFFFFFFF
        d = (d + 362437) & 0xFFFFFFFF
        drawn.append((d + v) & 0xFFFFFFFF)
    return drawn


def test_dropout():
    x = normal(100, 100) + 10
    column = np.linspace(0, 1, 100, dtype=F32)[:, None]
    (y,) = apply(lambda d, a: nisa.dropout(d, a, 0.25), x, out=[((100, 100), F32)])
    assert abs((y == 0).mean() - 0.25) < 0.02 and (y[y != 0] == x[y != 0]).all()
    (y,) = apply(nisa.dropout, x, column, out=[((100, 100), F32)])
    assert not (y[0] == 0).any() and (y[-1] == 0).all()


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 9), (1, 0)), ((3, 4, 7), (2, 1, 0)), ((2, 3, 4, 5), (3, 1, 2, 0))]
)
def test_dma_transpose(shape, axes):
    x = normal(*shape)

    def kernel(a):
        tile = nl.ndarray(tuple(shape[i] for i in axes), a.dtype, nl.sbuf)
        nisa.dma_transpose(tile, a)
        out = nl.ndarray(tile.shape, a.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    np.testing.assert_array_equal(run(kernel, x), x.transpose(axes))


@pytest.mark.parametrize("columns", [1, 2])
def test_dma_gather_transpose_reads_indices_by_column(columns):
    data = normal(300, 96).astype(BF16)
    n = 128 * columns
    index = rng().integers(0, 300, (128, columns)).astype(np.uint32)

    def kernel(a, idx):
        tile = nl.ndarray((96, n), a.dtype, nl.sbuf)
        source = a.ap([[96, n], [1, 96]], vector_offset=nl.load(idx), indirect_dim=0)
        nisa.dma_transpose(tile, source, axes=(1, 0))
        out = nl.ndarray((96, n), a.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    np.testing.assert_array_equal(run(kernel, data, index, target="trn2"), data[index.T.ravel()].T)
    with pytest.raises(RuleError, match=r"dma\.transpose"):
        run(kernel, data, index, target="trn1")


def test_dma_compute_adds_in_float32():
    a, b, c = normal(9, 7).astype(BF16), normal(9, 7, seed=1), normal(9, 7, seed=2)
    (y,) = apply(
        lambda d, x, y, z: nisa.dma_compute(d, [x, y, z], nl.add), a, b, c, out=[((9, 7), F32)]
    )
    np.testing.assert_array_equal(y, a.astype(F32) + b + c)


def test_dma_compute_scatter_and_gather_add():
    table, rows = normal(50, 6), normal(9, 6, seed=1)
    index = rng().permutation(50)[:9].astype(np.int32)[:, None]
    want = table.copy()
    want[index[:, 0]] += rows

    def scatter(dst, src, idx):
        where = nl.load(idx)
        view = dst.ap([[6, 9], [1, 6]], vector_offset=where, indirect_dim=0)
        nisa.dma_compute(view, [view, nl.load(src)], nl.add)

    target = table.copy()
    run(scatter, target, rows, index)
    np.testing.assert_array_equal(target, want)
    with pytest.raises(RuleError, match=r"dma\.unique-indices"):
        run(scatter, table.copy(), rows, np.zeros((9, 1), np.int32))

    def gather(dst, src, idx):
        tile = nl.load(dst)
        view = src.ap([[6, 9], [1, 6]], vector_offset=nl.load(idx), indirect_dim=0)
        nisa.dma_compute(tile, [view, tile], nl.add)
        nisa.dma_copy(dst, tile)

    target = rows.copy()
    run(gather, target, table, index)
    np.testing.assert_array_equal(target, rows + table[index[:, 0]])


GEN4 = [
    lambda t: nisa.nc_matmul_mx(t, t, t, t, t),
    lambda t: nisa.quantize_mx(t, t, t),
    lambda t: nisa.activate2(t, nl.exp, t, 1.0, 0.0, nl.multiply, nl.add),
    lambda t: nisa.exponential(t, t),
    lambda t: nisa.rand2(t, 0.0, 1.0),
    lambda t: t.indirect(t),
]


@pytest.mark.parametrize("call", GEN4)
def test_gen4_only(call):
    def kernel():
        call(nl.zeros((32, 32), nl.float32))

    with pytest.raises(RuleError, match=r"instruction\.generation"):
        run(kernel, target="trn2")
    with pytest.raises(NotImplementedError):
        run(kernel, target="trn3")


def zeros(*shape, dtype=nl.float32):
    return nl.zeros(shape, dtype)


BROKEN = [
    ("search.size", lambda: nisa.max8(zeros(4, 8), zeros(4, 7))),
    ("search.eight", lambda: nisa.max8(zeros(4, 9), zeros(4, 16))),
    (
        "search.eight",
        lambda: nisa.nc_find_index8(zeros(4, 8, dtype=nl.uint32), zeros(4, 16), zeros(4, 7)),
    ),
    ("operand.dtype", lambda: nisa.nc_find_index8(zeros(4, 8), zeros(4, 16), zeros(4, 8))),
    ("bn.sizes", lambda: nisa.bn_stats(zeros(4, 6), zeros(4, 513))),
    ("bn.sizes", lambda: nisa.bn_aggr(zeros(4, 2), zeros(4, 7))),
    ("shuffle.mask", lambda: nisa.nc_stream_shuffle(zeros(32, 4), zeros(32, 4), [32] * 32)),
    ("shuffle.mask", lambda: nisa.nc_stream_shuffle(zeros(32, 4), zeros(32, 4), [0] * 31)),
    (
        "gather.sizes",
        lambda: nisa.local_gather(zeros(20, 4), zeros(20, 4), zeros(20, 1, dtype=nl.uint16)),
    ),
    (
        "gather.bounds",
        lambda: nisa.nc_n_gather(zeros(4, 3), zeros(4, 2), nl.full((4, 3), 2, nl.uint32)),
    ),
    (
        "topk.sizes",
        lambda: nisa.topk(
            zeros(16, 9, dtype=nl.bfloat16), zeros(16, 9, dtype=nl.uint32),
            zeros(16, 1, dtype=nl.bfloat16), 8,
        ),
    ),
    ("sequence_bounds.shape", lambda: nisa.sequence_bounds(zeros(2, 2, 4), zeros(2, 4))),
    ("random.state", lambda: nisa.set_rng_seed(zeros(1, 2))),
    ("operand.dtype", lambda: nisa.rng(zeros(2, 2))),
    ("engine", lambda: nisa.rng(zeros(2, 2, dtype=nl.int32), engine=nisa.engine.gpsimd)),
    ("dma.transpose", lambda: nisa.dma_transpose(zeros(4, 5), zeros(4, 5))),
    ("dma.transpose", lambda: nisa.dma_transpose(zeros(5, 4), zeros(4, 5), axes=(0, 1))),
    ("dma.compute", lambda: nisa.dma_compute(zeros(4, 5), [], nl.add)),
    ("dma.compute", lambda: nisa.dma_compute(zeros(4, 5), [zeros(4, 5)], nl.add, scales=[2.0])),
    ("op", lambda: nisa.dma_compute(zeros(4, 5), [zeros(4, 5)], nl.maximum)),
    ("instruction.generation", lambda: nisa.nonzero_with_count(
        zeros(16, 5, dtype=nl.int32), zeros(16, 4))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "body"), BROKEN, ids=[f"{b[0]}-{i}" for i, b in enumerate(BROKEN)]
)
def test_breaking_a_rule(rule, body):
    with pytest.raises(RuleError) as caught:
        run(body, target="trn1")
    assert caught.value.rule == rule
