"""Chunks of the context with query rows on partitions: for row tiles that fill enough of them.

Logits [rows, keys] take one pass of TensorE, and one of VectorE that copies them out of PSUM, masks
them and finds every row's maximum. Their exponential is a single instruction a block, with the
maximum as its bias and the sum of its results beside it; nothing is subtracted in PSUM, nor summed
by TensorE. What it costs is turning the weights, by DMA or TensorE.

The state is that of stages.py, so that both kinds of chunk may follow each other. Windows and
soft-caps need `range_select`, which NeuronCore-v3 has: its bounds are a row's own, and it masks
logits that ScalarE has bent on their way out of PSUM.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, LEAST, PARTITIONS, copy_with_highest
from nki_kernels.bifurcated_attention.features import bent_rows, starts_of_rows
from nki_kernels.bifurcated_attention.plan import chosen, pitch_of
from nki_kernels.bifurcated_attention.stages import join_highest

LOWEST = -(2.0**99)  # a maximum that takes the place of none, and that rounding leaves as it is
SPAN = 2 * BANK  # keys that one instruction copies out of PSUM
GROUP = 8  # tiles of weights that are turned together


def row_logits(call, job, shared, constants):
    """First stage: q · K of some blocks in SBUF, dead keys masked, with the maxima of every row."""
    rows = job["room"]["rows"]
    queries = job["room"]["queries"][job["head"]]
    count = 0
    spans = []  # (block, first key in it, first column, keys)
    for block in job["blocks"]:
        keys = block["cut"]["parts"] * block["cut"]["slots"]
        for at in range(0, keys, SPAN):
            spans.append((block, at, count + at, min(SPAN, keys - at)))
        count += keys
    logits = nl.ndarray((rows, count), dtype=nl.float32, buffer=nl.sbuf)
    tops = tops_of(job)
    group = job["room"]["group"]
    for j in range(len(spans)):
        block, at, column, size = spans[j]
        raw = nl.ndarray((rows, size), dtype=nl.float32, buffer=nl.psum)
        for low in range(0, size, BANK):
            high = min(low + BANK, size)
            for i in range(len(queries)):
                nisa.nc_matmul(
                    dst=raw[:, low:high],
                    stationary=queries[i],
                    moving=block["keys"][i][:, at + low : at + high],
                )
        kept = logits[:, column : column + size]
        at_top = job["state"]["spans"]
        top = tops[:, at_top : at_top + 1]
        job["state"]["spans"] = at_top + 1
        key = block["cut"]["start"] + at
        if call["old"]:
            mask_dead(raw, key, group, rows, shared, constants)
            copy_with_highest(kept, raw, top)
        else:
            nisa.range_select(
                dst=kept,
                on_true_tile=bent_rows(call, job, raw),
                comp_op0=nl.greater_equal,
                comp_op1=nl.less,
                bound0=starts_of_rows(call, job["room"], shared, constants),
                bound1=shared["context_len"][0:rows, group : group + 1],
                range_start=key,
                reduce_op=nl.maximum,
                reduce_res=top,
                reduce_cmd=nisa.reduce_cmd.reset_reduce,
                on_false_value=LEAST,
            )
    job["chunk"] = {"rows": rows, "logits": logits, "count": count}


def tops_of(job):
    """fp32 [rows, spans + 2]: the maximum before, those of all spans since, and room for one more.

    Where other chunks came before, that is what the state is shifted by.
    """
    state = job["state"]
    if len(state["tops"]) == 0:
        count = 2
        for cut in state["cuts"]:
            count += -(-cut["parts"] * cut["slots"] // SPAN)
        tops = nl.ndarray((job["room"]["rows"], count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=tops, value=LOWEST)
        if len(state["top"]) > 0:
            nisa.tensor_copy(dst=tops[:, 0:1], src=state["top"][-1])
        state["tops"].append(tops)
        state["spans"] = 1
    return state["tops"][0]


def mask_dead(raw, start, group, rows, shared, constants):
    """MASK on top of logits [rows, keys] where keys from `start` on lie behind context_len.

    Flags of 128 keys are a row of `dead_rows`; a product spreads it, times MASK, over all rows.
    """
    size = raw.shape[1]
    per_tile = PARTITIONS * PARTITIONS
    for at in range(0, size, PARTITIONS):
        end = min(at + PARTITIONS, size)
        tile = (start + at) // per_tile
        dead = dead_rows(tile, group, shared, constants)
        number = (start + at) % per_tile // PARTITIONS
        nisa.nc_matmul(
            dst=raw[:, at:end],
            stationary=constants["mask_diagonal"].ap(
                pattern=[[PARTITIONS, PARTITIONS], [0, rows]], offset=number
            ),
            moving=dead[:, 0 : end - at],
        )


def dead_rows(tile, group, shared, constants):
    """bf16 [128, 128], 1 where key (128 · tile + partition) · 128 + column is not live."""
    name = f"rows {tile} {group}"
    if name in shared["dead"]:
        return shared["dead"][name]
    behind = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(  # context_len less the first key of each partition
        dst=behind,
        data=constants["partition"],
        op0=nl.multiply,
        operand0=-1.0 * PARTITIONS,
        op1=nl.add,
        operand1=shared["context_len"][:, group : group + 1],
    )
    dead = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=dead,
        data=constants["column"],
        op0=nl.add,
        operand0=1.0 * tile * PARTITIONS * PARTITIONS,
        op1=nl.greater_equal,
        operand1=behind,
    )
    shared["dead"][name] = dead
    return dead


def settle_rows(call, job, minus):
    """Second stage: the exponential's bias, `minus` · the maximum so far, and the state's decay.

    `minus` is the logits' factor with the other sign, a float or a column.

    One instruction over the maxima of all spans so far, which are exact; on NeuronCore-v3 over the
    next span's place, too, so that the search for that one waits: it takes twenty times as long,
    and exponentials wait for the bias.
    """
    unit = job["unit"]
    state = job["state"]
    rows = job["room"]["rows"]
    tops = state["tops"][0]
    if len(state["bias"]) == 0 and len(state["top"]) > 0:
        shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar(dst=shift, data=state["top"][-1], op0=nl.multiply, operand0=minus)
        state["bias"].append(shift)
    bias = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    if call["old"]:
        top = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=top, op=nl.maximum, data=tops[:, 0 : state["spans"]], axis=1)
        nisa.tensor_scalar(dst=bias, data=top, op0=nl.multiply, operand0=minus)
    else:
        count = state["spans"] + 1
        if call["split_units"]:
            count = state["spans"]
        scaled = nl.ndarray((rows, count), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_scalar_reduce(
            dst=scaled,
            data=tops[:, 0:count],
            op0=nl.multiply,
            operand0=minus,
            reduce_op=nl.minimum,
            reduce_res=bias,
        )
    unit["fresh"] = len(state["bias"]) == 0
    if not unit["fresh"]:
        unit["decay"] = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        before = state["bias"][-1]
        nisa.activation(dst=unit["decay"], op=nl.exp, data=before, bias=bias, scale=-1.0)
    unit["bias"] = bias
    state["bias"].append(bias)


def show_top(state):
    """Bring state["top"] up to the chunks that `settle_rows` has seen, for what follows them."""
    if len(state["bias"]) == 0:
        return
    state["bias"] = []
    found = state["tops"].pop()[:, 0 : state["spans"]]
    top = nl.ndarray((found.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=top, op=nl.maximum, data=found, axis=1)
    if state["exact"] and len(state["highest"]) == 0:
        state["highest"].append(top)
    elif state["exact"]:  # the first is rounded
        join_highest(found[:, 1 : state["spans"]], state)
    state["top"].append(top)


def round_top(state, constants):
    """The same for a chunk with a rounded shift; state["shift"] keeps that of the state so far."""
    if len(state["bias"]) == 0:
        return
    show_top(state)
    top = state["top"][-1]
    rounded = nl.ndarray(top.shape, dtype=constants["minus"].dtype, buffer=nl.sbuf)
    nisa.tensor_copy(dst=rounded, src=top)
    state["shift"].append(top)
    state["top"].append(rounded)


def weigh_rows(call, job, scale):
    """Third stage: exponentials in the dtype of V, tile by tile, and their sum.

    The DMA engines turn `turn_share` of every 8 groups of tiles, where they are whole. What ends a
    call comes in halves: on NeuronCore-v2 one is turned while the other is weighed, and of split
    units one is copied while the other is turned.
    """
    chunk = job["chunk"]
    unit = job["unit"]
    rows = chunk["rows"]
    count = chunk["count"]
    dtype = call["q"].dtype
    chunk["turned"] = []  # [keys, rows] a tile
    chunk["groups"] = []  # those that TensorE is to turn
    at = 0
    for block in job["blocks"]:
        slots = block["cut"]["slots"]
        parts = block["cut"]["parts"]
        keys = parts * slots
        weights = nl.ndarray((rows, keys), dtype=dtype, buffer=nl.sbuf)
        tiled = not call["old"]  # gen2 writes strides above 16 bytes at half rate
        part = slots
        if job["ends"]:
            part = (slots + 1) // 2
        for low in range(0, slots, part):
            size = min(part, slots - low)
            dst = weights.ap(pattern=[[keys, rows], [slots, parts], [1, size]], offset=low)
            if tiled:
                dst = weights.ap(
                    pattern=[[keys, rows], [1, parts], [parts, size]], offset=low * parts
                )
            data = chunk["logits"].ap(
                pattern=[[count, rows], [slots, parts], [1, size]], offset=at + low
            )
            weigh_block(unit, dst, data, scale, call["split_units"])
        group = min(GROUP // 2 if "ending" in job else GROUP, part)
        for first in range(0, slots, group):
            tiles = min(group, slots - first)
            turned = nl.ndarray((parts, tiles, rows), dtype=dtype, buffer=nl.sbuf)
            for i in range(tiles):
                chunk["turned"].append(turned[:, i, :])
            if turned_by_dma(call, job, rows, parts):
                nisa.dma_transpose(
                    dst=turned,
                    src=weights.ap(
                        pattern=[[keys, rows], [parts, tiles], [1, parts]],
                        offset=first * parts,
                    ),
                    axes=(2, 1, 0),
                )
            else:
                step = parts if tiled else 1
                stride = 1 if tiled else slots
                views = []
                for i in range(first, first + tiles):
                    views.append(
                        weights.ap(pattern=[[keys, rows], [stride, parts]], offset=i * step)
                    )
                chunk["groups"].append((views, turned))
        at += keys


def turned_by_dma(call, job, rows, parts):
    """Whether the DMA engines turn the next group of tiles; timetable.py says so of split units."""
    if call["split_units"]:
        return job["by_dma"]
    share = call["turn_share"]
    if share == 0 or parts < PARTITIONS or rows < PARTITIONS:
        return False
    at = call["turned_groups"]
    call["turned_groups"] = at + 1
    return chosen(at, share)


def weigh_block(unit, dst, data, scale, split):
    """The exponentials of a block, whose sum joins the unit's.

    That of a split unit grows in ScalarE's register, and is read out once.
    """
    rows = data.shape[0]
    first = unit["weighed"] == 0
    unit["weighed"] += 1
    if split and unit["weighed"] < len(unit["blocks"]):
        nisa.activation(
            dst=dst,
            op=nl.exp,
            data=data,
            bias=unit["bias"],
            scale=scale,
            reduce_op=nl.add,
            reduce_cmd=nisa.reduce_cmd.reset_reduce if first else nisa.reduce_cmd.reduce,
        )
        return
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=dst,
        op=nl.exp,
        data=data,
        bias=unit["bias"],
        scale=scale,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reduce if split and not first else nisa.reduce_cmd.reset_reduce,
    )
    if split or first:
        unit["total"] = total
    else:
        nisa.activation(dst=unit["total"], op=nl.copy, data=unit["total"], bias=total)


def turn_weights(call, job, constants):
    """Bring weights to SBUF with keys on partitions where DMA has not, some tiles at once.

    VectorE copies `copy_share` of every 8 groups out of PSUM, ScalarE the others.
    """
    rows = job["chunk"]["rows"]
    dtype = nl.float32 if call["old"] else call["q"].dtype
    for views, turned in job["chunk"]["groups"]:
        # Tiles a power of two apart, so that none crosses from one PSUM bank into the next.
        held = (turned.shape[0], turned.shape[1], pitch_of(rows))
        raw = nl.ndarray(held, dtype=dtype, buffer=nl.psum)[:, :, 0:rows]
        for i in range(len(views)):
            if call["old"]:
                nisa.nc_matmul(
                    dst=raw[:, i, :],
                    stationary=views[i],
                    moving=constants["identity"][0:rows, 0:rows],
                    is_moving_onezero=True,
                )
            else:
                nisa.nc_transpose(dst=raw[:, i, :], data=views[i], engine=nisa.engine.tensor)
        if copied_by_vector(call, job):
            nisa.tensor_copy(dst=turned, src=raw, engine=nisa.engine.vector)
        else:
            nisa.activation(dst=turned, op=nl.copy, data=raw)


def copied_by_vector(call, job):
    """Whether VectorE copies the next group of tiles out of PSUM."""
    if job["copied_by"] != "":
        return job["copied_by"] == "vector"
    share = call["copy_share"]
    if job["ends"]:
        share = 4  # nothing else is left for either engine
    at = call["copies"]
    call["copies"] = at + 1
    return chosen(at, share)


def fold_rows(call, job, d):
    """Last stage: weights times values; the unit's last are added to the state with the sums.

    On NeuronCore-v2 ScalarE takes the product out of PSUM first: VectorE, at two cycles a sum,
    would keep the port that they share for twice as long.
    """
    chunk = job["chunk"]
    unit = job["unit"]
    state = job["state"]
    rows = chunk["rows"]
    if "product" not in unit:
        unit["product"] = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.psum)
    product = unit["product"]
    at = 0
    for block in job["blocks"]:
        for tile in range(block["cut"]["slots"]):
            nisa.nc_matmul(
                dst=product,
                stationary=chunk["turned"][at],
                moving=block["values"][:, tile * d : (tile + 1) * d],
            )
            at += 1
    unit["folded"] += len(job["blocks"])
    if unit["folded"] < len(unit["blocks"]) or unit["put_off"]:
        return
    if unit["fresh"]:
        state["o"] = nl.ndarray((rows, d + 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=state["o"][:, 0:d], op=nl.copy, data=product)
        nisa.activation(dst=state["o"][:, d : d + 1], op=nl.copy, data=unit["total"])
        return
    if call["old"]:
        copied = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=copied, op=nl.copy, data=product)
        product = copied
    nisa.scalar_tensor_tensor(
        dst=state["o"][:, 0:d],
        data=state["o"][:, 0:d],
        op0=nl.multiply,
        operand0=unit["decay"],
        op1=nl.add,
        operand1=product,
    )
    total = state["o"][:, d : d + 1]
    nisa.activation(dst=total, op=nl.copy, data=total, scale=unit["decay"], bias=unit["total"])
