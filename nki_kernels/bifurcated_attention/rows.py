"""What belongs to a tile of query rows: its queries on the way in, its results on the way out.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, MASK, TINY, head_slices, move, transpose_rows
from nki_kernels.bifurcated_attention.features import (
    exp_of_difference,
    factor_of,
    join_sink,
    scale_values,
)


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


def load_queries(call, room):
    """Bring a tile's queries of all heads of a pass to SBUF, rows on partitions."""
    if len(room["loaded"]) > 0:
        return
    q = call["q"]
    _, r, n, h, d = q.shape
    heads = room["heads"]
    pattern, offset = row_pattern(
        room["tile"], room["group"], room["kv"], heads, r, n, h, room["g"], d
    )
    loaded = nl.ndarray((room["rows"], heads * d), dtype=q.dtype, buffer=nl.sbuf)
    source = q.ap(pattern=pattern, offset=offset)
    move(dst=loaded, src=source)
    room["loaded"].append(loaded)


def turn_queries(room, d, identity, by_scalar):
    """Turn them: room["queries"] has for each kv head SBUF views [up to 128 of d, rows].

    ScalarE copies them out of PSUM if `by_scalar`, else VectorE.
    """
    rows = room["rows"]
    loaded = room["loaded"][0]
    together = BANK // rows  # heads whose transposes share a PSUM bank
    for i in range(0, room["heads"], together):
        count = min(together, room["heads"] - i)
        for _ in range(count):
            room["queries"].append([])
        for low, size in head_slices(d):
            chunks = []
            for j in range(count):
                at = (i + j) * d + low
                chunks.append(loaded[:, at : at + size])
            columns = transpose_rows(chunks, identity, by_scalar)
            for j in range(count):
                room["queries"][i + j].append(columns[:, j * rows : (j + 1) * rows])


def halve_queries(room, d, identity, by_scalar):
    """The same for room["halves"], views [d / 2, rows] of the even and of the odd elements of d."""
    rows = room["rows"]
    loaded = room["loaded"][0]
    for i in range(room["heads"]):
        chunks = []
        for odd in range(2):
            chunks.append(
                loaded.ap(
                    pattern=[[room["heads"] * d, rows], [2, d // 2]],
                    offset=i * d + odd,
                )
            )
        columns = transpose_rows(chunks, identity, by_scalar)
        room["halves"].append([columns[:, 0:rows], columns[:, rows : 2 * rows]])


def finish(call, job, d):
    """o / sum, 0 for a row that saw no key; and the statistics. Stored once all heads are there."""
    room = job["room"]
    rows = room["rows"]
    i = job["head"]
    state = job["state"]
    factor = factor_of(call, job, rows)
    if call["own"]["joined"]:
        join_cores(call, job, factor)
        if not call["own"]["suffixes"]:
            return  # the other core has it all, too, and stores it
    if call["with_sinks"]:
        join_sink(call, job)
        factor = 1.0
    total = state["o"][:, d : d + 1]
    inverse = inverse_of(call, job, total)
    result = result_of(call, job, d)
    if call["split_units"]:  # VectorE is what such a call waits for
        nisa.activation(dst=result, op=nl.copy, data=state["o"][:, 0:d], scale=inverse)
    else:
        nisa.tensor_scalar(dst=result, data=state["o"][:, 0:d], op0=nl.multiply, operand0=inverse)
    if len(call["stores"]) > 1:
        # Of a row that saw no key the max is MASK, which absorbs.
        highest = state["highest"][-1]
        less = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=less, data1=state["top"][-1], data2=highest, op=nl.subtract)
        grown = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=grown, op=nl.exp, data=less, scale=factor)
        none = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(
            dst=none, data=total, op0=nl.equal, operand0=0.0, op1=nl.multiply, operand1=MASK
        )
        nisa.scalar_tensor_tensor(
            dst=room["results"][1][:, i : i + 1],
            data=highest,
            op0=nl.multiply,
            operand0=factor,
            op1=nl.add,
            operand1=none,
        )
        nisa.tensor_tensor(
            dst=room["results"][2][:, i : i + 1], data1=total, data2=grown, op=nl.multiply
        )
    store_results(call, job)


def inverse_of(call, job, total):
    """What a state's values are multiplied by in the end, fp32 [rows, 1]; 0 stays 0."""
    inverse = nl.ndarray(total.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=inverse, data=total, op0=nl.maximum, operand0=TINY)
    nisa.reciprocal(dst=inverse, data=inverse)
    if call["with_scales"]:
        scale_values(call, job, inverse)
    return inverse


def result_of(call, job, d):
    """The place of a kv head's result among those that are stored together, [rows, d]."""
    room = job["room"]
    rows = room["rows"]
    heads = room["heads"]
    if len(room["results"]) == 0:
        room["results"].append(nl.ndarray((rows, heads * d), dtype=call["q"].dtype, buffer=nl.sbuf))
        for _ in range(1, len(call["stores"])):
            room["results"].append(nl.ndarray((rows, heads), dtype=nl.float32, buffer=nl.sbuf))
    return room["results"][0][:, job["head"] * d : (job["head"] + 1) * d]


def store_results(call, job):
    """Store a row tile's results once those of all heads of a pass are there."""
    room = job["room"]
    if job["head"] + 1 == room["heads"]:
        for j in range(len(call["stores"])):
            store_rows(call["stores"][j], room["results"][j], room)


def join_cores(call, job, factor):
    """Give the row tile's state to the other core of two, take its, and join them.

    What is sent fills partitions by 16, as NKI before 0.4 wants it.
    """
    state = job["state"]
    rows, columns = state["o"].shape
    padded = -(-rows // 16) * 16
    mine = nl.ndarray((padded, columns + 2), dtype=nl.float32, buffer=nl.sbuf)
    nisa.memset(dst=mine, value=0.0)
    nisa.tensor_copy(dst=mine[0:rows, 0:columns], src=state["o"])
    nisa.tensor_copy(dst=mine[0:rows, columns : columns + 1], src=state["top"][-1])
    if state["exact"]:
        nisa.tensor_copy(dst=mine[0:rows, columns + 1 : columns + 2], src=state["highest"][-1])
    theirs = nl.ndarray((padded, columns + 2), dtype=nl.float32, buffer=nl.sbuf)
    other = 1 - call["core"]
    nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
    top = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    their_top = theirs[0:rows, columns : columns + 1]
    nisa.tensor_tensor(dst=top, data1=state["top"][-1], data2=their_top, op=nl.maximum)
    decay = exp_of_difference(state["top"][-1], top, factor)
    their_decay = exp_of_difference(their_top, top, factor)
    their_o = theirs[0:rows, 0:columns]
    nisa.tensor_scalar(dst=their_o, data=their_o, op0=nl.multiply, operand0=their_decay)
    nisa.scalar_tensor_tensor(
        dst=state["o"],
        data=state["o"],
        op0=nl.multiply,
        operand0=decay,
        op1=nl.add,
        operand1=their_o,
    )
    state["top"].append(top)
    if state["exact"]:
        highest = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=highest,
            data1=state["highest"][-1],
            data2=theirs[0:rows, columns + 1 : columns + 2],
            op=nl.maximum,
        )
        state["highest"].append(highest)


def store_rows(out, result, room):
    """Store an SBUF tile [rows, heads · width] to its rows of [G, r, n, h, width]."""
    r = out.shape[1]
    n = out.shape[2]
    h = out.shape[3]
    width = result.shape[1] // room["heads"]
    pattern, offset = row_pattern(
        room["tile"], room["group"], room["kv"], room["heads"], r, n, h, room["g"], width
    )
    target = out.ap(pattern=pattern, offset=offset)
    move(dst=target, src=result)
