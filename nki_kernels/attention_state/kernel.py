"""Attention states on a NeuronCore: the pieces that the decode and prefill kernels are made of.

A state covers up to 128 query rows, one a partition, and some kv or query heads side by side in the
free dimension. It lives in SBUF in fp32 as three tiles:

    o       [R, heads·d]   Σ exp(s - max)·v, not divided yet
    negmax  [R, heads]     -max of the scaled logits: the bias that ScalarE's exponential wants
    total   [R, heads]     Σ exp(s - max)

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7: fp32 PSUM destinations, tiles that start at
partition 0, transposes as products with an identity. PSUM tiles are fresh where a sum begins, so
that the first product into one overwrites and the later ones add, as nc_matmul does by default (its
`accumulate` keyword came with 0.3). Imports nothing but `nki`.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

MASK = -3.0e38  # added to a logit, it absorbs it: see attention_state/reference.py
FLOOR = -1.0e30  # the least max: exp(MASK - FLOOR) is 0, so a row without keys sums to 0
TINY = 1.0e-30  # the least divisor: a row that saw a key sums to about 1 or more

PARTITIONS = 128
BANK = 512  # fp32 numbers a partition of one PSUM bank, and the widest moving operand


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


def new_state(rows, heads, d):
    """An unwritten state of `rows` queries; the first `accumulate` of each head fills it."""
    o = nl.ndarray((rows, heads * d), dtype=nl.float32, buffer=nl.sbuf)
    negmax = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf)
    return (o, negmax, total)


def load_rows(source, head, heads, start, count):
    """Load rows start..start+count of `heads` heads of an HBM tensor [g, N, d], 128 rows a chunk.

    Returns, for each head, the list of its chunks as SBUF views [up to 128, d]. One DMA brings all
    whole chunks of all heads, a second one what is left over.
    """
    slots = source.shape[1]
    d = source.shape[2]
    whole = count // PARTITIONS
    left = count - whole * PARTITIONS
    offset = (head * slots + start) * d
    chunks: list = []
    for _ in range(heads):
        chunks.append([])
    if whole > 0:
        tile = nl.ndarray((PARTITIONS, heads * whole * d), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=tile,
            src=source.ap(
                pattern=[[d, PARTITIONS], [slots * d, heads], [PARTITIONS * d, whole], [1, d]],
                offset=offset,
            ),
        )
        for i in range(heads):
            for c in range(whole):
                at = (i * whole + c) * d
                chunks[i].append(tile[:, at : at + d])
    if left > 0:
        rest = nl.ndarray((left, heads * d), dtype=source.dtype, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=rest,
            src=source.ap(
                pattern=[[d, left], [slots * d, heads], [1, d]],
                offset=offset + whole * PARTITIONS * d,
            ),
        )
        for i in range(heads):
            chunks[i].append(rest[:, i * d : (i + 1) * d])
    return chunks


def transpose_rows(chunks, identity):
    """Turn up to 512 rows, given as SBUF views [up to 128, d], into one SBUF tile [d, rows]."""
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
    nisa.tensor_copy(dst=tile, src=turned)
    return tile


def accumulate(state, head, logits, values, identity, scale, fresh):
    """Fold one block of keys into column block `head` of a state, by online softmax.

    logits    [R, keys] in PSUM, unscaled, MASK added where a key must not be seen; keys <= 512
    values    the keys' V rows as SBUF views [up to 128, d], 128 keys each but for the last
    identity  [128, 128] of the values' dtype
    fresh     whether this is the state's first block: then it overwrites

    The exponentials are rounded to the values' dtype for the product with V; their sum is not.
    """
    o, negmax, total = state
    rows = logits.shape[0]
    keys = logits.shape[1]
    d = values[0].shape[1]
    o_head = o[:, head * d : (head + 1) * d]
    negmax_head = negmax[:, head : head + 1]
    total_head = total[:, head : head + 1]

    # shift = -max(scale·logits, FLOOR, max so far)
    highest = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=logits, axis=1)
    if fresh:
        shift = negmax_head
        block_sum = total_head
        nisa.tensor_scalar(
            dst=shift,
            data=highest,
            op0=nl.multiply,
            operand0=-scale,
            op1=nl.minimum,
            operand1=-FLOOR,
        )
    else:
        shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        block_sum = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=shift,
            data=highest,
            op0=nl.multiply,
            operand0=-scale,
            op1=nl.minimum,
            operand1=negmax_head,
        )

    weights = nl.ndarray((rows, keys), dtype=identity.dtype, buffer=nl.sbuf)
    nisa.activation(
        dst=weights,
        op=nl.exp,
        data=logits,
        bias=shift,
        scale=scale,
        reduce_op=nl.add,
        reduce_res=block_sum,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    product = weighted_values(weights, values, identity)

    if fresh:
        nisa.tensor_copy(dst=o_head, src=product)
    else:
        decay = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)  # exp(old max - new max)
        nisa.activation(dst=decay, op=nl.exp, data=negmax_head, bias=shift, scale=-1.0)
        nisa.scalar_tensor_tensor(
            dst=total_head,
            data=total_head,
            op0=nl.multiply,
            operand0=decay,
            op1=nl.add,
            operand1=block_sum,
        )
        nisa.scalar_tensor_tensor(
            dst=o_head, data=o_head, op0=nl.multiply, operand0=decay, op1=nl.add, operand1=product
        )
        nisa.tensor_copy(dst=negmax_head, src=shift)


def weighted_values(weights, values, identity):
    """weights [R, keys] @ V, as a PSUM tile [R, d]; keys come to the partitions 128 at a time."""
    rows = weights.shape[0]
    keys = weights.shape[1]
    d = values[0].shape[1]
    chunks = len(values)
    turned = nl.ndarray((PARTITIONS, chunks * rows), dtype=nl.float32, buffer=nl.psum)
    for c in range(chunks):
        size = values[c].shape[0]
        nisa.nc_matmul(
            dst=turned[0:size, c * rows : (c + 1) * rows],
            stationary=weights[:, c * PARTITIONS : c * PARTITIONS + size],
            moving=identity[0:rows, 0:rows],
            is_moving_onezero=True,
        )
    columns = nl.ndarray((PARTITIONS, chunks * rows), dtype=identity.dtype, buffer=nl.sbuf)
    whole = keys // PARTITIONS * rows  # columns that fill all partitions
    if whole > 0:
        nisa.tensor_copy(dst=columns[:, 0:whole], src=turned[:, 0:whole])
    if whole < chunks * rows:
        size = values[chunks - 1].shape[0]
        nisa.tensor_copy(
            dst=columns[0:size, whole : chunks * rows], src=turned[0:size, whole : chunks * rows]
        )

    product = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.psum)
    for c in range(chunks):
        size = values[c].shape[0]
        nisa.nc_matmul(
            dst=product,
            stationary=columns[0:size, c * rows : (c + 1) * rows],
            moving=values[c],
        )
    return product


def finish(state, dtype):
    """The attention output o / total as an SBUF tile [R, heads·d]; 0 for a row that saw no key."""
    o, _, total = state
    rows = total.shape[0]
    heads = total.shape[1]
    d = o.shape[1] // heads
    inverse = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=inverse, data=total, op0=nl.maximum, operand0=TINY)
    nisa.reciprocal(dst=inverse, data=inverse)
    out = nl.ndarray((rows, heads * d), dtype=dtype, buffer=nl.sbuf)
    for i in range(heads):
        nisa.tensor_scalar(
            dst=out[:, i * d : (i + 1) * d],
            data=o[:, i * d : (i + 1) * d],
            op0=nl.multiply,
            operand0=inverse[:, i : i + 1],
        )
    return out


def highest_logits(state):
    """max [R, heads] in fp32 as a caller sees it: MASK for a row that saw no key."""
    _, negmax, total = state
    rows = total.shape[0]
    heads = total.shape[1]
    none = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=none, data=total, op0=nl.equal, operand0=0.0, op1=nl.multiply, operand1=MASK
    )
    top = nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=top, data=negmax, op0=nl.multiply, operand0=-1.0, op1=nl.add, operand1=none
    )
    return top
