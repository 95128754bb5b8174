"""Pairs of kernels of which one must be faster: the model has to agree at every end of its
constants."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nki_sim.isa as nisa
from nki_sim.timeline import benchmarks as b
from nki_sim.timeline import faster, profile
from tests.nki_sim.timeline import kernels as k

pytestmark = pytest.mark.sim

BF16, FP32 = ml_dtypes.bfloat16, np.float32


def array(*shape: int, dtype: Any = FP32) -> np.ndarray:
    return np.empty(shape, dtype)


def pair(dtype: Any = BF16, m: int = 512, n: int = 2048, depth: int = 1024) -> tuple[Any, ...]:
    return array(depth, m, dtype=dtype), array(depth, n, dtype=dtype)


OPTIMISED = partial(b.matmul_optimised, m_block=4, n_block=2, k_block=4)
WIDE = (array(256, 4096),)
TILE = (array(128, 512),)

# name, target, fast kernel, its arguments, slow kernel, its arguments
PAIRS: list[tuple[str, str, Any, tuple[Any, ...], Any, tuple[Any, ...]]] = [
    ("hoisted loads", "trn1", b.matmul_hoisted, pair(), b.matmul_tiled, pair()),
    ("hoisted loads", "trn2", b.matmul_hoisted, pair(), b.matmul_tiled, pair()),
    ("blocked M, N", "trn1", b.matmul_blocked, pair(), b.matmul_hoisted, pair()),
    ("blocked K too", "trn1", OPTIMISED, pair(), b.matmul_tiled, pair()),
    ("bf16 product", "trn1", OPTIMISED, pair(), OPTIMISED, pair(FP32)),
    ("bf16 product", "trn2", b.matmul_blocked, pair(), b.matmul_blocked, pair(FP32)),
    ("bf16 copy", "trn1", partial(k.copy_rows, columns=1024), (array(256, 4096, dtype=BF16),),
     partial(k.copy_rows, columns=1024), WIDE),
    ("4 KiB against 256 B rows", "trn1", partial(k.copy_rows, columns=1024), WIDE,
     partial(k.copy_rows, columns=64), WIDE),
    ("4 KiB against 256 B rows", "trn2", partial(k.copy_rows, columns=1024), WIDE,
     partial(k.copy_rows, columns=64), WIDE),
    ("4 KiB against 1 KiB rows", "trn3", partial(k.copy_rows, columns=1024), WIDE,
     partial(k.copy_rows, columns=256), WIDE),
    ("static descriptors for small tiles", "trn2",
     partial(k.copy_rows, columns=64, dge=nisa.dge_mode.none), WIDE,
     partial(k.copy_rows, columns=64, dge=nisa.dge_mode.swdge), WIDE),
    ("all partitions", "trn1", partial(k.copy_partitions, partitions=128), WIDE,
     partial(k.copy_partitions, partitions=32), WIDE),
    ("contiguous load and TensorE transpose", "trn1", partial(k.load_transposed, by_dma=False),
     (array(128, 128),), partial(k.load_transposed, by_dma=True), (array(128, 128),)),
    ("two buffers", "trn1", partial(k.buffered, buffers=2), (array(128, 16384),),
     partial(k.buffered, buffers=1), (array(128, 16384),)),
    ("three buffers", "trn2", partial(k.buffered, buffers=3), (array(128, 16384),),
     partial(k.buffered, buffers=1), (array(128, 16384),)),
    ("long vector instructions", "trn1", partial(k.vector_pieces, width=2048),
     (array(128, 4096),), partial(k.vector_pieces, width=64), (array(128, 4096),)),
    ("bf16 vector performance mode", "trn2", partial(k.vector_copies, times=20),
     (array(128, 512, dtype=BF16),), partial(k.vector_copies, times=20), TILE),
    ("contiguous in performance mode", "trn2", partial(k.vector_copies, times=20),
     (array(128, 1024, dtype=BF16),), partial(k.vector_copies, times=20, step=2),
     (array(128, 1024, dtype=BF16),)),
    ("stride within 16 bytes", "trn1", partial(k.vector_copies, times=20, step=4),
     (array(128, 4096),), partial(k.vector_copies, times=20, step=8), (array(128, 4096),)),
    ("one input in PSUM", "trn1", partial(k.vector_add, from_psum=True), TILE,
     partial(k.vector_add, from_psum=False), TILE),
    ("independent vector instructions", "trn1",
     partial(k.chain, engine="vector", dependent=False), (array(128, 32),),
     partial(k.chain, engine="vector", dependent=True), (array(128, 32),)),
    ("independent activations", "trn1", partial(k.chain, engine="scalar", dependent=False),
     (array(128, 32),), partial(k.chain, engine="scalar", dependent=True), (array(128, 32),)),
    ("two operators in one pass", "trn1", partial(k.fused_scalar, fused=True), TILE,
     partial(k.fused_scalar, fused=False), TILE),
    ("sums on the way through ScalarE", "trn1", partial(k.row_sums, fused=True),
     (array(128, 2048),), partial(k.row_sums, fused=False), (array(128, 2048),)),
    ("one activation table", "trn1", partial(k.functions, alternate=False), TILE,
     partial(k.functions, alternate=True), TILE),
    ("reciprocal on ScalarE", "trn1", partial(k.reciprocals, on_scalar=True), (array(128, 2048),),
     partial(k.reciprocals, on_scalar=False), (array(128, 2048),)),
    ("PSUM emptied by two engines", "trn2", partial(k.evacuate, scalar_share=2), TILE,
     partial(k.evacuate, scalar_share=0), TILE),
    ("PSUM port left to one engine", "trn1",
     partial(k.evacuate, scalar_share=2, scalar_in_sbuf=True), TILE,
     partial(k.evacuate, scalar_share=2), TILE),
    ("512 columns a matmul", "trn1", partial(k.products, width=512),
     (array(128, 128, dtype=BF16), array(128, 512, dtype=BF16)),
     partial(k.products, width=32), (array(128, 128, dtype=BF16), array(128, 512, dtype=BF16))),
    ("the vector moves", "trn1", partial(k.matrix_vector, vector_moves=True),
     (array(128, 2048, dtype=BF16), array(128, 1, dtype=BF16)),
     partial(k.matrix_vector, vector_moves=False),
     (array(128, 2048, dtype=BF16), array(128, 1, dtype=BF16))),
    ("few passes", "trn1", partial(k.softmax, passes="few"), (array(512, 2048),),
     partial(k.softmax, passes="many"), (array(512, 2048),)),
]  # fmt: skip


@pytest.mark.parametrize("case", PAIRS, ids=[f"{c[0]} on {c[1]}" for c in PAIRS])
def test_faster_kernel_is_predicted_faster(case: tuple[Any, ...]) -> None:
    _, target, fast, fast_arrays, slow, slow_arrays = case
    a = profile(fast, *fast_arrays, target=target, shapes_only=True)
    c = profile(slow, *slow_arrays, target=target, shapes_only=True)
    assert faster(a, c) == (True, True), f"{a!r} against {c!r}"


def test_two_cores_share_the_rows() -> None:
    x = array(1024, 2048)
    one = profile(k.halves, x, target="trn2", shapes_only=True)
    two = profile(k.halves, x, target="trn2", lnc=2, shapes_only=True)
    assert two.total_us < 0.65 * one.total_us
    assert two.bytes == one.bytes


def test_psum_port_is_gen2s_alone() -> None:
    """On gen3 it does not matter whether ScalarE reads PSUM or SBUF."""
    same = [
        profile(
            partial(k.evacuate, scalar_share=2, scalar_in_sbuf=in_sbuf),
            *TILE,
            target="trn2",
            shapes_only=True,
        ).total_us
        for in_sbuf in (True, False)
    ]
    assert same[0] == pytest.approx(same[1], rel=0.06)


def test_loads_run_ahead_only_as_far_as_sbuf_is_free() -> None:
    """With tiles of which only one fits, nothing overlaps; with eight, loads hide compute."""

    def kernel(x: Any, width: int) -> Any:
        out = k.nl.ndarray(x.shape, x.dtype, k.nl.shared_hbm)
        for c in range(0, x.shape[1], width):
            made = k.tile(x[:, c : c + width])
            nisa.activation(made, k.nl.exp, made)
            nisa.dma_copy(out[:, c : c + width], made)
        return out

    x = array(128, 8 * 40960)
    crowded = profile(partial(kernel, width=40960), x, target="trn1", shapes_only=True)
    roomy = profile(partial(kernel, width=4096), x, target="trn1", shapes_only=True)
    assert roomy.total_us < 0.9 * crowded.total_us
    assert crowded.stalls["dma"]["free SBUF or PSUM"] > 0


if __name__ == "__main__":  # the table in docs/timeline.md
    print("| faster because of | target | us | instead of us | low to low | high to high |")
    print("|---|---|---|---|---|---|")
    for name, target, fast, fast_arrays, slow, slow_arrays in PAIRS:
        one = profile(fast, *fast_arrays, target=target, shapes_only=True)
        two = profile(slow, *slow_arrays, target=target, shapes_only=True)
        print(
            f"| {name} | {target} | {one.total_us:.1f} | {two.total_us:.1f} "
            f"| {two.low_us / one.low_us:.2f} x | {two.high_us / one.high_us:.2f} x |"
        )
