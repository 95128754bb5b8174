"""Routing, experts, scans and optimisers as inference and training libraries ship them.

As in ``test_production_kernels``, each kernel is ours and is compared with NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.kernel import jit
from nki_sim.objects import NKIObject
from nki_sim.replay import Replay
from tests.nki_sim.helpers import BF16, normal, rng

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("error")]
ALL, NEW = ("trn1", "trn2", "trn3"), ("trn2", "trn3")
F32 = np.float32


def call(kernel: Any, target: str, *args: Any, **kwargs: Any) -> Any:
    return nki_sim.simulate(kernel, target=target)(*args, **kwargs)


# ------------------------------------------------------------------ routing


def router(logits, k=8, normalise=True):
    """Affinities of the k best experts of each token, dense, and their indices, best first."""
    t, e = logits.shape
    assert k % 8 == 0
    work = nl.ndarray((t, e), nl.float32)
    nisa.dma_copy(work, logits)
    probs, total = nl.ndarray((t, e), nl.float32), nl.ndarray((t, 1), nl.float32)
    top = nl.ndarray((t, 1), nl.float32)
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=work, axis=1, negate=True)
    nisa.activation_reduce(probs, nl.exp, work, nl.add, total, bias=top)
    nisa.reciprocal(total, total)
    nisa.tensor_scalar(probs, probs, nl.multiply, total)
    nisa.tensor_copy(work, probs)
    places = nl.ndarray((t, k), nl.uint32)
    for start in range(0, k, 8):
        best = nl.ndarray((t, 8), nl.float32)
        nisa.max8(dst=best, src=work)
        nisa.nc_find_index8(places[:, start : start + 8], work, best)
        rest = nl.ndarray((t, e), nl.float32)
        nisa.nc_match_replace8(dst=rest, data=work, vals=best, imm=-1.0)
        work = rest
    chosen, kept = nl.ndarray((t, e), nl.uint8), nl.ndarray((t, e), nl.float32)
    nisa.tensor_scalar(dst=chosen, data=work, op0=nl.equal, operand0=-1.0)
    nisa.memset(kept, 0.0)
    nisa.tensor_copy_predicated(dst=kept, src=probs, predicate=chosen)
    if normalise:
        part = nl.ndarray((t, 1), nl.float32)
        nisa.tensor_reduce(part, nl.add, kept, axis=(1,), keepdims=True)
        nisa.tensor_scalar(part, part, nl.maximum, 1e-12, op1=nl.reciprocal, operand1=0.0)
        nisa.tensor_scalar(kept, kept, nl.multiply, part)
    out = nl.ndarray((t, e), nl.float32, nl.shared_hbm)
    index = nl.ndarray((t, k), nl.uint32, nl.shared_hbm)
    nisa.dma_copy(out, kept)
    nisa.dma_copy(index, places)
    return {"affinities": out, "index": index}


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("k", [8, 16])
def test_router_of_the_best_experts(target, k):
    logits = normal(50, 60)
    got = call(router, target, logits, k=k)
    probs = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    probs /= probs.sum(1, keepdims=True)
    order = np.argsort(-probs, axis=1)[:, :k]
    want = np.zeros_like(probs)
    np.put_along_axis(want, order, np.take_along_axis(probs, order, 1), 1)
    np.testing.assert_array_equal(got["index"], order)
    np.testing.assert_allclose(got["affinities"], want / want.sum(1, keepdims=True), rtol=1e-5)


@dataclass
class Experts(NKIObject):
    block: int
    hidden: int
    gate: Any = None
    down: Any = None


def experts_by_block(tokens, experts, token_of, expert_of, weight_of, blocks=None):
    """Blocks of tokens, each through one expert that is only known at run time, summed per token.

    ``token_of`` pads its blocks with an index behind the last token, which is skipped.
    """
    t, d = tokens.shape
    n = experts.block
    out = nl.ndarray((t, d), nl.float32, nl.shared_hbm)
    nisa.dma_copy(out, nl.zeros((t, d), nl.float32))
    names = nl.ndarray((1, expert_of.shape[1]), nl.int32)
    nisa.dma_copy(names, expert_of)
    expert = nisa.register_alloc()
    identity = nl.shared_identity_matrix(n, nl.float32)

    def turned(x, width):
        psum = nl.ndarray((width, n), nl.float32, nl.psum)
        nisa.nc_transpose(psum, x) if nisa.get_nc_version() > nisa.nc_version.gen2 else (
            nisa.nc_matmul(psum, x, identity)
        )
        tile = nl.ndarray((width, n), nl.float32)
        nisa.tensor_copy(tile, psum)
        return tile

    for i in nl.static_range(blocks):
        rows = nl.ndarray((n, 1), nl.int32)
        nisa.dma_copy(rows, token_of.ap([[1, n], [1, 1]], offset=i * n))
        nisa.register_load(expert, names[:, i : i + 1])
        x = nl.zeros((n, d), nl.float32)
        nisa.dma_copy(
            x, tokens.ap([[d, n], [1, d]], vector_offset=rows), oob_mode=nisa.oob_mode.skip
        )
        gate = nl.ndarray((d, experts.hidden), nl.float32)
        down = nl.ndarray((experts.hidden, d), nl.float32)
        nisa.dma_copy(gate, experts.gate.select(0, expert))
        nisa.dma_copy(
            down,
            experts.down.ap([[d, experts.hidden], [1, d]], scalar_offset=expert, indirect_dim=0),
        )
        first = nl.ndarray((n, experts.hidden), nl.float32, nl.psum)
        nisa.nc_matmul(first, turned(x, d), gate)
        active = nl.ndarray((n, experts.hidden), nl.float32)
        nisa.activation(active, nl.silu, first)
        second = nl.ndarray((n, d), nl.float32, nl.psum)
        nisa.nc_matmul(second, turned(active, experts.hidden), down)
        weights = nl.ndarray((n, 1), nl.float32)
        nisa.dma_copy(weights, weight_of.ap([[1, n], [1, 1]], offset=i * n))
        scaled = nl.ndarray((n, d), nl.float32)
        nisa.tensor_scalar(scaled, second, nl.multiply, weights)
        view = out.ap([[d, n], [1, d]], vector_offset=rows, indirect_dim=0)
        nisa.dma_compute(view, [view, scaled], nl.add, oob_mode=nisa.oob_mode.skip)
    return out


def expert_case():
    t, d, h, n, blocks = 40, 24, 32, 16, 4
    tokens = normal(t, d)
    experts = Experts(n, h, gate=normal(5, d, h, seed=1), down=normal(5, h, d, seed=2))
    token_of = np.stack([rng(i).permutation(t)[:n] for i in range(blocks)]).astype(np.int32)
    token_of[1, 10:] = t + 3  # padding
    expert_of = np.array([[4, 0, 2, 4]], np.int32)
    weights = np.abs(normal(blocks, n, seed=3))
    return tokens, experts, token_of, expert_of, weights


@pytest.mark.parametrize("target", ALL)
def test_experts_chosen_at_run_time(target):
    tokens, experts, token_of, expert_of, weights = expert_case()
    arguments = (tokens, experts, token_of.reshape(1, -1), expert_of, weights.reshape(1, -1))
    got = call(experts_by_block, target, *arguments, blocks=4)
    want = np.zeros(tokens.shape)
    for i in range(4):
        for j, row in enumerate(token_of[i]):
            if row < 40:
                first = tokens[row].astype(np.float64) @ experts.gate[expert_of[0, i]]
                second = (first / (1 + np.exp(-first))) @ experts.down[expert_of[0, i]]
                want[row] += weights[i, j] * second
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_experts_replay_in_any_order():
    tokens, experts, token_of, expert_of, weights = expert_case()
    arguments = (tokens, experts, token_of.reshape(1, -1), expert_of, weights.reshape(1, -1))
    replay = Replay(experts_by_block, *arguments, target="trn2", blocks=4)
    for seed in range(4):
        assert replay.run(seed) == []


def permute_rows(x, index, cores=1):
    """Rows in another order, each core its part, in tiles whose last one is short."""
    d = x.shape[1]
    out = nl.ndarray((index.shape[0], d), x.dtype, nl.shared_hbm)
    share = index.shape[0] // cores
    for start in range(nl.program_id(0) * share, (nl.program_id(0) + 1) * share, 128):
        p = min(128, (nl.program_id(0) + 1) * share - start)
        rows = nl.ndarray((p, 1), nl.uint32)
        nisa.dma_copy(rows, index[nl.ds(start, p), :])
        tile = nl.ndarray((p, d), x.dtype)
        nisa.dma_copy(tile, x.vector_select(0, rows))
        nisa.dma_copy(out[start : start + p], tile)
    return out


@pytest.mark.parametrize(("target", "cores"), [("trn1", 1), ("trn2", 2)])
def test_a_permutation_of_rows(target, cores):
    x, index = normal(300, 10), rng().permutation(300).astype(np.uint32)[:, None]
    got = call(jit(permute_rows)[cores], target, x, index, cores=cores)
    np.testing.assert_array_equal(got, x[index[:, 0]])


@pytest.mark.parametrize("target", NEW)
def test_indices_of_what_is_not_zero(target):
    """Each GpSimd core finds its row's tokens; the count decides how many are moved."""

    def kernel(mask):
        groups, n = mask.shape
        tile = nl.zeros((128, n), nl.float32)
        for g in range(groups):
            nisa.dma_copy(tile[16 * g : 16 * g + 1], mask[g : g + 1])
        found = nl.full((128, n + 1), 0, nl.int32)
        nisa.nonzero_with_count(dst=found, src=tile, index_offset=100, padding_val=-7)
        out = nl.ndarray((groups, n + 1), nl.int32, nl.shared_hbm)
        for g in range(groups):
            nisa.dma_copy(out[g], found[16 * g : 16 * g + 1])
        return out

    mask = (rng().random((5, 23)) < 0.3).astype(F32)
    got = call(kernel, target, mask)
    for row, line in zip(got, mask, strict=True):
        where = np.flatnonzero(line)
        assert row.tolist() == [*(where + 100), *[-7] * (23 - where.size), where.size]


# ------------------------------------------------------------------ scans, losses, optimisers


@pytest.mark.parametrize("target", ALL)
def test_a_running_sum_over_tiles(target):
    """Along the free dimension by scans with a carry, then along partitions by a triangle."""

    def kernel(x, tile=100):
        p, n = x.shape
        out = nl.ndarray((p, n), nl.float32, nl.shared_hbm)
        carry: Any = 0.0
        zeros = nl.zeros((p, tile), nl.float32)
        triangle = nl.ones((p, p), nl.float32)  # [k, m] = 1 where k <= m
        nisa.affine_select(triangle, [[1, p]], -1, triangle, 0.0, nl.greater_equal)
        for start in range(0, n, tile):
            width = min(tile, n - start)
            data, scan = nl.load(x[:, start : start + width]), nl.ndarray((p, width), nl.float32)
            nisa.tensor_tensor_scan(
                dst=scan, data0=data, data1=zeros[:, 0:width], initial=carry, op0=nl.add,
                op1=nl.add,
            )  # fmt: skip
            carry = scan[:, width - 1 : width]
            psum = nl.ndarray((p, width), nl.float32, nl.psum)
            nisa.nc_matmul(psum, triangle, scan)
            both = nl.ndarray((p, width), nl.float32)
            nisa.activation(both, nl.copy, psum)
            nisa.dma_copy(out[:, start : start + width], both)
        return out

    x = np.round(normal(60, 330) * 4)
    want = x.astype(np.float64).cumsum(1).cumsum(0)
    np.testing.assert_allclose(call(kernel, target, x), want, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("target", ALL)
def test_cross_entropy_over_a_vocabulary_in_tiles(target):
    """Online log-sum-exp, and the logit of the label picked by comparing positions."""

    def kernel(logits, labels, tile=200):
        t, v = logits.shape
        loss = nl.ndarray((t, 1), nl.float32, nl.shared_hbm)
        label = nl.ndarray((t, 1), nl.float32)
        nisa.dma_copy(label, labels)  # int32 to float32 on the way
        top, total = nl.full((t, 1), -3e38, nl.float32), nl.zeros((t, 1), nl.float32)
        picked = nl.zeros((t, 1), nl.float32)
        for start in nl.sequential_range(0, v, tile):
            width = min(tile, v - start)
            data = nl.load(logits[:, nl.ds(start, width)])
            new, minus, fade, part = (nl.ndarray((t, 1), nl.float32) for _ in range(4))
            nisa.tensor_reduce(new, nl.maximum, data, axis=1)
            nisa.tensor_tensor(new, new, top, nl.maximum)
            nisa.tensor_scalar(minus, new, nl.multiply, -1.0)
            nisa.activation(fade, nl.exp, top, bias=minus)
            cmd, exps = nisa.reduce_cmd, nl.ndarray((t, width), nl.bfloat16)
            nisa.activation(
                exps, nl.exp, data, bias=minus, reduce_op=nl.add, reduce_res=part,
                reduce_cmd=cmd.reset_reduce,
            )  # fmt: skip
            nisa.scalar_tensor_tensor(total, total, nl.multiply, fade, nl.add, part)
            nisa.tensor_copy(top, new)
            here = nl.ndarray((t, width), nl.float32)
            nisa.iota(here, pattern=[[1, width]], offset=start)
            nisa.scalar_tensor_tensor(here, here, nl.equal, label, nl.multiply, data)
            nisa.tensor_reduce(part, nl.add, here, axis=-1)
            nisa.tensor_tensor(picked, picked, part, nl.add)
        nisa.activation(total, nl.log, total)
        nisa.tensor_tensor(total, total, top, nl.add)
        nisa.tensor_tensor(total, total, picked, op=nl.subtract)
        nisa.dma_copy(loss, total)
        return loss

    logits, labels = normal(33, 730) * 3, rng().integers(0, 730, (33, 1)).astype(np.int32)
    wide = logits.astype(np.float64)
    want = np.log(np.exp(wide).sum(1)) - np.take_along_axis(wide, labels, 1)[:, 0]
    np.testing.assert_allclose(call(kernel, target, logits, labels)[:, 0], want, rtol=1e-4)


@dataclass
class Adam(NKIObject):
    rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    decay: float = 0.0


@pytest.mark.parametrize("target", ALL)
def test_an_optimiser_that_updates_its_arguments(target):
    def kernel(params, grads, first, second, step=1, config=Adam()):  # noqa: B008
        c = config
        p, n = params.shape
        bias = nl.ndarray((p, 1), nl.float32)
        nisa.memset(bias, c.eps)
        w, g, m, v = (nl.load(x, dtype=nl.float32) for x in (params, grads, first, second))
        nisa.tensor_scalar(m, m, nl.multiply, c.beta1)
        nisa.scalar_tensor_tensor(m, g, nl.multiply, 1 - c.beta1, nl.add, m)
        nisa.tensor_scalar(v, v, nl.multiply, c.beta2)
        square = nl.ndarray((p, n), nl.float32)
        nisa.tensor_tensor(square, g, g, nl.multiply)
        nisa.scalar_tensor_tensor(v, square, nl.multiply, 1 - c.beta2, nl.add, v)
        size = nl.ndarray((p, n), nl.float32)
        nisa.activation(size, nl.sqrt, v, scale=1 / (1 - c.beta2**step))
        nisa.tensor_scalar(size, size, nl.add, bias, op1=nl.reciprocal, operand1=None)
        nisa.tensor_tensor(size, size, m, nl.multiply)
        if c.decay:
            nisa.tensor_scalar(w, w, nl.multiply, 1 - c.rate * c.decay)
        nisa.scalar_tensor_tensor(w, size, nl.multiply, -c.rate / (1 - c.beta1**step), nl.add, w)
        for dst, src in ((params, w), (first, m), (second, v)):
            nisa.dma_copy(dst=dst, src=src)
        return params, first, second

    w, g, m = normal(50, 20).astype(BF16), normal(50, 20, seed=1), normal(50, 20, seed=2)
    v = np.abs(normal(50, 20, seed=3))
    config = Adam(decay=0.1)
    wide, m2 = w.astype(np.float64), 0.9 * m + 0.1 * g
    v2 = 0.99 * v + 0.01 * g.astype(np.float64) ** 2
    step = (m2 / (1 - 0.9**3)) / (np.sqrt(v2 / (1 - 0.99**3)) + 1e-8)
    want = wide * (1 - 1e-3) - 1e-2 * step
    out = call(kernel, target, w, g, m, v, step=3, config=config)
    assert out[0] is w and out[1] is m and out[2] is v
    np.testing.assert_allclose(w.astype(np.float64), want, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(m, m2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(v, v2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ALL)
def test_a_convolution_by_overlapping_windows(target):
    """The taps of a depthwise convolution are windows of one padded row, read with strides."""

    def kernel(x, w, stride=1):
        c, n = x.shape
        taps = w.shape[1]
        pad = taps // 2
        row = nl.zeros((c, n + 2 * pad), nl.float32)
        nisa.dma_copy(row[:, pad : pad + n], x)
        width = n + 2 * pad
        m = (n + 2 * pad - taps) // stride + 1
        windows = row.ap([[width, c], [stride, m], [1, taps]])
        weights = nl.load(w)
        product = nl.ndarray((c, m, taps), nl.float32)
        nisa.tensor_tensor(
            product, windows, weights.ap([[taps, c], [0, m], [1, taps]]), op=nl.multiply
        )
        result = nl.ndarray((c, m), nl.float32)
        nisa.tensor_reduce(result, nl.add, product, axis=2)
        out = nl.ndarray((c, m), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, result)
        return out

    x, w = normal(40, 50), normal(40, 5, seed=1)
    padded = np.pad(x.astype(np.float64), ((0, 0), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=1)
    want = np.einsum("cmt,ct->cm", windows, w)
    np.testing.assert_allclose(call(kernel, target, x, w), want, rtol=1e-4, atol=1e-5)
    got = call(kernel, target, x, w, stride=3)
    np.testing.assert_allclose(got, want[:, ::3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ALL)
def test_a_loop_that_ends_when_the_data_says_so(target):
    """Newton's iteration until a tile on the device says that it has converged."""

    def kernel(x):
        a = nl.load(x)
        y, going = nl.full((1, 1), 1.0, nl.float32), nl.full((1, 1), 1, nl.int32)
        error, inverse = nl.ndarray((1, 1), nl.float32), nl.ndarray((1, 1), nl.float32)
        turns = nl.full((1, 1), 0, nl.int32)
        reg = nisa.register_alloc()
        nisa.register_load(reg, going)

        def body(r):
            nisa.reciprocal(inverse, y)
            nisa.tensor_tensor(inverse, inverse, a, nl.multiply)
            nisa.tensor_tensor(error, y, inverse, nl.subtract)
            nisa.tensor_tensor(y, y, inverse, nl.add)
            nisa.tensor_scalar(y, y, nl.multiply, 0.5)
            nisa.tensor_scalar(turns, turns, nl.add, 1)
            nisa.tensor_scalar(going, error, nl.abs, 0.0, op1=nl.greater, operand1=1e-3)
            nisa.register_load(r, going)
            return r

        nl.while_loop(reg, body)
        out = nl.ndarray((1, 1), nl.float32, nl.shared_hbm)
        count = nl.ndarray((1, 1), nl.int32, nl.shared_hbm)
        nisa.dma_copy(out, y)
        nisa.dma_copy(count, turns)
        return out, count

    for value in (2.0, 144.0):
        root, turns = call(kernel, target, np.array([[value]], F32))
        np.testing.assert_allclose(root, value**0.5, rtol=1e-6)
        assert 3 <= turns[0, 0] <= 12
