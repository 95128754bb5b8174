"""What the kernels share on a NeuronCore: constants, two small tiles, and turning rows.

Each kernel keeps its states in its own layout, in fp32, as the output not divided yet, the negated
maximum and the sum; see README.md. Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports
nothing but `nki`.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

MASK = -3.0e38  # added to a logit, it absorbs it: see attention_state/reference.py
LEAST = -3.4028234663852886e38  # the one value that range_select puts where a key is not seen
FLOOR = -1.0e30  # the least max: exp(MASK - FLOOR) is 0, so a row without keys sums to 0
TINY = 1.0e-30  # the least divisor: a row that saw a key sums to about 1 or more

PARTITIONS = 128
BANK = 512  # fp32 numbers a partition of one PSUM bank, and the widest moving operand


def move(dst, src):
    """Copy by DMA between addresses that are known when a kernel is compiled.

    The host makes the descriptors (AWS's DGE reference: lowest latency, for room in HBM). Where the
    mode is left open, NeuronCore-v3 and later let GpSimd make them, one load after the other.
    """
    nisa.dma_copy(dst=dst, src=src, dge_mode=nisa.dge_mode.none)


def copy_with_highest(kept, raw, top):
    """Copy logits [rows, keys] out of PSUM, and every row's largest to `top`, in one pass."""
    nisa.tensor_scalar_reduce(
        dst=kept,
        data=raw,
        op0=nl.multiply,
        operand0=1.0,
        reduce_op=nl.maximum,
        reduce_res=top,
    )


def head_slices(d):
    """Cut a head's d elements to what fits the partitions: a list of (first, size)."""
    slices = []
    for low in range(0, d, PARTITIONS):
        slices.append((low, min(PARTITIONS, d - low)))
    return slices


def offset_grid(rows, columns):
    """int32-valued fp32 tile [rows, columns] holding column - row."""
    grid = nl.ndarray((rows, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=grid, pattern=[[1, columns]], offset=0, channel_multiplier=-1)
    return grid


def diagonal(grid, value, dtype):
    """A [128, 128] tile with `value` on its diagonal, from `offset_grid(128, 128)`."""
    tile = nl.ndarray((PARTITIONS, PARTITIONS), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=tile, data=grid, op0=nl.equal, operand0=0.0, op1=nl.multiply, operand1=value
    )
    return tile


def transpose_rows(chunks, identity, by_scalar=False):
    """Turn up to 512 rows, given as SBUF views [up to 128, d], into one SBUF tile [d, rows].

    ScalarE copies it out of PSUM if `by_scalar`, else VectorE.
    """
    d = chunks[0].shape[1]
    count = 0
    for chunk in chunks:
        count += chunk.shape[0]
    turned = nl.ndarray((d, count), dtype=nl.float32, buffer=nl.psum)
    at = 0
    for chunk in chunks:
        rows = chunk.shape[0]
        nisa.nc_matmul(
            dst=turned[:, at : at + rows],
            stationary=chunk,
            moving=identity[0:rows, 0:rows],
            is_moving_onezero=True,
        )
        at += rows
    tile = nl.ndarray((d, count), dtype=chunks[0].dtype, buffer=nl.sbuf)
    if by_scalar:
        nisa.activation(dst=tile, op=nl.copy, data=turned)
    else:
        nisa.tensor_copy(dst=tile, src=turned)
    return tile
