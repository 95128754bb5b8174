"""Causal attention of whole prompts on a NeuronCore, by online softmax over blocks of 512 keys.

Query positions lie on partitions, 128 a tile. A pass holds the states of up to `query_tiles` tiles
for all p query heads of a kv head; the keys before and inside the pass stream by once, each K and V
tile loaded once for all of them. Blocks above the diagonal are never touched. README.md draws it.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import (
    BANK,
    MASK,
    PARTITIONS,
    accumulate,
    diagonal,
    finish,
    highest_logits,
    load_rows,
    new_state,
    offset_grid,
    transpose_rows,
)


@nki.jit
def flash_attention_kernel(q, k, v, scale, return_state=False, query_tiles=1):
    """Attend B packed prompts of S positions each, causally; all tensors in HBM, dense.

    q              [B, S, h, d]    float32 or bfloat16, as are K and V; d <= 128
    k              [g, d, B·S]     keys, transposed; h a multiple of g
    v              [g, B·S, d]
    scale          compile-time float, > 0
    return_state   also return max and sum, float32 [B, S, h]
    query_tiles    tiles of 128 positions whose states share SBUF (see tuning.py)
    """
    B, S, h, d = q.shape
    g = k.shape[0]
    p = h // g
    out = nl.ndarray((B, S, h, d), dtype=q.dtype, buffer=nl.shared_hbm)
    out_max = None
    out_sum = None
    if return_state:
        out_max = nl.ndarray((B, S, h), dtype=nl.float32, buffer=nl.shared_hbm)
        out_sum = nl.ndarray((B, S, h), dtype=nl.float32, buffer=nl.shared_hbm)
    constants = make_constants(q.dtype)

    for prompt in range(B):
        for kv in range(g):
            for first in range(0, S, query_tiles * PARTITIONS):
                last = min(first + query_tiles * PARTITIONS, S)
                starts = range(first, last, PARTITIONS)
                queries = []
                states = []
                for start in starts:
                    rows = min(PARTITIONS, S - start)
                    queries.append(
                        load_queries(q, prompt, start, rows, kv, p, constants["identity"])
                    )
                    states.append(new_state(rows, p, d))
                for block in range(0, last, BANK):
                    causal_block(
                        states, queries, starts, k, v, B, prompt, kv, block, scale, constants
                    )
                for i in range(len(starts)):
                    tile = (prompt, starts[i], kv * p)
                    store(out, finish(states[i], q.dtype), tile, d)
                    if return_state:
                        store(out_max, highest_logits(states[i]), tile, 1)
                        store(out_sum, states[i][2], tile, 1)

    if return_state:
        return out, out_max, out_sum
    return out


def make_constants(dtype):
    """Tiles that every block uses: an identity, MASK on a diagonal, what lies above one."""
    grid = offset_grid(PARTITIONS, PARTITIONS)
    future = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=future, data=grid, op0=nl.greater, operand0=0.0)
    return {
        "identity": diagonal(grid, 1.0, dtype),
        "mask_diagonal": diagonal(grid, MASK, nl.bfloat16),
        "future": future,
    }


def load_queries(q, prompt, start, rows, kv, p, identity):
    """Queries of a tile with d on partitions: a view [d, rows] for each query head of `kv`."""
    _, S, h, d = q.shape
    loaded = nl.ndarray((rows, p * d), dtype=q.dtype, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=loaded,
        src=q.ap(
            pattern=[[h * d, rows], [1, p * d]], offset=((prompt * S + start) * h + kv * p) * d
        ),
    )
    turned = []
    together = BANK // rows  # heads whose transposes share a PSUM bank
    for i in range(0, p, together):
        count = min(together, p - i)
        chunks = []
        for j in range(count):
            chunks.append(loaded[:, (i + j) * d : (i + j + 1) * d])
        columns = transpose_rows(chunks, identity)
        for j in range(count):
            turned.append(columns[:, j * rows : (j + 1) * rows])
    return turned


def causal_block(states, queries, starts, k, v, B, prompt, kv, block, scale, constants):
    """Fold keys block..block+512 into the states of the tiles that may see them."""
    d = k.shape[1]
    slots = k.shape[2]
    S = slots // B
    size = min(BANK, S - block)
    keys = nl.ndarray((d, size), dtype=k.dtype, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=keys,
        src=k.ap(pattern=[[slots, d], [1, size]], offset=kv * d * slots + prompt * S + block),
    )
    values = load_rows(v, kv, 1, prompt * S + block, size)[0]
    for i in range(len(starts)):
        start = starts[i]
        rows = queries[i][0].shape[1]
        # The tile's last position is start + rows - 1: keys behind it are never multiplied.
        seen = min(size, start + rows - block)
        if seen > 0:
            chunks = values[0 : (seen + PARTITIONS - 1) // PARTITIONS]
            for head in range(len(queries[i])):
                logits = nl.ndarray((rows, seen), dtype=nl.float32, buffer=nl.psum)
                nisa.nc_matmul(
                    dst=logits,
                    stationary=queries[i][head],
                    moving=keys[:, 0:seen],
                )
                if start < block + seen:
                    # The tile's own keys, the last `rows` columns: mask above the diagonal.
                    nisa.nc_matmul(
                        dst=logits[:, seen - rows : seen],
                        stationary=constants["mask_diagonal"][0:rows, 0:rows],
                        moving=constants["future"][0:rows, 0:rows],
                    )
                accumulate(
                    states[i], head, logits, chunks, constants["identity"], scale, block == 0
                )


def store(out, tile_out, tile, width):
    """Store an SBUF tile [rows, p·width] to rows of [B, S, h, width] (or [B, S, h] for width 1)."""
    prompt, start, head = tile
    S = out.shape[1]
    h = out.shape[2]
    rows = tile_out.shape[0]
    nisa.dma_copy(
        dst=out.ap(
            pattern=[[h * width, rows], [1, tile_out.shape[1]]],
            offset=((prompt * S + start) * h + head) * width,
        ),
        src=tile_out,
    )
