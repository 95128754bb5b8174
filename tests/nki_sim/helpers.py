"""Small kernels around one instruction, for the tests of the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl

BF16 = ml_dtypes.bfloat16


def apply(
    body: Callable[..., Any],
    *arrays: np.ndarray,
    out: Sequence[tuple[tuple[int, ...], Any]],
    target: str = "trn1",
    dst_buffer: Any = nl.sbuf,
    trace: nki_sim.Trace | None = None,
    **options: Any,
) -> list[np.ndarray]:
    """Load ``arrays`` into SBUF, run ``body(*dst, *tiles)``, and return the dst tiles.

    Args:
        out: (shape, dtype) of each destination tile.
        dst_buffer: where the destinations live.
    """

    def kernel(*inputs: Any) -> tuple[Any, ...]:
        tiles = []
        for x in inputs:
            tile = nl.ndarray(x.shape, x.dtype, nl.sbuf)
            nisa.dma_copy(tile, x)
            tiles.append(tile)
        dsts = [nl.ndarray(shape, dtype, dst_buffer) for shape, dtype in out]
        body(*dsts, *tiles)
        results = []
        for dst in dsts:
            if dst.buffer is nl.psum:
                copy = nl.ndarray(dst.shape, dst.dtype, nl.sbuf)
                nisa.tensor_copy(copy, dst)
                dst = copy
            result = nl.ndarray(dst.shape, dst.dtype, nl.shared_hbm)
            nisa.dma_copy(result, dst)
            results.append(result)
        return tuple(results)

    return list(nki_sim.simulate(kernel, target=target, trace=trace, **options)(*arrays))


def run(body: Callable[..., Any], *arrays: Any, target: str = "trn1", **options: Any) -> Any:
    """Run ``body`` as a kernel on the arrays."""
    return nki_sim.simulate(body, target=target, **options)(*arrays)


def rng(seed: int = 0) -> np.random.Generator:
    """The tests' random numbers."""
    return np.random.default_rng(seed)


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """Normally distributed numbers."""
    return rng(seed).standard_normal(shape).astype(dtype)
