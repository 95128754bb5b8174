"""What an instruction costs: microseconds of small ones, and large tiles against plain NumPy.

Run as ``python -m tests.nki_sim.benchmark``; ``test_benchmark.py`` holds it to the bars of the
design: at most 40 microseconds (median) for small tiles, at most 3 times NumPy for large ones.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl

BF16 = ml_dtypes.bfloat16


def _median_us(call: Callable[[], Any], repeat: int) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def small(repeat: int = 300) -> dict[str, float]:
    """Median microseconds of each instruction on [128, 16] tiles, some on fresh slices."""
    found: dict[str, float] = {}

    def kernel(x: Any, table: Any) -> None:
        a, b = nl.load(x), nl.zeros((128, 16), nl.float32)
        c = nl.zeros((128, 1), nl.float32)
        half = nl.zeros((128, 16), nl.bfloat16)
        mask = nl.zeros((128, 16), nl.uint8)
        psum = nl.ndarray((16, 16), nl.float32, nl.psum)
        turned = nl.ndarray((16, 128), nl.float32, nl.psum)
        rows = nl.zeros((128, 1), nl.int32)
        cases: dict[str, Callable[[], Any]] = {
            "ndarray": lambda: nl.ndarray((128, 16), nl.float32),
            "slice": lambda: a[:, 0:8],
            "dma_copy": lambda: nisa.dma_copy(b, x),
            "dma_copy slices": lambda: nisa.dma_copy(b[:, 0:8], x[:, 8:16]),
            "dma_copy gather": lambda: nisa.dma_copy(b, table.vector_select(0, rows)),
            "tensor_copy": lambda: nisa.tensor_copy(b, a),
            "tensor_copy slices": lambda: nisa.tensor_copy(b[:, 0:8], a[:, 8:16]),
            "tensor_copy bf16": lambda: nisa.tensor_copy(half, a),
            "memset": lambda: nisa.memset(b, 0.0),
            "tensor_tensor": lambda: nisa.tensor_tensor(b, a, a, nl.add),
            "tensor_scalar": lambda: nisa.tensor_scalar(b, a, nl.multiply, 2.0, False, nl.add, 1.0),
            "tensor_scalar vector": lambda: nisa.tensor_scalar(b, a, nl.multiply, c),
            "scalar_tensor_tensor": lambda: nisa.scalar_tensor_tensor(
                b, a, nl.multiply, c, nl.add, a
            ),
            "tensor_reduce": lambda: nisa.tensor_reduce(c, nl.maximum, a, 1),
            "tensor_scalar_reduce": lambda: nisa.tensor_scalar_reduce(b, a, nl.add, 1.0, nl.add, c),
            "activation": lambda: nisa.activation(b, nl.exp, a, bias=c, scale=2.0),
            "activation_reduce": lambda: nisa.activation_reduce(b, nl.exp, a, nl.add, c),
            "reciprocal": lambda: nisa.reciprocal(b, a),
            "select": lambda: nisa.tensor_copy_predicated(b, a, mask),
            "iota": lambda: nisa.iota(b, [[1, 16]], 0, 1),
            "affine_select": lambda: nisa.affine_select(b, [[1, 16]], -1, a, -1e9, nl.less_equal),
            "max8": lambda: nisa.max8(b[:, 0:8], a),
            "nc_matmul": lambda: nisa.nc_matmul(psum, a, a),
            "nc_transpose": lambda: nisa.nc_transpose(turned, a),
        }
        for name, call in cases.items():
            found[name] = _median_us(call, repeat)

    x = np.ones((128, 16), np.float32)
    nki_sim.simulate(kernel, target="trn1")(x, np.ones((64, 16), np.float32))
    return {**found, **_rarer(repeat)}


def _rarer(repeat: int) -> dict[str, float]:
    """The instructions that ``small`` leaves out, on the same sizes."""
    found: dict[str, float] = {}

    def kernel(x: Any) -> None:
        a, b, c = nl.load(x), nl.zeros((128, 16), nl.float32), nl.zeros((128, 1), nl.float32)
        eight, places = nl.zeros((128, 8), nl.float32), nl.zeros((128, 8), nl.uint32)
        mask, words = nl.zeros((128, 16), nl.uint8), nl.zeros((128, 16), nl.uint32)
        stats, moments = nl.zeros((128, 6), nl.float32), nl.zeros((128, 2), nl.float32)
        low, near = nl.zeros((128, 16), nl.bfloat16), nl.zeros((128, 1), nl.uint16)
        best, where = nl.zeros((128, 8), nl.bfloat16), nl.zeros((128, 8), nl.uint32)
        ints, count = nl.zeros((128, 16), nl.int32), nl.zeros((128, 17), nl.int32)
        ids, bounds = nl.zeros((1, 16), nl.int32), nl.zeros((1, 2, 16), nl.int32)
        nisa.iota(eight, [[1, 8]])
        state, one = nl.zeros((128, 6), nl.uint32), nl.zeros((1, 1), nl.int32)
        row, turned = nl.zeros((1, 16), nl.float32), nl.zeros((16, 128), nl.float32)
        register = nisa.register_alloc(0)
        shuffle = [*range(31, -1, -1)]
        cases: dict[str, Callable[[], Any]] = {
            "bn_stats": lambda: nisa.bn_stats(stats, a),
            "bn_aggr": lambda: nisa.bn_aggr(moments, stats),
            "dma_compute": lambda: nisa.dma_compute(b, [a, a], nl.add),
            "dma_transpose": lambda: nisa.dma_transpose(turned, x),
            "dropout": lambda: nisa.dropout(b, a, 0.5),
            "local_gather": lambda: nisa.local_gather(b, a, near),
            "nc_find_index8": lambda: nisa.nc_find_index8(places, a, eight),
            "nc_match_replace8": lambda: nisa.nc_match_replace8(b, a, eight, 0.0),
            "nc_n_gather": lambda: nisa.nc_n_gather(b, a, words),
            "nc_stream_shuffle": lambda: nisa.nc_stream_shuffle(b, a, shuffle),
            "nonzero_with_count": lambda: nisa.nonzero_with_count(count, ints),
            "rand_get_state": lambda: nisa.rand_get_state(state),
            "rand_set_state": lambda: nisa.rand_set_state(state),
            "range_select": lambda: nisa.range_select(b, a, nl.greater, nl.less, c, c),
            "register_load": lambda: nisa.register_load(register, one),
            "register_move": lambda: nisa.register_move(register, 3),
            "register_store": lambda: nisa.register_store(one, register),
            "rng": lambda: nisa.rng(words),
            "select_reduce": lambda: nisa.select_reduce(b, mask, a, 0.0),
            "sequence_bounds": lambda: nisa.sequence_bounds(bounds, ids),
            "set_rng_seed": lambda: nisa.set_rng_seed(one),
            "tensor_partition_reduce": lambda: nisa.tensor_partition_reduce(row, nl.add, a),
            "tensor_scalar_cumulative": lambda: nisa.tensor_scalar_cumulative(
                b, a, nl.add, nl.add, 1.0
            ),
            "tensor_tensor_scan": lambda: nisa.tensor_tensor_scan(
                b, a, a, 0.0, nl.multiply, nl.add
            ),
            "topk": lambda: nisa.topk(best, where, low, 256),
        }
        for name, call in cases.items():
            found[name] = _median_us(call, repeat)

    nki_sim.simulate(kernel, target="trn2")(np.ones((128, 16), np.float32))
    return found


def large(repeat: int = 30) -> dict[str, tuple[float, float]]:
    """Median microseconds on [128, 2048] tiles: (simulator, the same arithmetic in NumPy)."""
    found: dict[str, tuple[float, float]] = {}
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 2048)).astype(np.float32)
    h = x.astype(BF16)
    w = rng.standard_normal((128, 128)).astype(np.float32)
    wide, out, bf = np.empty_like(x), np.empty_like(x), np.empty_like(h)
    small_out = np.zeros((128, 512), np.float32)

    def kernel(xs: Any, hs: Any, ws: Any) -> None:
        a, b, c = nl.load(xs), nl.load(hs), nl.load(ws)
        o, p = nl.zeros((128, 2048), nl.float32), nl.zeros((128, 2048), nl.bfloat16)
        r = nl.zeros((128, 1), nl.float32)
        psum = nl.ndarray((128, 512), nl.float32, nl.psum)
        bf_w = nl.copy(c, dtype=nl.bfloat16)
        cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "dma_copy": (lambda: nisa.dma_copy(o, xs), lambda: np.copyto(out, x)),
            "tensor_copy to bf16": (
                lambda: nisa.tensor_copy(p, a),
                lambda: np.copyto(bf, x.astype(BF16)),
            ),
            "tensor_tensor": (
                lambda: nisa.tensor_tensor(o, a, a, nl.multiply),
                lambda: np.multiply(x, x, out=out),
            ),
            "tensor_tensor bf16": (
                lambda: nisa.tensor_tensor(p, b, b, nl.add),
                lambda: np.copyto(bf, (h.astype(np.float32) + h.astype(np.float32)).astype(BF16)),
            ),
            "tensor_scalar": (
                lambda: nisa.tensor_scalar(o, a, nl.multiply, 2.0, False, nl.add, 1.0),
                lambda: np.add(np.multiply(x, np.float32(2), out=wide), np.float32(1), out=out),
            ),
            "activation exp bf16": (
                lambda: nisa.activation(p, nl.exp, b, scale=0.5),
                lambda: np.copyto(bf, np.exp(h.astype(np.float32) * np.float32(0.5)).astype(BF16)),
            ),
            "tensor_reduce": (
                lambda: nisa.tensor_reduce(r, nl.maximum, a, 1),
                lambda: x.max(axis=1),
            ),
            "nc_matmul": (
                lambda: nisa.nc_matmul(psum, c, a[:, 0:512], accumulate=False),
                lambda: np.copyto(small_out, np.matmul(w.T, x[:, 0:512])),
            ),
            "nc_matmul bf16": (
                lambda: nisa.nc_matmul(psum, bf_w, b[:, 0:512], accumulate=False),
                lambda: np.copyto(
                    small_out,
                    np.matmul(w.astype(BF16).astype(np.float32).T, h[:, 0:512].astype(np.float32)),
                ),
            ),
        }
        for name, (ours, numpy) in cases.items():
            found[name] = (_median_us(ours, repeat), _median_us(numpy, repeat))

    nki_sim.simulate(kernel, target="trn1")(x, h, w)
    return found


def main() -> None:
    """Print both tables."""
    print(f"{'small [128, 16]':28s} median us")
    for name, us in small().items():
        print(f"{name:28s} {us:9.1f}")
    print(f"\n{'large [128, 2048]':28s} {'us':>9s} {'NumPy':>9s}  ratio")
    for name, (ours, numpy) in large().items():
        print(f"{name:28s} {ours:9.1f} {numpy:9.1f}  {ours / numpy:5.2f}")


if __name__ == "__main__":
    main()
