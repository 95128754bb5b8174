"""Kernels of the kinds that inference libraries ship, each against NumPy.

They are ours, but take the API by its corners as production code does: helper classes, keyword
configurations, views described apart and lowered with ``ap``, stacks of explicit addresses,
run-time rows that are skipped, quantised rows that carry their scale, and two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.kernel import jit
from nki_sim.objects import NKIObject
from tests.nki_sim.helpers import BF16, normal, rng

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("error")]
ALL, NEW = ("trn1", "trn2", "trn3"), ("trn2", "trn3")
FP8 = ml_dtypes.float8_e4m3
F32 = np.float32


def call(kernel: Any, target: str, *args: Any, **kwargs: Any) -> Any:
    return nki_sim.simulate(kernel, target=target)(*args, **kwargs)


def div_ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


_SIZES = {nl.float32: 4, nl.bfloat16: 2, nl.uint8: 1, nl.int32: 4}


class Scratch(NKIObject):
    """SBUF handed out from a stack of scopes, each with a ring of buffers for its iterations."""

    def __init__(self, low: int = 0, high: int = 96 * 1024):
        self.low, self.high = low, high
        self.scopes = []
        self.top = low
        self.peak = low

    def open(self, ring: int = 1):
        self.scopes.append([self.top, ring, 0, self.top])

    def turn(self):
        """The next iteration: its buffers follow those of the one before, or start over."""
        base, ring, count, _ = self.scopes[-1]
        if (count + 1) % ring == 0:
            self.top = base
        self.scopes[-1][2] = count + 1

    def close(self):
        self.top = self.scopes.pop()[0]

    def alloc(self, shape, dtype, name=None):
        size = _SIZES[dtype]
        for n in shape[1:]:
            size *= n
        address = self.top
        self.top += div_ceil(size, 32) * 32
        self.peak = max(self.peak, self.top)
        assert self.top <= self.high, f"scratch: {self.top} of {self.high}"
        return nl.ndarray(shape, dtype=dtype, buffer=nl.sbuf, name=name or "", address=(0, address))


class Strided(NKIObject):
    """A view kept as sizes and strides; ``get`` lowers it to an access pattern."""

    def __init__(self, base, sizes=None, strides=None, offset=0):
        self.base = base
        self.sizes = tuple(base.shape) if sizes is None else sizes
        self.strides = tuple(base.strides) if strides is None else strides
        self.offset = offset

    def _new(self, sizes, strides, offset=0):
        return Strided(self.base, tuple(sizes), tuple(strides), self.offset + offset)

    def slice(self, dim, start, end, step=1):
        sizes, strides = list(self.sizes), list(self.strides)
        sizes[dim], strides[dim] = div_ceil(end - start, step), strides[dim] * step
        return self._new(sizes, strides, start * self.strides[dim])

    def permute(self, dims):
        return self._new([self.sizes[d] for d in dims], [self.strides[d] for d in dims])

    def expand(self, dim, size):
        """A new dimension that repeats the data."""
        sizes, strides = list(self.sizes), list(self.strides)
        sizes.insert(dim, size)
        strides.insert(dim, 0)
        return self._new(sizes, strides)

    def get(self):
        return self.base.ap(
            pattern=[[s, n] for s, n in zip(self.strides, self.sizes, strict=True)],
            offset=self.offset,
        )


# ------------------------------------------------------------------ norms and quantisation


@dataclass
class QuantNorm(NKIObject):
    eps: float = 1e-6
    limit: float = 240.0
    tile_rows: int = 128
    gamma_dtype: Any = None


def rmsnorm_quantised(x, gamma, config=None):
    """Rows normalised, quantised to fp8 by their own scale, and the scale behind each row."""
    n, d = x.shape
    out = nl.ndarray((n, d + 4), dtype=nl.float8_e4m3, buffer=nl.shared_hbm, name="quantised")
    scratch = Scratch()
    scratch.open()
    p_max = config.tile_rows
    weights = scratch.alloc((p_max, d), nl.float32, name="gamma")
    nisa.dma_copy(dst=weights, src=gamma.ap(pattern=[[0, p_max], [1, d]]))
    bias = scratch.alloc((p_max, 1), nl.float32)
    nisa.memset(dst=bias, value=config.eps)
    scratch.open(ring=2)
    for i in nl.affine_range(div_ceil(n, p_max)):
        p = min(p_max, n - i * p_max)
        rows = nl.ds(i * p_max, p)
        tile = scratch.alloc((p_max, d), nl.float32, name=f"rows_{i}")
        nisa.dma_copy(dst=tile[0:p], src=x[rows])
        square = scratch.alloc((p_max, d), nl.bfloat16)
        total = scratch.alloc((p_max, 1), nl.float32)
        nisa.activation_reduce(
            dst=square[0:p], op=nl.square, data=tile[0:p], reduce_op=nl.add, reduce_res=total[0:p]
        )
        nisa.activation(total[0:p], nl.rsqrt, total[0:p], bias=bias[0:p], scale=1.0 / d)
        nisa.scalar_tensor_tensor(
            dst=tile[0:p], data=tile[0:p], op0=nl.multiply, operand0=total[0:p], op1=nl.multiply,
            operand1=weights[0:p],
        )  # fmt: skip
        size = scratch.alloc((p_max, d), nl.float32)
        scale = scratch.alloc((p_max, 1), nl.float32)
        nisa.tensor_scalar(size[:p], tile[:p], op0=nl.abs, operand0=0.0)
        nisa.tensor_reduce(dst=scale[:p], op=nl.maximum, data=size[:p], axis=[1])
        nisa.tensor_scalar(
            scale[:p], scale[:p], nl.maximum, 1e-5, op1=nl.multiply, operand1=1.0 / config.limit
        )
        inverse = scratch.alloc((p_max, 1), nl.float32)
        nisa.reciprocal(dst=inverse[:p], data=scale[:p])
        packed = nl.ndarray((p_max, d + 4), nl.float8_e4m3, buffer=nl.sbuf)
        nisa.tensor_scalar(packed[:p, 0:d], tile[:p], op0=nl.multiply, operand0=inverse[:p])
        nisa.tensor_copy(dst=packed[:p, d : d + 4].view(nl.float32), src=scale[:p])
        nisa.dma_copy(dst=out[rows, :], src=packed[0:p])
        scratch.turn()
    scratch.close()
    return out


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("shape", [(300, 96), (3, 32)])
def test_rmsnorm_with_fp8_rows_that_carry_their_scale(target, shape):
    x, gamma = normal(*shape) * 3, normal(shape[1], seed=1)
    got = call(rmsnorm_quantised, target, x, gamma, config=QuantNorm(tile_rows=96))
    wide = x.astype(np.float64)
    wide = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * gamma
    scale = np.abs(wide).max(1, keepdims=True) / 240
    stored = got[:, -4:].copy().view(np.uint8).view(F32)
    np.testing.assert_allclose(stored, scale, rtol=1e-5)
    values = got[:, :-4].astype(np.float64) * stored
    np.testing.assert_allclose(values, wide, rtol=2**-4, atol=float(scale.max()) * 2**-7)


def layernorm_by_statistics(x, gamma=None, beta=None, eps=1e-5):
    n, d = x.shape
    out = nl.ndarray(x.shape, x.dtype, buffer=nl.shared_hbm)
    step = nl.tile_size.bn_stats_fmax
    for start in nl.sequential_range(0, n, nl.tile_size.pmax):
        p = min(nl.tile_size.pmax, n - start)
        tile = nl.load(x[start : start + p, :], dtype=nl.float32)
        chunks = div_ceil(d, step)
        stats = nl.ndarray((p, chunks * 6), nl.float32)
        for c in nl.static_range(chunks):
            nisa.bn_stats(stats[:, 6 * c : 6 * c + 6], tile[:, c * step : min(d, c * step + step)])
        moments = nl.ndarray((p, 2), nl.float32)
        nisa.bn_aggr(moments, stats)
        nisa.tensor_scalar(
            moments[:, 1:2], moments[:, 1:2], op0=nl.add, operand0=eps, op1=nl.rsqrt, operand1=0.0
        )
        nisa.tensor_scalar(
            tile, tile, nl.subtract, moments[:, 0:1], op1=nl.multiply, operand1=moments[:, 1:2]
        )
        for vector, op in ((gamma, nl.multiply), (beta, nl.add)):
            if vector is not None:
                nisa.tensor_tensor(tile, tile, nl.load(vector.ap([[0, p], [1, d]])), op)
        nl.store(out[start : start + p], nl.copy(tile, dtype=x.dtype))
    return out


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layernorm_by_statistics(target, dtype):
    x = (normal(150, 1100) * 2 + 1).astype(dtype)
    gamma, beta = normal(1100, seed=1), normal(1100, seed=2)
    wide = x.astype(np.float64)
    unit = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    tolerance = 1e-4 if dtype is F32 else 2e-2
    got = call(layernorm_by_statistics, target, x, gamma, beta=beta)
    np.testing.assert_allclose(got.astype(F32), unit * gamma + beta, atol=tolerance, rtol=tolerance)
    got = call(layernorm_by_statistics, target, x)
    np.testing.assert_allclose(got.astype(F32), unit, atol=tolerance, rtol=tolerance)


def double_row_matmul(x, w, scales):
    """y = x @ (w * scales) with fp8 operands, two contraction rows at a time."""
    k, m = x.shape
    _, n = w.shape
    out = nl.ndarray((m, n), nl.bfloat16, nl.shared_hbm)
    psum = nl.ndarray((m, n), nl.float32, nl.psum)
    steps = k // 256
    for i in nl.affine_range(steps):
        left, right = (nl.ndarray((128, 2, f), nl.float8_e4m3, nl.sbuf) for f in (m, n))
        for tile, src, f in ((left, x, m), (right, w, n)):
            half = Strided(src, (2, 128, f), (128 * f, f, 1), i * 256 * f)
            nisa.dma_copy(dst=tile, src=half.permute((1, 0, 2)).get())
        nisa.nc_matmul(
            psum, left, right, perf_mode=nisa.matmul_perf_mode.double_row, accumulate=i != 0
        )
    columns = nl.load(scales.reshape((1, n)).ap([[0, m], [1, n]]))
    result = nl.ndarray((m, n), nl.bfloat16)
    nisa.tensor_tensor(dst=result, data1=psum, data2=columns, op=nl.multiply)
    nisa.dma_copy(out, result)
    return out


@pytest.mark.parametrize("target", NEW)
def test_double_row_matmul_with_column_scales(target):
    x, w = normal(512, 40).astype(FP8), normal(512, 100, seed=1).astype(FP8)
    scales = np.abs(normal(100, seed=2))
    want = x.astype(np.float64).T @ w.astype(np.float64) * scales
    got = call(double_row_matmul, target, x, w, scales)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=1e-2, atol=1e-2)


# ------------------------------------------------------------------ attention and its caches


def rope(x, cos, sin, interleaved=False):
    """Rotary embedding of [d, heads, tokens], d on the partitions."""
    d, h, s = x.shape
    half = d // 2
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    tables = [nl.ndarray((half, s), nl.float32) for _ in range(2)]
    for tile, src in zip(tables, (cos, sin), strict=True):
        nisa.dma_copy(tile, src)
    c, n = (Strided(tile).expand(1, h).get() for tile in tables)  # [half, h, s]
    step = 2 if interleaved else 1
    first = Strided(x).slice(0, 0, d if interleaved else half, step)
    second = Strided(x).slice(0, 1 if interleaved else half, d, step)
    even, odd = nl.ndarray((half, h, s), x.dtype), nl.ndarray((half, h, s), x.dtype)
    nisa.dma_copy(even, first.get())
    nisa.dma_copy(odd, second.get())
    for sign, a, b, to in ((nl.subtract, even, odd, first), (nl.add, odd, even, second)):
        left, right = (nl.ndarray((half, h, s), nl.float32) for _ in range(2))
        nisa.tensor_tensor(left, a, c, nl.multiply)
        nisa.tensor_tensor(right, b, n, nl.multiply)
        nisa.tensor_tensor(left, left, right, op=sign)
        turned = Strided(out, to.sizes, to.strides, to.offset)
        nisa.dma_copy(dst=turned.get(), src=left)
    return out


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_over_heads_with_broadcast_tables(target, interleaved):
    d, h, s = 64, 3, 17
    x = normal(d, h, s)
    angle = np.arange(s) * 100.0 ** (-np.arange(d // 2)[:, None] / (d // 2))
    cos, sin = np.cos(angle).astype(F32), np.sin(angle).astype(F32)
    a, b = (x[0::2], x[1::2]) if interleaved else (x[: d // 2], x[d // 2 :])
    one = a * cos[:, None] - b * sin[:, None]
    two = b * cos[:, None] + a * sin[:, None]
    want = np.stack([one, two], 1).reshape(d, h, s) if interleaved else np.concatenate([one, two])
    got = call(rope, target, x, cos, sin, interleaved=interleaved)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def update_cache(cache, fresh, slots, lengths):
    """New rows into a paged cache: negative slots are padding; returns lengths + 1."""
    pages, page, d = cache.shape
    b = fresh.shape[0]
    rows = nl.ndarray((b, d), fresh.dtype)
    nisa.dma_copy(rows, fresh)
    where = nl.ndarray((b, 1), nl.int32)
    nisa.dma_copy(dst=where, src=slots)
    flat = cache.reshape((pages * page, d))
    nisa.dma_copy(
        dst=flat.ap(pattern=[[d, b], [1, d]], offset=0, vector_offset=where, indirect_dim=0),
        src=rows,
        oob_mode=nisa.oob_mode.skip,
        dge_mode=nisa.dge_mode.swdge,
    )
    counts = nl.ndarray((1, b), nl.int32)
    nisa.dma_copy(counts, lengths)
    nisa.tensor_scalar(dst=counts, data=counts, op0=nl.add, operand0=1)
    after = nl.ndarray((1, b), nl.int32, nl.shared_hbm)
    nisa.dma_copy(after, counts)
    return cache, after


@pytest.mark.parametrize("target", ALL)
def test_paged_cache_update_skips_padding(target):
    cache, fresh = normal(6, 8, 20), normal(5, 20, seed=1)
    slots = np.array([[3], [-1], [47], [48], [0]], np.int32)
    lengths = np.array([[7, 0, 2, 9, 1]], np.int32)
    want = cache.copy().reshape(48, 20)
    for row in (0, 2, 4):
        want[slots[row, 0]] = fresh[row]
    got, after = call(update_cache, target, cache, fresh, slots, lengths)
    assert got is cache
    np.testing.assert_array_equal(cache.reshape(48, 20), want)
    np.testing.assert_array_equal(after, lengths + 1)


class Partial(NKIObject):
    """The running state of a softmax over blocks of keys: largest logit, sum, weighted values."""

    def __init__(self, rows, d):
        self.top = nl.full((rows, 1), -1e30, nl.float32)
        self.sum = nl.zeros((rows, 1), nl.float32)
        self.out = nl.zeros((rows, d), nl.float32)

    def _fade(self, new):
        minus, fade = (nl.ndarray(self.top.shape, nl.float32) for _ in range(2))
        nisa.tensor_scalar(minus, new, nl.multiply, -1.0)
        nisa.activation(fade, nl.exp, self.top, bias=minus)
        return minus, fade

    def add(self, logits, values):
        rows, width = logits.shape
        new = nl.ndarray((rows, 1), nl.float32)
        nisa.tensor_reduce(new, nl.maximum, logits, axis=1)
        nisa.tensor_tensor(new, new, self.top, op=nl.maximum)
        minus, fade = self._fade(new)
        weights, part = nl.ndarray((rows, width), nl.bfloat16), nl.ndarray((rows, 1), nl.float32)
        nisa.activation_reduce(weights, nl.exp, logits, nl.add, part, bias=minus)
        turned = nl.ndarray((width, rows), nl.bfloat16, nl.psum) if _new() else None
        stationary = nl.ndarray((width, rows), nl.bfloat16)
        if turned is None:
            wide = nl.ndarray((width, rows), nl.float32, nl.psum)
            nisa.nc_matmul(wide, weights, nl.shared_identity_matrix(rows, nl.bfloat16))
            nisa.tensor_copy(stationary, wide)
        else:
            nisa.nc_transpose(turned, weights, engine=nisa.engine.tensor)
            nisa.tensor_copy(stationary, turned, engine=nisa.engine.scalar)
        product = nl.ndarray(self.out.shape, nl.float32, nl.psum)
        nisa.nc_matmul(product, stationary, values)
        nisa.scalar_tensor_tensor(self.out, self.out, nl.multiply, fade, nl.add, product)
        nisa.scalar_tensor_tensor(self.sum, self.sum, nl.multiply, fade, nl.add, part)
        nisa.tensor_copy(self.top, new)

    def merge_with_peer(self, pipe):
        peer = 1 - nl.program_id(0)
        got = []
        for k, tile in enumerate((self.top, self.sum, self.out)):
            other = nl.ndarray(tile.shape, tile.dtype)
            nisa.sendrecv(
                src=tile, dst=other, send_to_rank=peer, recv_from_rank=peer, pipe_id=pipe + k
            )
            got.append(other)
        new = nl.ndarray(self.top.shape, nl.float32)
        nisa.tensor_tensor(new, self.top, got[0], nl.maximum)
        minus, mine = self._fade(new)
        theirs = nl.ndarray(self.top.shape, nl.float32)
        nisa.activation(theirs, nl.exp, got[0], bias=minus)
        for tile, other in ((self.sum, got[1]), (self.out, got[2])):
            nisa.tensor_scalar(tile, tile, nl.multiply, mine)
            nisa.scalar_tensor_tensor(tile, other, nl.multiply, theirs, nl.add, tile)

    def result(self):
        nisa.reciprocal(self.sum, self.sum)
        nisa.tensor_scalar(self.out, self.out, nl.multiply, self.sum)
        return self.out


def _new():
    return nisa.get_nc_version() >= nisa.nc_version.gen3


def paged_attention(q, k_cache, v_cache, table, length, scale=1.0):
    """Queries of one sequence against pages that a table names; pages dealt to the cores."""
    d, rows = q.shape
    page = k_cache.shape[1]
    cores, core = nl.num_programs(0), nl.program_id(0)
    out = nl.ndarray((rows, d), nl.float32, nl.shared_hbm)
    query = nl.ndarray((d, rows), nl.bfloat16)
    nisa.dma_copy(query, q)
    names = nl.ndarray((1, table.shape[1]), nl.int32)
    nisa.dma_copy(names, table)
    valid = nl.ndarray((rows, 1), nl.float32)
    nisa.dma_copy(valid, length.ap([[0, rows], [1, 1]]))
    state = Partial(rows, d)
    for j in range(core, table.shape[1], cores):
        at = names[:, j : j + 1]
        keys, values = nl.ndarray((page, d), nl.bfloat16), nl.ndarray((page, d), nl.bfloat16)
        nisa.dma_copy(keys, k_cache.select(0, at))
        nisa.dma_copy(values, v_cache.ap([[d, page], [1, d]], scalar_offset=at, indirect_dim=0))
        turned = nl.ndarray((d, page), nl.float32, nl.psum)
        nisa.nc_matmul(turned, keys, nl.shared_identity_matrix(page, nl.bfloat16))
        moving = nl.ndarray((d, page), nl.bfloat16)
        nisa.tensor_copy(moving, turned)
        logits = nl.ndarray((rows, page), nl.float32, nl.psum)
        nisa.nc_matmul(dst=logits, stationary=query, moving=moving)
        masked = nl.ndarray((rows, page), nl.float32)
        nisa.activation(masked, nl.copy, logits, scale=scale)
        position, dead = nl.ndarray((rows, page), nl.float32), nl.ndarray((rows, page), nl.float32)
        nisa.iota(position, [[1, page]], offset=j * page, channel_multiplier=0)
        nisa.tensor_scalar(dead, position, nl.greater_equal, valid, op1=nl.multiply, operand1=-1e30)
        nisa.tensor_tensor(masked, masked, dead, nl.add)
        state.add(masked, values)
    if cores == 2:
        state.merge_with_peer(pipe=0)
    if core == 0:
        nisa.dma_copy(out, state.result())
    return out


@pytest.mark.parametrize(("target", "cores"), [("trn1", 1), ("trn2", 1), ("trn2", 2), ("trn3", 2)])
def test_paged_attention_over_cores(target, cores):
    d, rows, page = 32, 6, 16
    q, k = normal(d, rows, dtype=BF16), normal(9, page, d, dtype=BF16, seed=1)
    v = normal(9, page, d, dtype=BF16, seed=2)
    table, length = np.array([[4, 0, 7, 2, 8]], np.int32), np.array([[70.0]], F32)
    kernel = jit(paged_attention)[cores]
    got = call(kernel, target, q, k, v, table, length, scale=d**-0.5)
    keys = k[table[0]].reshape(-1, d)[:70].astype(np.float64)
    values = v[table[0]].reshape(-1, d)[:70].astype(np.float64)
    logits = q.astype(np.float64).T @ keys.T * d**-0.5
    weights = np.exp(logits - logits.max(1, keepdims=True))
    want = weights @ values / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("target", NEW)
def test_a_sliding_window_by_range_select(target):
    """Logits of positions outside [i - window, i] take the smallest number."""
    rows, n, window = 20, 48, 9

    def kernel(logits, start):
        tile = nl.load(logits)
        low, high = nl.ndarray((rows, 1), nl.float32), nl.ndarray((rows, 1), nl.float32)
        nisa.iota(high, [[1, 1]], offset=start, channel_multiplier=1)
        nisa.tensor_scalar(low, high, nl.subtract, float(window))
        top = nl.ndarray((rows, 1), nl.float32)
        nisa.range_select(
            dst=tile, on_true_tile=tile, comp_op0=nl.greater, comp_op1=nl.less_equal, bound0=low,
            bound1=high, reduce_cmd=nisa.reduce_cmd.reset_reduce, reduce_res=top,
        )  # fmt: skip
        out, largest = (nl.ndarray((rows, m), nl.float32, nl.shared_hbm) for m in (n, 1))
        nisa.dma_copy(out, tile)
        nisa.dma_copy(largest, top)
        return out, largest

    x = normal(rows, n)
    i, j = np.ogrid[:rows, :n]
    keep = (j <= i + 13) & (j > i + 13 - window)
    want = np.where(keep, x, np.finfo(F32).min)
    got, top = call(kernel, target, x, start=13)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(top, want.max(1, keepdims=True))


@pytest.mark.parametrize("target", NEW)
def test_embedding_rows_gathered_and_transposed(target):
    """Token rows arrive with the embedding dimension on the partitions, by one DMA."""

    def kernel(table, tokens):
        n, d = tokens.shape[0], table.shape[1]
        ids = nl.ndarray((n, 1), nl.uint32)
        nisa.dma_copy(ids, tokens)
        turned = nl.ndarray((d, n), table.dtype)
        rows = table.ap([[d, n], [1, d]], vector_offset=ids, indirect_dim=0)
        nisa.dma_transpose(dst=turned, src=rows, axes=(1, 0))
        out = nl.ndarray((d, n), table.dtype, nl.shared_hbm)
        nisa.dma_copy(out, turned)
        return out

    table = normal(70, 96, dtype=BF16)
    tokens = rng().integers(0, 70, (48, 1)).astype(np.uint32)
    np.testing.assert_array_equal(call(kernel, target, table, tokens), table[tokens[:, 0]].T)
