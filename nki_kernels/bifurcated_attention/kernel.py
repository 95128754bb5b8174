"""Decode attention with a shared context, on a NeuronCore: a context state, a suffix state, a
merge.

Query rows (sample, token, head of one kv head) lie on partitions, at most 128 a row tile. Against
the context all row tiles of a group meet each K and V tile while it is in SBUF, so the context is
read from HBM once a pass. Against the suffixes each row tile meets only its own samples' slots.
Logits never leave the core. README.md draws it.

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
    merge,
    new_state,
    offset_grid,
    transpose_rows,
)


@nki.jit
def bifurcated_attention_kernel(
    q,
    k_ctx,
    v_ctx,
    k_suf,
    v_suf,
    context_len,
    suffix_len,
    scale,
    return_state=False,
    heads_per_pass=1,
    tiles_per_pass=1,
):
    """Attend r samples of each of G prompts; all tensors in HBM, dense.

    q              [G, r, n, h, d]    float32 or bfloat16, as are K and V; d <= 128
    k_ctx          [g, d, G·S_ctx]    context keys, transposed; h a multiple of g
    v_ctx          [g, G·S_ctx, d]
    k_suf, v_suf   [g, G·r·S_dec, d]  rows of sample (j, i) from (j·r + i)·S_dec
    context_len    int32 [G]          live context slots of a group
    suffix_len     int32 [G, r]       live suffix rows of a sample, this step's n tokens included
    scale          compile-time float, > 0
    return_state   also return max and sum, float32 [G, r, n, h]
    heads_per_pass, tiles_per_pass    kv heads and row tiles whose states share SBUF (see tuning.py)

    Query token t sees the whole context, and its suffix up to row suffix_len - (n - 1 - t).
    """
    G, r, n, h, d = q.shape
    g = k_ctx.shape[0]
    out = nl.ndarray((G, r, n, h, d), dtype=q.dtype, buffer=nl.shared_hbm)
    out_max = None
    out_sum = None
    if return_state:
        out_max = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)
        out_sum = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)

    constants = make_constants(q.dtype)
    identity = constants["identity"]
    tiles = row_tiles(r, n, h // g)
    members = sample_rows(tiles[0], n, h // g)

    for group in range(G):
        for first in range(0, len(tiles), tiles_per_pass):
            batch = tiles[first : min(first + tiles_per_pass, len(tiles))]
            for kv in range(0, g, heads_per_pass):
                heads = min(heads_per_pass, g - kv)
                queries = []
                states = []
                for tile in batch:
                    queries.append(load_queries(q, group, tile, kv, heads, g, identity))
                    states.append(new_state(tile_rows(tile), heads, d))
                context_states(
                    states, queries, k_ctx, v_ctx, context_len, group, kv, heads, scale, constants
                )
                for i in range(len(batch)):
                    suffix = suffix_state(
                        queries[i],
                        k_suf,
                        v_suf,
                        suffix_len,
                        group,
                        batch[i],
                        members,
                        n,
                        kv,
                        heads,
                        scale,
                        constants,
                    )
                    whole = merge(states[i], suffix)
                    store_heads(out, finish(whole, q.dtype), group, batch[i], kv, heads, g)
                    if return_state:
                        top = highest_logits(whole)
                        store_rows(out_max, top, group, batch[i], kv, heads, g)
                        store_rows(out_sum, whole[2], group, batch[i], kv, heads, g)

    if return_state:
        return out, out_max, out_sum
    return out


def make_constants(dtype):
    """Tiles that every group uses: an identity, the two ways to add MASK, and column numbers."""
    grid = offset_grid(PARTITIONS, PARTITIONS)
    # Stationary [1, R]: adds MASK to all rows where the moving row [1, keys] is 1.
    mask_row = nl.ndarray((1, PARTITIONS), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.memset(dst=mask_row, value=MASK)
    # [R, 512], column number; counts to 512 are exact in fp32.
    columns = nl.ndarray((PARTITIONS, BANK), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=columns, pattern=[[1, BANK]], offset=0, channel_multiplier=0)
    return {
        "identity": diagonal(grid, 1.0, dtype),
        # Stationary [R, R]: adds MASK to row i where row i of the moving tile [R, keys] is 1.
        "mask_diagonal": diagonal(grid, MASK, nl.bfloat16),
        "mask_row": mask_row,
        "columns": columns,
    }


def row_tiles(r, n, p):
    """Cut the rows (sample, token, head) of a kv head into tiles of at most 128, in that order.

    A tile is (sample, samples, token, tokens, head, heads): whole samples where they fit, else
    tokens of one sample, else heads of one token.
    """
    tiles = []
    if n * p <= PARTITIONS:
        step = PARTITIONS // (n * p)
        for s in range(0, r, step):
            tiles.append((s, min(step, r - s), 0, n, 0, p))
    else:
        tokens = max(1, PARTITIONS // p)
        for s in range(r):
            for t in range(0, n, tokens):
                for i in range(0, p, PARTITIONS):
                    tiles.append((s, 1, t, min(tokens, n - t), i, min(PARTITIONS, p - i)))
    return tiles


def tile_rows(tile):
    """Rows of a tile."""
    return tile[1] * tile[3] * tile[5]


def row_pattern(tile, group, kv, heads, r, n, h, g, width):
    """Access pattern and offset of a tile's rows in a tensor [G, r, n, h, width].

    The order is (sample and token, head of a kv head, kv head, width): rows on partitions first, as
    tiles of queries, outputs and statistics hold them. Samples and tokens are one dimension,
    because a tile of several samples takes all their tokens.
    """
    s, samples, t, tokens, head, count = tile
    p = h // g
    pattern = [[h * width, samples * tokens], [width, count], [p * width, heads], [1, width]]
    offset = (((group * r + s) * n + t) * h + kv * p + head) * width
    return pattern, offset


def load_queries(q, group, tile, kv, heads, g, identity):
    """The tile's queries with d on partitions: for each kv head an SBUF view [d, R]."""
    _, r, n, h, d = q.shape
    rows = tile_rows(tile)
    pattern, offset = row_pattern(tile, group, kv, heads, r, n, h, g, d)
    loaded = nl.ndarray((rows, heads * d), dtype=q.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=loaded, src=q.ap(pattern=pattern, offset=offset))
    turned = []
    together = BANK // rows  # heads whose transposes share a PSUM bank
    for i in range(0, heads, together):
        count = min(together, heads - i)
        chunks = []
        for j in range(count):
            chunks.append(loaded[:, (i + j) * d : (i + j + 1) * d])
        columns = transpose_rows(chunks, identity)
        for j in range(count):
            turned.append(columns[:, j * rows : (j + 1) * rows])
    return turned


def store_heads(out, tile_out, group, tile, kv, heads, g):
    """Store an SBUF tile [R, heads·d] to its rows of [G, r, n, h, d]."""
    _, r, n, h, d = out.shape
    pattern, offset = row_pattern(tile, group, kv, heads, r, n, h, g, d)
    nisa.dma_copy(dst=out.ap(pattern=pattern, offset=offset), src=tile_out)


def store_rows(out, statistic, group, tile, kv, heads, g):
    """Store an SBUF tile [R, heads] to its rows of [G, r, n, h]."""
    _, r, n, h = out.shape
    pattern, offset = row_pattern(tile, group, kv, heads, r, n, h, g, 1)
    nisa.dma_copy(dst=out.ap(pattern=pattern, offset=offset), src=statistic)


def context_states(states, queries, k_ctx, v_ctx, context_len, group, kv, heads, scale, constants):
    """Fold the group's context into the states of its row tiles, each K and V tile loaded once."""
    d = k_ctx.shape[1]
    slots = k_ctx.shape[2]
    S_ctx = slots // context_len.shape[0]
    length = load_int(context_len.ap(pattern=[[1, 1], [1, 1]], offset=group), 1)
    for start in range(0, S_ctx, BANK):
        count = min(BANK, S_ctx - start)
        keys = nl.ndarray((d, heads * count), dtype=k_ctx.dtype, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=keys,
            src=k_ctx.ap(
                pattern=[[slots, d], [d * slots, heads], [1, count]],
                offset=kv * d * slots + group * S_ctx + start,
            ),
        )
        values = load_rows(v_ctx, kv, heads, group * S_ctx + start, count)
        dead = nl.ndarray((1, count), dtype=nl.bfloat16, buffer=nl.sbuf)  # 1 from context_len on
        nisa.tensor_scalar(
            dst=dead,
            data=constants["columns"][0:1, 0:count],
            op0=nl.add,
            operand0=start * 1.0,
            op1=nl.greater_equal,
            operand1=length,
        )
        for i in range(heads):
            for tile in range(len(states)):
                rows = queries[tile][i].shape[1]
                logits = nl.ndarray((rows, count), dtype=nl.float32, buffer=nl.psum)
                nisa.nc_matmul(
                    dst=logits,
                    stationary=queries[tile][i],
                    moving=keys[:, i * count : (i + 1) * count],
                )
                nisa.nc_matmul(
                    dst=logits,
                    stationary=constants["mask_row"][:, 0:rows],
                    moving=dead,
                )
                accumulate(
                    states[tile], i, logits, values[i], constants["identity"], scale, start == 0
                )


def suffix_state(
    queries, k_suf, v_suf, suffix_len, group, tile, members, n, kv, heads, scale, constants
):
    """The state of a row tile against its own samples' suffixes, 512 slots of them at a time."""
    s, samples, t, tokens, _, count = tile
    G, r = suffix_len.shape
    d = k_suf.shape[2]
    S_dec = k_suf.shape[1] // (G * r)
    rows = tile_rows(tile)
    state = new_state(rows, heads, d)
    bounds = slot_bounds(suffix_len, group, s, samples, t, tokens, count, n, S_dec, members)
    base = (group * r + s) * S_dec
    for start in range(0, samples * S_dec, BANK):
        size = min(BANK, samples * S_dec - start)
        keys = load_rows(k_suf, kv, heads, base + start, size)
        values = load_rows(v_suf, kv, heads, base + start, size)
        dead = dead_slots(bounds, start, size, samples > 1, constants["columns"])
        for i in range(heads):
            logits = nl.ndarray((rows, size), dtype=nl.float32, buffer=nl.psum)
            nisa.nc_matmul(
                dst=logits,
                stationary=queries[i],
                moving=transpose_rows(keys[i], constants["identity"]),
            )
            nisa.nc_matmul(
                dst=logits,
                stationary=constants["mask_diagonal"][0:rows, 0:rows],
                moving=dead,
            )
            accumulate(state, i, logits, values[i], constants["identity"], scale, start == 0)
    return state


def sample_rows(tile, n, p):
    """fp32 [samples, rows] with 1 where a row of the tile belongs to a sample, else 0.

    Made for the largest tile; a smaller one uses its top left corner.
    """
    samples = tile[1]
    rows = tile_rows(tile)
    width = n * p
    # How far a row lies behind its sample's first.
    behind = nl.ndarray((samples, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=behind, pattern=[[1, rows]], offset=0, channel_multiplier=-width)
    inside = nl.ndarray((samples, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=inside, data=behind, op0=nl.greater_equal, operand0=0.0)
    nisa.scalar_tensor_tensor(
        dst=inside, data=behind, op0=nl.less, operand0=width * 1.0, op1=nl.multiply, operand1=inside
    )
    return inside


def slot_bounds(suffix_len, group, s, samples, t, tokens, count, n, S_dec, members):
    """First live and first dead slot of each row, from the tile's first sample on: fp32 [R, 2].

    A sample's bounds are made on its own partition, then carried to its rows by a product with
    `members`, which holds 0 and 1.
    """
    r = suffix_len.shape[1]
    rows = samples * tokens * count
    ends = nl.ndarray((samples, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=ends[:, 0:1], pattern=[[1, 1]], offset=0, channel_multiplier=S_dec)
    length = load_int(suffix_len.ap(pattern=[[1, samples], [1, 1]], offset=group * r + s), samples)
    nisa.tensor_tensor(dst=ends[:, 1:2], data1=ends[:, 0:1], data2=length, op=nl.add)
    spread = nl.ndarray((rows, 2), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=spread,
        stationary=members[0:samples, 0:rows],
        moving=ends,
        is_stationary_onezero=True,
    )
    if n > 1:
        # Token t of n does not see the n - 1 - t tokens behind it: add t - (n - 1) to its end.
        unseen = nl.ndarray((1, rows), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=unseen, pattern=[[0, samples], [1, tokens], [0, count]], offset=t - (n - 1))
        one = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=one, value=1.0)
        nisa.nc_matmul(dst=spread[:, 1:2], stationary=unseen, moving=one)
    bounds = nl.ndarray((rows, 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=bounds, src=spread)
    return bounds


def dead_slots(bounds, start, size, several, columns):
    """bf16 [R, size], 1 where a row must not see slot start + column: another's, or dead."""
    rows = bounds.shape[0]
    local = bounds
    if start > 0:
        local = nl.ndarray((rows, 2), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=local, data=bounds, op0=nl.subtract, operand0=start * 1.0)
    dead = nl.ndarray((rows, size), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=dead, data=columns[0:rows, 0:size], op0=nl.greater_equal, operand0=local[:, 1:2]
    )
    if several:
        nisa.scalar_tensor_tensor(
            dst=dead,
            data=columns[0:rows, 0:size],
            op0=nl.less,
            operand0=local[:, 0:1],
            op1=nl.maximum,
            operand1=dead,
        )
    return dead


def load_int(source, rows):
    """An int32 column [rows, 1] of HBM as fp32 in SBUF; exact below 2^24."""
    raw = nl.ndarray((rows, 1), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=raw, src=source)
    column = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=column, src=raw)
    return column
