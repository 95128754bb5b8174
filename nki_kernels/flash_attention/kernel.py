"""Causal attention on a NeuronCore: whole prompts, or a chunk of queries behind stored keys.

Query positions lie on partitions, 128 a tile. A unit of work is one tile, one query head and one
block of keys; three units are in flight at once, a stage each, so that every engine has work while
another one fills or drains:

    scores     TensorE q·K into PSUM, VectorE copies it to SBUF and takes the row maxima on the way
    weights    ScalarE exponentials, against the maximum of the whole block, and their sum
    product    TensorE turns the weights, an engine copies them to SBUF, TensorE multiplies with V

K and V of a block are loaded once for all query tiles and heads that see it; tiles above the
diagonal and below the window do not appear. README.md draws it and says what bounds it.

Legal on NeuronCore-v2 and later and in NKI 0.3 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, MASK, PARTITIONS, diagonal, move, offset_grid
from nki_kernels.flash_attention.plan import make_units
from nki_kernels.flash_attention.stages import (
    divide,
    find_shift,
    fold,
    product,
    scores,
    sum_up,
    transpose,
    turn,
    turned_psum,
    weights,
)


@nki.jit
def flash_attention_kernel(
    q,
    k,
    v,
    scale,
    sinks=None,
    with_sinks=False,
    start=0,
    window=0,
    softcap=0.0,
    return_state=False,
    query_tiles=16,
    key_block=4096,
    piece=1024,
    exponentials=2048,
    vector_share=0,
    dma_share=0,
    lag_weight=1,
    lag_turn=4,
    lag_product=2,
):
    """Attend S positions of each of B packed prompts, causally; all tensors in HBM, dense.

    q              [B, S, h, d]      float32 or bfloat16, as are K and V; d <= 256
    k              [g, d, B·S_ctx]   keys, transposed; h a multiple of g; S_ctx >= start + S
    v              [g, B·S_ctx, d]
    scale          compile-time float, > 0
    sinks          float32 [h] with `with_sinks`: a logit each head adds to its denominators
    start          compile-time position of the first query: query i sees keys 0..start + i
    window         how many positions a query sees, its own included; 0 is all
    softcap        c bends each scaled logit s to c·tanh(s / c); 0 does not
    return_state   also return max and sum, float32 [B, S, h], of keys and sink
    query_tiles ... lag_product    see tuning.py
    """
    B, S, h, d = q.shape
    g = k.shape[0]
    out = nl.ndarray((B, S, h, d), dtype=q.dtype, buffer=nl.shared_hbm)
    out_max = None
    out_sum = None
    if return_state:
        out_max = nl.ndarray((B, S, h), dtype=nl.float32, buffer=nl.shared_hbm)
        out_sum = nl.ndarray((B, S, h), dtype=nl.float32, buffer=nl.shared_hbm)
    call = {
        "q": q,
        "k": k,
        "v": v,
        "p": h // g,
        "scale": scale,
        "with_sinks": with_sinks,
        "window": window,
        "softcap": softcap,
        "factor": softcap if softcap > 0.0 else scale,  # of the logits that leave PSUM
        "return_state": return_state,
        "piece": piece,
        "out": out,
        "out_max": out_max,
        "out_sum": out_sum,
        "old": nisa.get_nc_version() == nisa.nc_version.gen2,
        "vector_share": vector_share,
        "turned": 0,
        "dma_share": dma_share,
        "whole": 0,
    }
    make_constants(call, sinks, start + S)
    units = make_units(
        (B, S, g, h // g), start, window, query_tiles, key_block, piece,
        nl.program_id(0), nl.num_programs(0),
    )  # fmt: skip
    run(call, units, exponentials, lag_weight, lag_turn, lag_product)

    if return_state:
        return out, out_max, out_sum
    return out


def run(call, units, exponentials, lag_weight, lag_turn, lag_product):
    """Emit all units: each tick a span of every stage, each stage as far behind as it must be.

    Engines take their instructions in program order, so this order is what overlaps them: scores of
    a unit while the one before it is in its exponentials and the one before that in its product.
    """
    scored = []  # spans in order, for each stage the same
    weighed = []
    for i in range(len(units)):
        unit = units[i]
        unit["scored"] = -1
        unit["tail"] = i == len(units) - 1  # nothing overlaps its end
        for j in range(len(unit["spans"])):
            unit["spans"][j]["weighed"] = -1
            unit["spans"][j]["turned_at"] = -1
            scored.append((unit, j))
        wide = max(1, exponentials // call["piece"])
        for j in range(0, len(unit["spans"]), wide):
            weighed.append((unit, j, min(j + wide, len(unit["spans"]))))
    at_score = 0
    at_weight = 0
    at_turn = 0
    at_product = 0
    free = 0  # the tick from which ScalarE may take the next exponentials
    tick = 0
    multiplied: list = []  # units whose product is complete
    folded: list = []  # and those of them that are to be divided
    while at_product < len(scored) or len(multiplied) + len(folded) > 0:
        if at_turn < len(scored):
            unit, j = scored[at_turn]
            weighed_at = unit["spans"][j]["weighed"]
            if weighed_at >= 0 and weighed_at <= tick - lag_turn:
                turn(call, unit, j)
                unit["spans"][j]["turned_at"] = tick
                at_turn += 1
        if at_score < len(scored):
            unit, j = scored[at_score]
            load_queries(call, unit["group"])
            load_keys(call, unit["block"], unit["spans"][j]["piece"])
            scores(call, unit, j)
            at_score += 1
            if j == len(unit["spans"]) - 1:
                find_shift(call, unit)
                unit["scored"] = tick
            if at_score < len(scored):
                load_queries(call, scored[min(at_score + 3, len(scored) - 1)][0]["group"])
        for unit in folded:
            divide(call, unit)
        folded = []
        for unit in multiplied:
            fold(unit)
            if unit["last"]:
                folded.append(unit)
        multiplied = []
        if at_weight < len(weighed) and tick >= free:
            unit, begin, end = weighed[at_weight]
            if unit["scored"] >= 0 and unit["scored"] <= tick - lag_weight:
                weights(call, unit, begin, end)
                for j in range(begin, end):
                    load_values(call, unit["block"], unit["spans"][j]["piece"])
                    unit["spans"][j]["weighed"] = tick
                at_weight += 1
                free = tick + end - begin
        if at_product < at_turn:
            unit, j = scored[at_product]
            if unit["spans"][j]["turned_at"] <= tick - lag_product:
                if j == 0:
                    sum_up(call, unit)
                product(unit, j)
                at_product += 1
                if j == len(unit["spans"]) - 1:
                    multiplied.append(unit)
        tick += 1


def make_constants(call, sinks, reach):
    """Tiles that every unit uses: an identity, masks of the two edges, sinks on all partitions."""
    if call["old"]:
        grid = offset_grid(PARTITIONS, PARTITIONS)
        call["identity"] = diagonal(grid, 1.0, call["q"].dtype)
        call["mask"] = diagonal(grid, MASK, nl.bfloat16)
        call["future"] = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=call["future"], data=grid, op0=nl.greater, operand0=0.0)
    else:
        # A key is seen where its distance from the tile's first query, plus the reach of the call,
        # lies between these bounds: it is not behind the row and not before its window.
        call["reach"] = reach
        call["newest"] = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=call["newest"], pattern=[[1, 1]], offset=reach, channel_multiplier=1)
        call["oldest"] = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
        lowest = reach - call["window"] + 1 if call["window"] > 0 else 0
        step = 1 if call["window"] > 0 else 0
        nisa.iota(dst=call["oldest"], pattern=[[1, 1]], offset=lowest, channel_multiplier=step)
    if call["old"] and call["window"] > 0:
        # Column x stands for the key x - 127 behind the first one that row 0 has left behind.
        wide = offset_grid(PARTITIONS, 2 * PARTITIONS)
        call["past"] = nl.ndarray((PARTITIONS, 2 * PARTITIONS), dtype=nl.bfloat16, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=call["past"], data=wide, op0=nl.less_equal, operand0=127.0)
    if call["with_sinks"]:
        h = sinks.shape[0]
        call["sinks"] = nl.ndarray((PARTITIONS, h), dtype=nl.float32, buffer=nl.sbuf)
        move(dst=call["sinks"], src=sinks.ap(pattern=[[0, PARTITIONS], [1, h]], offset=0))
        call["negsinks"] = nl.ndarray((PARTITIONS, h), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=call["negsinks"], data=call["sinks"], op0=nl.multiply, operand0=-1.0)


# --- loads


def load_queries(call, group):
    """Bring the queries of a group of equal tiles to SBUF with d on partitions, once."""
    if group["loaded"]:
        return
    group["loaded"] = True
    q = call["q"]
    _, S, h, d = q.shape
    p = call["p"]
    tiles = group["tiles"]
    rows = tiles[0]["rows"]
    count = len(tiles)
    loaded = nl.ndarray((rows, count * p * d), dtype=q.dtype, buffer=nl.sbuf)
    move(
        dst=loaded,
        src=q.ap(
            pattern=[[h * d, rows], [rows * h * d, count], [1, p * d]],
            offset=((tiles[0]["prompt"] * S + tiles[0]["row"]) * h + tiles[0]["kv"] * p) * d,
        ),
    )
    together = BANK // rows  # transposes that share a PSUM bank
    for at in range(0, count * p, together):
        some = min(together, count * p - at)
        slices = []
        for low in range(0, d, PARTITIONS):
            size = min(PARTITIONS, d - low)
            turned = turned_psum(call, size, some * rows)
            for i in range(some):
                column = (at + i) * d + low
                transpose(
                    call,
                    turned[:, i * rows : (i + 1) * rows],
                    loaded[:, column : column + size],
                )
            kept = nl.ndarray((size, some * rows), dtype=q.dtype, buffer=nl.sbuf)
            nisa.activation(dst=kept, op=nl.copy, data=turned)
            slices.append(kept)
        for i in range(some):
            parts = []
            for part in slices:
                parts.append(part[:, i * rows : (i + 1) * rows])
            tiles[(at + i) // p]["queries"].append(parts)


def load_keys(call, block, j):
    """Bring piece j of a block's K to SBUF, once: a tile [up to 128, keys] for each 128 of d."""
    if len(block["keys"][j]) > 0:
        return
    k = call["k"]
    d = k.shape[1]
    slots = k.shape[2]
    at, size = place(call, block, j)
    for low in range(0, d, PARTITIONS):
        rows = min(PARTITIONS, d - low)
        keys = nl.ndarray((rows, size), dtype=k.dtype, buffer=nl.sbuf)
        move(
            dst=keys,
            src=k.ap(
                pattern=[[slots, rows], [1, size]], offset=(block["kv"] * d + low) * slots + at
            ),
        )
        block["keys"][j].append(keys)


def place(call, block, j):
    """Where piece j of a block starts in K's slots, and how many keys it has."""
    slots = call["k"].shape[2] // call["q"].shape[0]
    begin = block["base"] + j * call["piece"]
    return block["prompt"] * slots + begin, min(call["piece"], block["end"] - begin)


def load_values(call, block, j):
    """Bring piece j of a block's V to SBUF, once: views [up to 128, d], 128 keys each."""
    if len(block["values"][j]) > 0:
        return
    v = call["v"]
    d = v.shape[2]
    at, size = place(call, block, j)
    whole = size // PARTITIONS
    left = size - whole * PARTITIONS
    offset = (block["kv"] * v.shape[1] + at) * d
    chunks = block["values"][j]
    if whole > 0:
        values = nl.ndarray((PARTITIONS, whole * d), dtype=v.dtype, buffer=nl.sbuf)
        move(
            dst=values,
            src=v.ap(pattern=[[d, PARTITIONS], [PARTITIONS * d, whole], [1, d]], offset=offset),
        )
        for c in range(whole):
            chunks.append(values[:, c * d : (c + 1) * d])
    if left > 0:
        rest = nl.ndarray((left, d), dtype=v.dtype, buffer=nl.sbuf)
        move(
            dst=rest,
            src=v.ap(pattern=[[d, left], [1, d]], offset=offset + whole * PARTITIONS * d),
        )
        chunks.append(rest)
