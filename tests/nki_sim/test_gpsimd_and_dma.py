"""GpSimdE patterns and DMA copies, static and at run-time addresses."""

from __future__ import annotations

import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError
from tests.nki_sim.helpers import BF16, apply, normal, rng, run

pytestmark = pytest.mark.sim

F32 = np.float32


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16])
def test_iota(dtype):
    (z,) = apply(
        lambda d: nisa.iota(d, [[3, 4], [-1, 5]], offset=7, channel_multiplier=100),
        out=[((6, 20), dtype)],
    )
    p, i, j = np.ogrid[:6, :4, :5]
    want = (7 + 100 * p + 3 * i - j).reshape(6, 20)
    np.testing.assert_array_equal(z, want.astype(dtype))


@pytest.mark.parametrize(
    ("op", "compare"),
    [(nl.greater_equal, np.greater_equal), (nl.equal, np.equal), (nl.less, np.less),
     (nl.not_equal, np.not_equal)],
)  # fmt: skip
@pytest.mark.parametrize("out", [np.float32, BF16])
def test_affine_select(op, compare, out):
    x = normal(40, 30)
    (z,) = apply(
        lambda d, a: nisa.affine_select(d, [[-1, 30]], 1, a, -3e38, op, offset=2),
        x, out=[((40, 30), out)],
    )  # fmt: skip
    p, j = np.ogrid[:40, :30]
    want = np.where(compare(2 + p - j, 0), x, F32(-3e38)).astype(out)
    np.testing.assert_array_equal(z, want)


def test_dma_copies_in_pattern_order_and_converts():
    x = normal(12, 20)

    def kernel(a):
        tile = nl.ndarray((20, 12), nl.bfloat16, nl.sbuf)
        nisa.dma_copy(tile, a.permute((1, 0)))
        out = nl.ndarray((4, 60), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    np.testing.assert_array_equal(run(kernel, x), x.T.astype(BF16).astype(F32).reshape(4, 60))


def test_dma_reaches_any_partition_and_strides():
    x = normal(9, 16)

    def kernel(a):
        tile = nl.zeros((128, 16), nl.float32)
        nisa.dma_copy(tile[5:14], a)
        out = nl.ndarray((9, 4), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile[5:14, 3:16:4])
        return out

    np.testing.assert_array_equal(run(kernel, x), x[:, 3:16:4])


def gather(data, index, *, oob=None, fill=0.0, target="trn1"):
    def kernel(table, rows):
        idx = nl.ndarray(rows.shape, rows.dtype, nl.sbuf)
        nisa.dma_copy(idx, rows)
        n, f = rows.shape[0], table.shape[1]
        tile = nl.full((n, f), fill, nl.float32)
        nisa.dma_copy(
            tile,
            table.ap([[f, n], [1, f]], vector_offset=idx, indirect_dim=0),
            oob_mode=nisa.oob_mode.error if oob is None else oob,
        )
        out = nl.ndarray((n, f), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    return run(kernel, data, index, target=target)


def test_gather_rows():
    data, index = normal(50, 7), rng().integers(0, 50, (33, 1)).astype(np.uint32)
    np.testing.assert_array_equal(gather(data, index), data[index[:, 0]])


def test_gather_outside_is_an_error_or_skipped():
    data, index = normal(50, 7), np.array([[3], [50], [49]], np.int32)
    with pytest.raises(RuleError, match=r"dma\.out-of-bounds"):
        gather(data, index)
    got = gather(data, index, oob=nisa.oob_mode.skip, fill=9.0)
    np.testing.assert_array_equal(got, [data[3], np.full(7, 9.0), data[49]])


def test_scatter_writes_the_callers_array():
    out = normal(40, 6)
    rows = rng().permutation(40)[:9].astype(np.int32)[:, None]
    values = normal(9, 6, seed=1)
    want = out.copy()
    want[rows[:, 0]] = values

    def kernel(src, index, dst):
        idx, tile = nl.load(index), nl.load(src)
        nisa.dma_copy(dst.ap([[6, 9], [1, 6]], vector_offset=idx, indirect_dim=0), tile)

    run(kernel, values, rows, out)
    np.testing.assert_array_equal(out, want)


def test_scalar_offset_from_tile_and_select():
    data = normal(4, 16, 8)

    def kernel(a, which):
        idx = nl.load(which)
        first = nl.ndarray((16, 8), nl.float32, nl.sbuf)
        nisa.dma_copy(first, a.select(0, idx))
        second = nl.ndarray((16, 8), nl.float32, nl.sbuf)
        nisa.dma_copy(second, a.ap([[8, 16], [1, 8]], scalar_offset=idx, indirect_dim=0))
        outs = []
        for tile in (first, second):
            out = nl.ndarray((16, 8), nl.float32, nl.shared_hbm)
            nisa.dma_copy(out, tile)
            outs.append(out)
        return tuple(outs)

    for i in (0, 3):
        first, second = run(kernel, data, np.array([[i]], np.int32))
        np.testing.assert_array_equal(first, data[i])
        np.testing.assert_array_equal(second, data[i])
    with pytest.raises(RuleError, match=r"dma\.out-of-bounds"):
        run(kernel, data, np.array([[4]], np.int32))


def test_vector_select_gathers_planes():
    data, index = normal(6, 3, 5), np.array([[5], [0], [2], [2]], np.int32)

    def kernel(a, rows):
        tile = nl.ndarray((4, 3, 5), nl.float32, nl.sbuf)
        nisa.dma_copy(tile, a.vector_select(0, nl.load(rows)))
        out = nl.ndarray((4, 3, 5), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    np.testing.assert_array_equal(run(kernel, data, index), data[index[:, 0]])


def test_dynamic_offset_on_chip():
    data = normal(8, 5, 4)

    def kernel(a, which):
        tile, idx = nl.load(a), nl.load(which)
        got = nl.ndarray((8, 4), nl.float32, nl.sbuf)
        nisa.tensor_copy(got, tile.select(1, idx))
        nisa.tensor_copy(tile.select(1, idx), nl.zeros((8, 4), nl.float32))
        out = nl.ndarray((8, 4), nl.float32, nl.shared_hbm)
        whole = nl.ndarray((8, 5, 4), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, got)
        nisa.dma_copy(whole, tile)
        return out, whole

    got, whole = run(kernel, data, np.array([[3]], np.int32))
    np.testing.assert_array_equal(got, data[:, 3])
    data[:, 3] = 0
    np.testing.assert_array_equal(whole, data)
