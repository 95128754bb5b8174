"""Decode attention with a shared context, on a NeuronCore: chunks of the context and chunks of the
suffixes, folded into one state a row.

Keys lie on partitions (see stages.py). Query rows are (sample, token, head of one
kv head), at most 128 a row tile. Each block of the context's keys and values is loaded once and met
by all row tiles of its group; each row tile's suffixes are loaded for it alone, several samples
sharing partitions. All chunks of a call pass through one pipeline of stages, so that every engine
has work of other chunks while one waits. Logits never leave the core. README.md draws it.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, MASK, PARTITIONS, TINY, transpose_rows
from nki_kernels.bifurcated_attention.plan import (
    new_room,
    plan_head,
    row_tiles,
    suffix_sizes,
    tile_rows,
)
from nki_kernels.bifurcated_attention.stages import (
    add_columns,
    add_sums,
    add_to_state,
    banks_of,
    chunk_constants,
    find_highest,
    group_logits,
    new_chunk,
    settle_max,
    tile_logits,
    tile_weights,
    weigh,
)
from nki_kernels.bifurcated_attention.suffix import (
    load_suffix,
    own_slots,
    suffix_logits,
    suffix_product,
    turn_keys,
)

TURNED_ROWS = 64  # a product of the PE array takes the time of 64 columns or more
TURNED_TILES = 8  # tiles from which on it pays to turn the product at the end


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
    block_slots=16,
    suffix_slots=8,
    suffix_tiles=8,
    chunk_columns=1024,
    ramp=4,
    ahead=1,
    turns=4,
    dma_turns=False,
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
    and the sizes of `tuning.Schedule`.

    Query token t sees the whole context, and its suffix up to row suffix_len - (n - 1 - t).
    """
    G, r, n, h, d = q.shape
    g = k_ctx.shape[0]
    out = nl.ndarray((G, r, n, h, d), dtype=q.dtype, buffer=nl.shared_hbm)
    stores = [out]
    if return_state:
        out_max = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)
        out_sum = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)
        stores = [out, out_max, out_sum]
    call = {
        "q": q,
        "k_ctx": k_ctx,
        "v_ctx": v_ctx,
        "k_suf": k_suf,
        "v_suf": v_suf,
        "context_len": context_len,
        "suffix_len": suffix_len,
        "scale": scale,
        "stores": stores,
        "dma_turns": dma_turns,
    }

    constants = chunk_constants(q.dtype, MASK)
    constants["d"] = d
    tiles = row_tiles(r, n, h // g)
    passes = -(-len(tiles) // tiles_per_pass)
    unit = 0
    jobs: list = []
    for group in range(G):
        for first in range(0, len(tiles), tiles_per_pass):
            batch = tiles[first : min(first + tiles_per_pass, len(tiles))]
            for kv in range(0, g, heads_per_pass):
                heads = min(heads_per_pass, g - kv)
                rooms = []
                for tile in batch:
                    sizes = suffix_sizes(call, tile, suffix_slots, suffix_tiles)
                    rooms.append(new_room(group, tile, kv, heads, g, sizes))
                for i in range(heads):
                    plan_head(
                        jobs,
                        call,
                        rooms,
                        i,
                        [block_slots, ramp, chunk_columns],
                        unit == 0,
                        unit + 1 == G * passes * g,
                    )
                    unit += 1
    run(call, jobs, ahead, turns, constants)

    if return_state:
        return stores[0], stores[1], stores[2]
    return stores[0]


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


# --- the pipeline


def run(call, jobs, ahead, turns, constants):
    """Take every job through its stages, those of neighbours interleaved.

    Engines work in program order. So that none waits long, a step makes the logits of one job
    while the one before it settles its maxima and is weighed, and the one before that is folded;
    loads are `ahead` jobs early.
    """
    count = len(jobs)
    scale = call["scale"]
    dtype = call["q"].dtype
    shared: dict = {"unturned": [], "dead": {}, "slots": {}}
    load_context(call, jobs[0])  # before anything that would keep DMA from it
    shared["context_len"] = spread_lengths(call["context_len"])
    shared["suffix_len"] = spread_lengths(call["suffix_len"])
    # What GpSimd makes comes first: later it is busy with descriptors (NeuronCore-v3).
    for job in jobs:
        if not job["context"]:
            own_slots(shared, job["room"])
    for i in range(min(ahead, count)):
        prepare(call, jobs[i], shared, constants)
    for step in range(count + 2):
        if step + ahead < count:
            prepare(call, jobs[step + ahead], shared, constants)
        if step < count:
            make_logits(jobs[step], shared, constants)
        if step >= 1 and step <= count:
            settle_max(jobs[step - 1]["chunk"], jobs[step - 1]["state"], scale, constants)
        if step < count:
            find_highest(jobs[step]["chunk"])
        turn_some(shared, turns, constants)
        if step >= 2:
            fold(call, jobs[step - 2], constants)
        if step >= 1 and step <= count:
            weigh(jobs[step - 1]["chunk"], scale, dtype, constants)


def turn_some(shared, turns, constants):
    """Transpose some more of the suffix keys that lie loaded, in the order of their jobs."""
    if len(shared["unturned"]) > 0:
        job = shared["unturned"][0]
        turn_keys(job, turns, constants)
        if job["turned"] == job["room"]["sizes"]["blocks"] * job["tiles"]:
            shared["unturned"].pop(0)


def prepare(call, job, shared, constants):
    """Load what a job needs and no job before it has loaded."""
    room = job["room"]
    if len(room["queries"]) == 0:
        room["queries"] = load_queries(
            call["q"],
            room["group"],
            room["tile"],
            room["kv"],
            room["heads"],
            room["g"],
            constants["identity"],
        )
    if job["context"]:
        load_context(call, job)
        job["block"]["dead"] = dead_keys(room["group"], job["block"]["cut"], shared, constants)
    else:
        load_suffix(call, job, shared)


def make_logits(job, shared, constants):
    """First stage: masked logits of a chunk."""
    room = job["room"]
    chunk = new_chunk(room["rows"], job["tiles"], job["parts"])
    job["chunk"] = chunk
    if job["context"]:
        context_logits(job, chunk, constants)
    else:
        while job["turned"] < job["room"]["sizes"]["blocks"] * job["tiles"]:
            turn_some(shared, 1, constants)
        suffix_logits(job, chunk, constants)


def fold(call, job, constants):
    """Last stage: weights meet values, and the state takes the result; the last one is stored."""
    rows = job["room"]["rows"]
    d = call["q"].shape[4]
    product = nl.ndarray((rows, d + 1), dtype=nl.float32, buffer=nl.psum)
    if job["context"]:
        context_product(job, product, d, constants)
    else:
        suffix_product(job, product, d, constants)
    add_sums(product, job["chunk"], d, constants)
    add_to_state(job["state"], job["chunk"], product)
    job["state"]["jobs"] -= 1
    if job["state"]["jobs"] == 0:
        finish(call, job, d)


# --- the context


def load_context(call, job):
    """K [d, keys] and V [128, keys a partition · d] of a block."""
    block = job["block"]
    if len(block["keys"]) > 0:
        return
    room = job["room"]
    cut = block["cut"]
    start = cut["start"]
    slots = cut["slots"]
    parts = cut["parts"]
    k_ctx = call["k_ctx"]
    d = k_ctx.shape[1]
    width = k_ctx.shape[2]
    at = room["group"] * (width // call["context_len"].shape[0]) + start
    kv = room["kv"] + job["head"]
    keys = nl.ndarray((d, parts * slots), dtype=k_ctx.dtype, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=keys,
        src=k_ctx.ap(pattern=[[width, d], [1, parts * slots]], offset=kv * d * width + at),
    )
    values = nl.ndarray((parts, slots * d), dtype=k_ctx.dtype, buffer=nl.sbuf)
    nisa.dma_copy(
        dst=values,
        src=call["v_ctx"].ap(
            pattern=[[slots * d, parts], [1, slots * d]], offset=(kv * width + at) * d
        ),
    )
    block["keys"].append(keys)
    block["values"] = values


def spread_lengths(lengths):
    """All numbers of an int32 tensor in HBM on every partition, fp32; exact below 2^24."""
    count = 1
    for size in lengths.shape:
        count = count * size
    raw = nl.ndarray((PARTITIONS, count), dtype=nl.int32, buffer=nl.sbuf)
    nisa.dma_copy(dst=raw, src=lengths.ap(pattern=[[0, PARTITIONS], [1, count]], offset=0))
    spread = nl.ndarray((PARTITIONS, count), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=spread, src=raw)
    return spread


def dead_keys(group, cut, shared, constants):
    """bf16 [slots, partitions], 1 where a key of a block lies at or behind context_len.

    Kept for the heads that cut the context alike.
    """
    start = cut["start"]
    slots = cut["slots"]
    parts = cut["parts"]
    name = f"{start} {slots} {group}"
    if name in shared["dead"]:
        return shared["dead"][name]
    # Slot j of partition p holds key start + p · slots + j.
    behind = nl.ndarray((slots, 1), dtype=nl.float32, buffer=nl.sbuf)  # context_len - start - j
    nisa.scalar_tensor_tensor(
        dst=behind,
        data=shared["context_len"][0:slots, group : group + 1],
        op0=nl.subtract,
        operand0=start * 1.0,
        op1=nl.subtract,
        operand1=constants["partition"][0:slots, :],
    )
    dead = nl.ndarray((slots, parts), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=dead,
        data=constants["column"][0:slots, 0:parts],
        op0=nl.multiply,
        operand0=slots * 1.0,
        op1=nl.greater_equal,
        operand1=behind,
    )
    shared["dead"][name] = dead
    return dead


def context_logits(job, chunk, constants):
    """K · q, and MASK on top where a key is dead: flags times a diagonal, a PSUM bank at a time."""
    cut = job["block"]["cut"]
    slots = cut["slots"]
    parts = chunk["parts"]
    keys = job["block"]["keys"][0]
    queries = job["room"]["queries"][job["head"]]
    for tile in range(chunk["tiles"]):
        nisa.nc_matmul(
            dst=tile_logits(chunk, tile, 0, chunk["rows"]),
            stationary=keys.ap(
                pattern=[[parts * slots, keys.shape[0]], [slots, parts]],
                offset=job["first"] + tile,
            ),
            moving=queries,
        )
    group = chunk["group"]
    for first, count in banks_of(chunk):
        nisa.nc_matmul(
            dst=group_logits(chunk, first, count),
            stationary=job["block"]["dead"],
            moving=constants["mask_diagonal"].ap(
                pattern=[[PARTITIONS, slots], [group, count], [0, chunk["rows"]], [1, group]],
                offset=job["first"] + first * group,
            ),
        )


def context_product(job, product, d, constants):
    """Weights times the context's values; what has fewer columns of the two is what moves."""
    values = job["block"]["values"]
    rows = job["room"]["rows"]
    turned = rows <= TURNED_ROWS and job["tiles"] >= TURNED_TILES
    columns = product
    if turned:
        columns = nl.ndarray((d, rows), dtype=nl.float32, buffer=nl.psum)
    for tile in range(job["tiles"]):
        at = (job["first"] + tile) * d
        weights = tile_weights(job["chunk"], tile, 0, rows)
        if turned:
            nisa.nc_matmul(dst=columns, stationary=values[:, at : at + d], moving=weights)
        else:
            nisa.nc_matmul(dst=product[:, 0:d], stationary=weights, moving=values[:, at : at + d])
    if turned:
        add_columns(product, columns, constants)


# --- results


def finish(call, job, d):
    """o / sum, 0 for a row that saw no key; and the statistics. Stored once all heads are there."""
    room = job["room"]
    heads = room["heads"]
    rows = room["rows"]
    i = job["head"]
    state = job["state"]
    total = state["o"][:, d : d + 1]
    if len(room["results"]) == 0:
        room["results"].append(nl.ndarray((rows, heads * d), dtype=call["q"].dtype, buffer=nl.sbuf))
        for _ in range(1, len(call["stores"])):
            room["results"].append(nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf))
    inverse = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=inverse, data=total, op0=nl.maximum, operand0=TINY)
    nisa.reciprocal(dst=inverse, data=inverse)
    nisa.tensor_scalar(
        dst=room["results"][0][:, i * d : (i + 1) * d],
        data=state["o"][:, 0:d],
        op0=nl.multiply,
        operand0=inverse,
    )
    if len(call["stores"]) > 1:
        # Of a row that saw no key the max is MASK, which absorbs.
        highest = state["highest"][-1]
        less = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=less, data1=state["top"][-1], data2=highest, op=nl.subtract)
        factor = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=factor, op=nl.exp, data=less, scale=call["scale"])
        none = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=none, data=total, op0=nl.equal, operand0=0.0, op1=nl.multiply, operand1=MASK
        )
        nisa.scalar_tensor_tensor(
            dst=room["results"][1][:, i : i + 1],
            data=highest,
            op0=nl.multiply,
            operand0=call["scale"],
            op1=nl.add,
            operand1=none,
        )
        nisa.tensor_tensor(
            dst=room["results"][2][:, i : i + 1], data1=total, data2=factor, op=nl.multiply
        )
    if i + 1 == heads:
        for j in range(len(call["stores"])):
            store_rows(call["stores"][j], room["results"][j], room)


def store_rows(out, result, room):
    """Store an SBUF tile [rows, heads · width] to its rows of [G, r, n, h, width]."""
    r = out.shape[1]
    n = out.shape[2]
    h = out.shape[3]
    width = result.shape[1] // room["heads"]
    pattern, offset = row_pattern(
        room["tile"], room["group"], room["kv"], room["heads"], r, n, h, room["g"], width
    )
    nisa.dma_copy(dst=out.ap(pattern=pattern, offset=offset), src=result)
