"""Decode attention that reads the context once per sample, on a NeuronCore: keys on partitions.

A sample meets its keys as matrix-vector products, so bytes are the limit and everything else must
hide behind them. Keys lie on partitions from the logits to the output: weights need no transpose
for P·V, exponentials run on all 128 lanes, a block of 128 keys costs TensorE two least products.

Legal on NeuronCore-v2 and later, NKI 0.2 to 0.7. Imports only `nki` and pieces under that rule.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, FLOOR, MASK, PARTITIONS, TINY, move
from nki_kernels.ordinary_attention.pieces import column_tiles, cut, steps


@nki.jit
def ordinary_attention_kernel(
    q,
    k_ctx,
    v_ctx,
    k_suf,
    v_suf,
    context_len,
    suffix_len,
    scale,
    return_state=False,
    blocks=64,
    pairs=2,
):
    """Attend r samples of each of G prompts; all tensors in HBM, dense.

    q              [G, r, n, h, d]    float32 or bfloat16, as are K and V; d <= 128
    k_ctx          [g, d, G·S_ctx]    context keys, transposed; h = g·p, n·p <= 128
    v_ctx          [g, G·S_ctx, d]
    k_suf, v_suf   [g, G·r·S_dec, d]  rows of sample (j, i) from (j·r + i)·S_dec
    context_len    int32 [G]          live context slots of a group
    suffix_len     int32 [G, r]       live suffix rows of a sample, this step's n tokens included
    scale          compile-time float, > 0
    return_state   also return max and sum, float32 [G, r, n, h]
    blocks         blocks of 128 keys that share one maximum, blocks·n·p <= 512
    pairs          (sample, kv head) pairs loaded and worked on together

    With r = 1 each sample has a copy of its context, as in the caches of public stacks; with r > 1
    the r samples of a group read the same one, each for itself.
    """
    G, r, n, h, d = q.shape
    g = k_ctx.shape[0]
    S_ctx = k_ctx.shape[2] // G
    S_dec = k_suf.shape[1] // (G * r)
    rows = n * (h // g)
    out = nl.ndarray((G, r, n, h, d), dtype=q.dtype, buffer=nl.shared_hbm)
    out_max = out_sum = None
    if return_state:
        out_max = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)
        out_sum = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)

    caches = (k_ctx, v_ctx, k_suf, v_suf)
    sizes = (S_ctx, S_dec, r, n, rows)
    chunks = cut(S_ctx, S_dec, min(blocks, BANK // rows))
    constants = make_constants(q.dtype)
    grids = key_grids(chunks, n)
    for tile in column_tiles(G * r, g, rows):
        first, samples, kv, heads = tile
        columns = samples * heads * rows
        work = []
        for step in steps(tile, r, pairs):
            at = ((step[0] - first) * heads + step[2] - kv) * rows
            for c in range(len(chunks)):
                work.append((step, at, c))
        loaded = load(caches, chunks[0], work[0][0], sizes)
        queries = load_queries(q, tile, g, constants["identity"])
        lengths = load_lengths(context_len, suffix_len, r, first, samples)
        state = new_state(d, len(chunks) * columns)
        # The products with V come one piece of work late: TensorE asks for the next logits while
        # ScalarE makes weights.
        weights = values = None
        for i in range(len(work) + 1):
            ready = (weights, values)
            if i < len(work):
                step, at, c = work[i]
                mine = queries[:, at : at + step[1] * step[3] * rows]
                seen = (chunks[c], grids[c], lengths)
                logits = ask(mine, loaded, seen, first, step, sizes, constants)
                values = loaded[1]
            if i + 1 < len(work):
                loaded = load(caches, chunks[work[i + 1][2]], work[i + 1][0], sizes)
            if i > 0:
                _, before, last = work[i - 1]
                multiply(state, last * columns + before, ready, chunks[last])
            if i < len(work):
                weights = weigh(state, c * columns + at, logits, q.dtype, scale, constants)
        whole = join(state, len(chunks), constants["ones"])
        store_output(out, whole, tile, g, constants["identity"])
        if return_state:
            store_statistics(out_max, out_sum, whole, tile, g)

    if return_state:
        return out, out_max, out_sum
    return out


def make_constants(dtype):
    """[128, 128] tiles: an identity of the operands' dtype, one in fp32, and ones in fp32."""
    grid = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=grid, pattern=[[1, PARTITIONS]], offset=0, channel_multiplier=-1)
    identity = nl.ndarray((PARTITIONS, PARTITIONS), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=identity, data=grid, op0=nl.equal, operand0=0.0)
    nisa.tensor_scalar(dst=grid, data=grid, op0=nl.equal, operand0=0.0)
    ones = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    return {"identity": identity, "exact": grid, "ones": ones}


def key_grids(chunks, n):
    """For each segment of each chunk the slots' numbers, fp32 [keys, blocks, 1 or n].

    Partition p of a segment holds `blocks` consecutive keys, from p·blocks on: runs of HBM are
    that long, and keys may come in any order. In a suffix, token t misses the n - 1 - t tokens
    behind it, so its slots count as that much higher.
    """
    grids = []
    for chunk in chunks:
        mine = []
        for segment in chunk:
            suffix, start, keys, blocks = segment
            tokens = n if suffix else 1
            grid = nl.ndarray((keys, blocks, tokens), dtype=nl.float32, buffer=nl.sbuf)
            pattern = [[1, blocks], [-1, tokens]]
            nisa.iota(
                dst=grid, pattern=pattern, offset=start + tokens - 1, channel_multiplier=blocks
            )
            mine.append(grid)
        grids.append(mine)
    return grids


def row_pattern(tile, n, h, g, width):
    """Access pattern and offset of a tile's columns in a tensor [G, r, n, h, width]."""
    s, samples, kv, heads = tile
    p = h // g
    pattern = [[n * h * width, samples], [p * width, heads], [h * width, n], [1, p * width]]
    return pattern, (s * n * h + kv * p) * width


def load_queries(q, tile, g, identity):
    """The tile's queries in columns (sample, kv head, token, head): SBUF [d, columns]."""
    _, _, n, h, d = q.shape
    columns = tile[1] * tile[3] * n * (h // g)
    pattern, offset = row_pattern(tile, n, h, g, d)
    loaded = nl.ndarray((columns, d), dtype=q.dtype, buffer=nl.sbuf)
    move(dst=loaded, src=q.ap(pattern=pattern, offset=offset))
    turned = nl.ndarray((d, columns), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=turned,
        stationary=loaded,
        moving=identity[0:columns, 0:columns],
        is_moving_onezero=True,
    )
    queries = nl.ndarray((d, columns), dtype=q.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=queries, src=turned)
    return queries


def load_lengths(context_len, suffix_len, r, first, samples):
    """fp32 [128, samples] on every partition: live context slots, and live suffix rows."""
    group = first // r
    groups = (first + samples - 1) // r - group + 1
    of_group = load_ints(context_len.ap(pattern=[[0, PARTITIONS], [1, groups]], offset=group))
    own = load_ints(suffix_len.ap(pattern=[[0, PARTITIONS], [1, samples]], offset=first))
    context, suffix = [], []
    for s in range(first, first + samples):
        context.append(of_group[:, s // r - group : s // r - group + 1])
        suffix.append(own[:, s - first : s - first + 1])
    return context, suffix


def load_ints(source):
    """int32 numbers of HBM as fp32 in SBUF; exact below 2^24."""
    raw = nl.ndarray(source.shape, dtype=nl.int32, buffer=nl.sbuf)
    move(dst=raw, src=source)
    numbers = nl.ndarray(source.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=numbers, src=raw)
    return numbers


def new_state(d, columns):
    """An unwritten state, a query row a column: o^T, -max on all partitions, sums by partition."""
    o = nl.ndarray((d, columns), dtype=nl.float32, buffer=nl.sbuf)
    negmax = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
    total = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
    return (o, negmax, total)


def ask(queries, loaded, seen, first, step, sizes, constants):
    """Masked logits of a step's queries over one chunk of their keys.

    fp32 [128, pair, block, row] in SBUF; MASK where a slot is dead, or a partition has no key.
    """
    s, samples, _, heads = step
    _, _, _, n, rows = sizes
    chunk, grids, lengths = seen
    size = 0
    keys = []
    for k in range(len(chunk)):
        suffix, _, _, blocks = chunk[k]
        size += blocks
        keys.append(turn(loaded[0][k], constants["identity"]) if suffix else loaded[0][k])
    shape = (PARTITIONS, samples * heads, size, rows)
    logits = nl.ndarray(shape, dtype=nl.float32, buffer=nl.sbuf)
    for i in range(samples):
        dead = dead_slots(chunk, grids, lengths, s + i - first)
        for pair in range(i * heads, (i + 1) * heads):
            raw = nl.ndarray((PARTITIONS, size, rows), dtype=nl.float32, buffer=nl.psum)
            block = 0
            for k in range(len(chunk)):
                _, _, count, blocks = chunk[k]
                end = block + blocks
                for b in range(blocks):
                    nisa.nc_matmul(
                        dst=raw[0:count, block + b, :],
                        stationary=keys[k][:, pair, :, b],
                        moving=queries[:, pair * rows : (pair + 1) * rows],
                    )
                if count < PARTITIONS:
                    nisa.memset(dst=logits[:, pair, block:end, :], value=MASK)
                nisa.tensor_tensor(
                    dst=logits[0:count, pair, block:end, :],
                    data1=raw[0:count, block:end, :],
                    data2=spread(dead[k], n, rows),
                    op=nl.add,
                )
                block = end
    return logits


def weigh(state, at, logits, dtype, scale, constants):
    """Weights exp(scale·S - max) [128, pair, block, row]; max and sums into columns `at` and on."""
    _, negmax, total = state
    _, pairs, _, rows = logits.shape
    shift_by_highest(negmax[:, at : at + pairs * rows], logits, scale, constants)
    weights = nl.ndarray(logits.shape, dtype=dtype, buffer=nl.sbuf)
    for pair in range(pairs):
        for row in range(rows):
            column = at + pair * rows + row
            nisa.activation(
                dst=weights[:, pair, :, row],
                op=nl.exp,
                data=logits[:, pair, :, row],
                bias=negmax[:, column : column + 1],
                scale=scale,
                reduce_op=nl.add,
                reduce_res=total[:, column : column + 1],
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
            )
    return weights


def multiply(state, at, ready, chunk):
    """o^T = V^T·weights of one chunk, into columns `at` and on."""
    o = state[0]
    weights, values = ready
    d = o.shape[0]
    _, pairs, _, rows = weights.shape
    product = nl.ndarray((d, pairs * rows), dtype=nl.float32, buffer=nl.psum)
    for pair in range(pairs):
        block = 0
        for k in range(len(chunk)):
            _, _, count, blocks = chunk[k]
            for b in range(blocks):
                nisa.nc_matmul(
                    dst=product[:, pair * rows : (pair + 1) * rows],
                    stationary=values[k][:, pair, b, :],
                    moving=weights[0:count, pair, block + b, :],
                )
            block += blocks
    nisa.tensor_copy(dst=o[:, at : at + pairs * rows], src=product)


def slots_of(tensor, transposed, segment, step, sizes):
    """Where a segment's keys of a step's pairs stand: samples, their stride, slots, first slot."""
    suffix, start, _, _ = segment
    S_ctx, S_dec, r, _, _ = sizes
    s = step[0]
    slots = tensor.shape[2] if transposed else tensor.shape[1]
    if suffix:
        return S_dec, slots, s * S_dec + start
    return (S_ctx if r == 1 else 0), slots, s // r * S_ctx + start


def load(caches, chunk, step, sizes):
    """Load one chunk of the keys and values of a step's pairs, keys first.

    Returns two lists of SBUF tiles, one a segment: keys [d, pair, keys a block, block] of the
    context or rows of the suffix, and values, which are rows.
    """
    k_ctx, v_ctx, k_suf, v_suf = caches
    keys = []
    values = []
    for segment in chunk:
        if segment[0]:
            keys.append(load_rows(k_suf, segment, step, sizes))
        else:
            keys.append(load_keys(k_ctx, segment, step, sizes))
    for segment in chunk:
        values.append(load_rows(v_suf if segment[0] else v_ctx, segment, step, sizes))
    return keys, values


def load_rows(source, segment, step, sizes):
    """Rows of a segment from HBM [g, N, d]: SBUF [keys a block, pair, block, d].

    A partition takes consecutive rows, which are one run of HBM.
    """
    d = source.shape[2]
    _, samples, kv, heads = step
    _, _, keys, blocks = segment
    run = blocks * d
    stride, slots, start = slots_of(source, False, segment, step, sizes)
    tile = nl.ndarray((keys, samples * heads, blocks, d), dtype=source.dtype, buffer=nl.sbuf)
    move(
        dst=tile,
        src=source.ap(
            pattern=[[run, keys], [stride * d, samples], [slots * d, heads], [1, run]],
            offset=(kv * slots + start) * d,
        ),
    )
    return tile


def load_keys(source, segment, step, sizes):
    """Transposed keys of a segment from HBM [g, d, N]: SBUF [d, pair, keys a block, block]."""
    _, _, keys, blocks = segment
    d = source.shape[1]
    _, samples, kv, heads = step
    stride, slots, start = slots_of(source, True, segment, step, sizes)
    tile = nl.ndarray((d, samples * heads, keys, blocks), dtype=source.dtype, buffer=nl.sbuf)
    move(
        dst=tile,
        src=source.ap(
            pattern=[[slots, d], [stride, samples], [d * slots, heads], [1, keys * blocks]],
            offset=kv * d * slots + start,
        ),
    )
    return tile


def turn(tile, identity):
    """Rows [keys, pair, block, d] transposed on TensorE: SBUF [d, pair, keys, block]."""
    keys, pairs, blocks, d = tile.shape
    turned = nl.ndarray((d, pairs, keys, blocks), dtype=tile.dtype, buffer=nl.sbuf)
    together = BANK // keys  # transposes that share a PSUM bank
    for block in range(blocks):
        for first in range(0, pairs, together):
            count = min(together, pairs - first)
            bank = nl.ndarray((d, count, keys), dtype=nl.float32, buffer=nl.psum)
            for i in range(count):
                nisa.nc_matmul(
                    dst=bank[:, i, :],
                    stationary=tile[:, first + i, block, :],
                    moving=identity[0:keys, 0:keys],
                    is_moving_onezero=True,
                )
            nisa.tensor_copy(dst=turned[:, first : first + count, :, block], src=bank)
    return turned


def dead_slots(chunk, grids, lengths, sample):
    """For each segment MASK where a slot is dead, else 0: fp32 [keys, blocks, 1 or n]."""
    found = []
    for k in range(len(chunk)):
        suffix, _, keys, _ = chunk[k]
        length = lengths[1][sample] if suffix else lengths[0][sample]
        dead = nl.ndarray(grids[k].shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=dead,
            data=grids[k],
            op0=nl.greater_equal,
            operand0=length[0:keys, :],
            op1=nl.multiply,
            operand1=MASK,
        )
        found.append(dead)
    return found


def spread(dead, n, rows):
    """[keys, blocks, 1 or n] seen as [keys, blocks, rows], rows being (token, head)."""
    keys, blocks, tokens = dead.shape
    width = blocks * tokens
    if tokens == 1:
        return dead.ap(pattern=[[width, keys], [1, blocks], [0, rows]])
    return dead.ap(pattern=[[width, keys], [n, blocks], [1, n], [0, rows // n]])


def shift_by_highest(shift, logits, scale, constants):
    """shift [128, columns] = -max(scale·logits over partitions and blocks, FLOOR), everywhere.

    The maximum crosses partitions by a transpose, and comes back to all of them as a product of
    ones with the numbers on a diagonal.
    """
    _, pairs, size, rows = logits.shape
    columns = pairs * rows
    highest = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
    width = size * rows
    by_row = [[pairs * width, PARTITIONS], [width, pairs], [1, rows], [rows, size]]
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=logits.ap(pattern=by_row), axis=3)
    turned = nl.ndarray((columns, PARTITIONS), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=turned, stationary=highest, moving=constants["exact"], is_moving_onezero=True
    )
    top = nl.ndarray((columns, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=turned, axis=1)
    nisa.tensor_scalar(
        dst=top, data=top, op0=nl.multiply, operand0=-scale, op1=nl.minimum, operand1=-FLOOR
    )
    diagonal = nl.ndarray((columns, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=diagonal,
        data=constants["exact"][0:columns, 0:columns],
        op0=nl.multiply,
        operand0=top,
    )
    everywhere = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=everywhere,
        stationary=constants["ones"][0:columns, :],
        moving=diagonal,
        is_stationary_onezero=True,
    )
    nisa.tensor_copy(dst=shift, src=everywhere)


def join(state, count, ones):
    """The state over all `count` chunks; its sums are those of all partitions, on each of them."""
    o, negmax, total = state
    d = o.shape[0]
    columns = o.shape[1] // count
    if count > 1:
        by_column = [[count * columns, PARTITIONS], [1, columns], [columns, count]]
        least = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=least, op=nl.minimum, data=negmax.ap(pattern=by_column), axis=2)
        factor = nl.ndarray((PARTITIONS, count * columns), dtype=nl.float32, buffer=nl.sbuf)
        for c in range(count):
            mine = slice(c * columns, (c + 1) * columns)
            nisa.tensor_tensor(
                dst=factor[:, mine], data1=least, data2=negmax[:, mine], op=nl.subtract
            )
        nisa.activation(dst=factor, op=nl.exp, data=factor)
        nisa.tensor_tensor(dst=total, data1=total, data2=factor, op=nl.multiply)
        nisa.tensor_tensor(dst=o, data1=o, data2=factor[0:d, :], op=nl.multiply)
        summed = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=summed, op=nl.add, data=total.ap(pattern=by_column), axis=2)
        joined = nl.ndarray((d, columns), dtype=nl.float32, buffer=nl.sbuf)
        by_column[0][1] = d
        nisa.tensor_reduce(dst=joined, op=nl.add, data=o.ap(pattern=by_column), axis=2)
        o, negmax, total = joined, least, summed
    across = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(dst=across, stationary=ones, moving=total, is_stationary_onezero=True)
    whole = nl.ndarray((PARTITIONS, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=whole, src=across)
    return (o, negmax, whole)


def store_output(out, state, tile, g, identity):
    """o / sum, 0 for a row that saw no key, to the tile's rows of [G, r, n, h, d]."""
    o, _, total = state
    _, _, n, h, d = out.shape
    columns = o.shape[1]
    inverse = nl.ndarray((d, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=inverse, data=total[0:d, :], op0=nl.maximum, operand0=TINY)
    nisa.reciprocal(dst=inverse, data=inverse)
    divided = nl.ndarray((d, columns), dtype=out.dtype, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=divided, data1=o, data2=inverse, op=nl.multiply)
    turned = nl.ndarray((columns, d), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=turned, stationary=divided, moving=identity[0:d, 0:d], is_moving_onezero=True
    )
    rows = nl.ndarray((columns, d), dtype=out.dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=rows, src=turned)
    pattern, offset = row_pattern(tile, n, h, g, d)
    move(dst=out.ap(pattern=pattern, offset=offset), src=rows)


def store_statistics(out_max, out_sum, state, tile, g):
    """max and sum to the tile's rows of [G, r, n, h]; the max of a row that saw no key is MASK."""
    _, negmax, total = state
    _, _, n, h = out_sum.shape
    none = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=none, data=total, op0=nl.equal, operand0=0.0, op1=nl.multiply, operand1=MASK
    )
    top = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=top, data1=none, data2=negmax, op=nl.subtract)
    pattern, offset = row_pattern(tile, n, h, g, 1)
    move(dst=out_max.ap(pattern=pattern, offset=offset), src=top[0:1, :])
    move(dst=out_sum.ap(pattern=pattern, offset=offset), src=total[0:1, :])
