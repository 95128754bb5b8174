"""The stages of a unit of the prefill kernel: scores, weights, turned weights, product, the end.

`call` holds what all units share (see kernel.py), `unit` and its `tile`, `block` and `spans` come
from plan.py. Imports only `nki` and pieces under that rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import (
    BANK,
    FLOOR,
    LEAST,
    MASK,
    PARTITIONS,
    copy_with_highest,
    move,
)
from nki_kernels.flash_attention.plan import columns_of

# --- scores


def scores(call, unit, j):
    """q·K of span j of a unit in SBUF in fp32, with the maximum of every row."""
    tile = unit["tile"]
    rows = tile["rows"]
    span = unit["spans"][j]
    if j == 0:
        unit["logits"] = nl.ndarray((rows, unit["width"]), dtype=nl.float32, buffer=nl.sbuf)
        unit["tops"] = nl.ndarray((rows, len(unit["spans"])), dtype=nl.float32, buffer=nl.sbuf)
    keys = unit["block"]["keys"][span["piece"]]
    queries = tile["queries"][unit["head"]]
    size = span["size"]
    capped = call["softcap"] > 0.0
    raw = nl.ndarray((rows, size), dtype=nl.float32, buffer=nl.psum)
    for at in range(0, size, BANK):
        end = min(at + BANK, size)
        dst = raw[:, at:end]
        for i in range(len(queries)):
            nisa.nc_matmul(
                dst=dst,
                stationary=queries[i],
                moving=keys[i][:, span["from"] + at : span["from"] + end],
            )
        if call["old"] and not capped:
            mask_edges(call, tile, raw, span["key"], at, end)
    kept = unit["logits"][:, span["column"] : span["column"] + size]
    top = unit["tops"][:, j : j + 1]
    if capped:
        bent = nl.ndarray((rows, size), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=bent, op=nl.tanh, data=raw, scale=call["scale"] / call["softcap"])
        raw = bent
    if call["old"]:
        if capped:
            select_edges(call, tile, raw, span["key"], size)
        copy_with_highest(kept, raw, top)
    else:
        nisa.range_select(
            dst=kept,
            on_true_tile=raw,
            comp_op0=nl.greater_equal,
            comp_op1=nl.less_equal,
            bound0=call["oldest"][0:rows, :],
            bound1=call["newest"][0:rows, :],
            range_start=span["key"] - tile["position"] + call["reach"],
            reduce_op=nl.maximum,
            reduce_res=top,
            reduce_cmd=nisa.reduce_cmd.reset_reduce,
            on_false_value=LEAST,
        )


def mask_edges(call, tile, raw, key, at, end):
    """Add MASK where columns at..end of `raw` (column 0 is `key`) must not be seen."""
    rows = tile["rows"]
    stationary = call["mask"][0:rows, 0:rows]
    low, high = columns_of(tile["position"], tile["position"] + rows, key + at, key + end)
    if low < high:
        nisa.nc_matmul(
            dst=raw[:, low - key : high - key],
            stationary=stationary,
            moving=call["future"][0:rows, low - tile["position"] : high - tile["position"]],
        )
    if call["window"] > 0:
        left = tile["position"] - call["window"]  # the last key that row 0 has left behind
        low, high = columns_of(left - 127, left + rows, key + at, key + end)
        if low < high:
            nisa.nc_matmul(
                dst=raw[:, low - key : high - key],
                stationary=stationary,
                moving=call["past"][0:rows, low - left + 127 : high - left + 127],
            )


def select_edges(call, tile, bent, key, size):
    """The same on soft-capped logits in SBUF, which are masked after they are bent."""
    rows = tile["rows"]
    hidden = MASK / max(1.0, call["softcap"])
    low, high = columns_of(tile["position"], tile["position"] + rows, key, key + size)
    if low < high:
        edge = bent[:, low - key : high - key]
        nisa.affine_select(  # position + row - key >= 0
            dst=edge,
            pattern=[[-1, high - low]],
            offset=tile["position"] - low,
            channel_multiplier=1,
            on_true_tile=edge,
            on_false_value=hidden,
            cmp_op=nl.greater_equal,
        )
    if call["window"] > 0:
        left = tile["position"] - call["window"]
        low, high = columns_of(left - 127, left + rows, key, key + size)
        if low < high:
            edge = bent[:, low - key : high - key]
            nisa.affine_select(  # key - (left + row) > 0
                dst=edge,
                pattern=[[1, high - low]],
                offset=low - left,
                channel_multiplier=-1,
                on_true_tile=edge,
                on_false_value=hidden,
                cmp_op=nl.greater,
            )


def find_shift(call, unit):
    """-max of the logits so far (and the sink), against which exponentials are taken."""
    tile = unit["tile"]
    state = unit["state"]
    rows = tile["rows"]
    top = unit["tops"]
    if len(unit["spans"]) > 1:
        top = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_reduce(dst=top, op=nl.maximum, data=unit["tops"], axis=1)
    shift = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    if unit["first"] and not call["with_sinks"]:
        nisa.tensor_scalar(
            dst=shift,
            data=top,
            op0=nl.multiply,
            operand0=-call["factor"],
            op1=nl.minimum,
            operand1=-FLOOR,
        )
    else:
        before = state["shift"] if not unit["first"] else sink_column(call, unit, "negsinks")
        nisa.scalar_tensor_tensor(
            dst=shift,
            data=top,
            op0=nl.multiply,
            operand0=-call["factor"],
            op1=nl.minimum,
            operand1=before,
        )
    unit["before"] = state["shift"]
    unit["shift"] = shift
    state["shift"] = shift


def sink_column(call, unit, name):
    """A head's sink (or its negative) as a column [rows, 1]."""
    head = unit["tile"]["kv"] * call["p"] + unit["head"]
    return call[name][0 : unit["tile"]["rows"], head : head + 1]


# --- weights


def weights(call, unit, begin, end):
    """exp(factor·logits + shift) of spans begin..end in the dtype of V, and their sum in fp32."""
    rows = unit["tile"]["rows"]
    if begin == 0:
        unit["weights"] = nl.ndarray((rows, unit["width"]), dtype=call["v"].dtype, buffer=nl.sbuf)
        unit["sums"] = []
        if not unit["first"]:  # exp(old max - new max)
            unit["decay"] = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(
                dst=unit["decay"], op=nl.exp, data=unit["before"], bias=unit["shift"], scale=-1.0
            )
        if unit["last"] and call["with_sinks"]:
            unit["extra"] = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
            sink = sink_column(call, unit, "sinks")
            nisa.activation(dst=unit["extra"], op=nl.exp, data=sink, bias=unit["shift"])
    low = unit["spans"][begin]["column"]
    high = unit["spans"][end - 1]["column"] + unit["spans"][end - 1]["size"]
    total = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=unit["weights"][:, low:high],
        op=nl.exp,
        data=unit["logits"][:, low:high],
        bias=unit["shift"],
        scale=call["factor"],
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    unit["sums"].append(total)
    for j in range(begin, end):
        turn_by_dma(call, unit, j)


# --- product


def turned_psum(call, partitions, columns):
    """A PSUM tile for transposes: fp32 on NeuronCore-v2, which knows nothing else there."""
    dtype = nl.float32 if call["old"] else call["q"].dtype
    return nl.ndarray((partitions, columns), dtype=dtype, buffer=nl.psum)


def transpose(call, dst, data):
    """data [rows, n] turned into PSUM [n, rows], by TensorE."""
    rows = data.shape[0]
    if call["old"]:
        nisa.nc_matmul(
            dst=dst,
            stationary=data,
            moving=call["identity"][0:rows, 0:rows],
            is_moving_onezero=True,
        )
    else:
        nisa.nc_transpose(dst=dst, data=data, engine=nisa.engine.tensor)


def turn_by_dma(call, unit, j):
    """`dma_share` of every 8 whole spans are turned by the DMA engines, where they can."""
    rows = unit["tile"]["rows"]
    span = unit["spans"][j]
    size = span["size"]
    if call["old"] or unit["tail"] or rows < PARTITIONS or size < call["piece"]:
        return  # a whole piece is a multiple of 128 keys
    at = call["whole"]
    share = call["dma_share"]
    call["whole"] = at + 1
    if (at + 1) * share // 8 == at * share // 8:
        return
    chunks = size // PARTITIONS
    kept = nl.ndarray((PARTITIONS, chunks, rows), dtype=call["v"].dtype, buffer=nl.sbuf)
    nisa.dma_transpose(
        dst=kept,
        src=unit["weights"].ap(
            pattern=[[unit["width"], rows], [PARTITIONS, chunks], [1, PARTITIONS]],
            offset=span["column"],
        ),
        axes=(2, 1, 0),
    )
    span["turned"] = kept.reshape((PARTITIONS, chunks * rows))


def turn(call, unit, j):
    """Bring the weights of span j to SBUF with keys on partitions, 128 keys a chunk."""
    rows = unit["tile"]["rows"]
    span = unit["spans"][j]
    size = span["size"]
    if "turned" in span:
        return
    chunks = (size + PARTITIONS - 1) // PARTITIONS
    turned = turned_psum(call, PARTITIONS, chunks * PARTITIONS)  # so that none crosses a bank
    for c in range(chunks):
        low = span["column"] + c * PARTITIONS
        keys = min(PARTITIONS, size - c * PARTITIONS)
        transpose(
            call,
            turned[0:keys, c * PARTITIONS : c * PARTITIONS + rows],
            unit["weights"][:, low : low + keys],
        )
    kept = nl.ndarray((PARTITIONS, chunks * rows), dtype=call["v"].dtype, buffer=nl.sbuf)
    src = turned.reshape((PARTITIONS, chunks, PARTITIONS))
    dst = kept.reshape((PARTITIONS, chunks, rows))
    whole = size // PARTITIONS  # chunks that fill all partitions
    if whole > 0:
        copy_turned(call, unit, dst[:, 0:whole, :], src[:, 0:whole, 0:rows])
    if whole < chunks:
        keys = size % PARTITIONS
        copy_turned(call, unit, dst[0:keys, whole:chunks, :], src[0:keys, whole:chunks, 0:rows])
    span["turned"] = kept


def copy_turned(call, unit, dst, src):
    """PSUM to SBUF: `vector_share` of every 8 copies on VectorE, the others on ScalarE.

    VectorE makes those of the last unit: it has nothing else left, ScalarE its exponentials.
    """
    share = call["vector_share"]
    at = call["turned"]
    call["turned"] = at + 1
    if unit["tail"] or (at + 1) * share // 8 > at * share // 8:
        nisa.tensor_copy(dst=dst, src=src, engine=nisa.engine.vector)
    else:
        nisa.activation(dst=dst, op=nl.copy, data=src)


def product(unit, j):
    """Add the product of span j's weights with its V to the unit's output in PSUM."""
    rows = unit["tile"]["rows"]
    span = unit["spans"][j]
    values = unit["block"]["values"][span["piece"]]
    d = values[0].shape[1]
    if j == 0:
        unit["o"] = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.psum)
    first = span["from"] // PARTITIONS
    for c in range((span["size"] + PARTITIONS - 1) // PARTITIONS):
        keys = min(PARTITIONS, span["size"] - c * PARTITIONS)
        nisa.nc_matmul(
            dst=unit["o"],
            stationary=span["turned"][0:keys, c * rows : (c + 1) * rows],
            moving=values[first + c][0:keys, :],
        )


# --- the end of a unit


def sum_up(call, unit):
    """The sum over all keys so far; behind the last block the sink's share, and its inverse.

    Called while TensorE still multiplies, so that what follows finds everything ready.
    """
    state = unit["state"]
    rows = unit["tile"]["rows"]
    total = unit["sums"][0]
    for more in unit["sums"][1:]:
        nisa.tensor_tensor(dst=total, data1=total, data2=more, op=nl.add)
    if not unit["first"]:
        nisa.scalar_tensor_tensor(
            dst=total,
            data=state["total"],
            op0=nl.multiply,
            operand0=unit["decay"],
            op1=nl.add,
            operand1=total,
        )
    state["total"] = total
    if unit["last"]:
        if call["with_sinks"]:
            nisa.tensor_tensor(dst=total, data1=total, data2=unit["extra"], op=nl.add)
        unit["inverse"] = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.reciprocal(dst=unit["inverse"], data=total)


def fold(unit):
    """Add a finished product to the state in SBUF, unless it is all there is."""
    state = unit["state"]
    o = unit["o"]
    rows, d = o.shape
    if not unit["first"]:
        nisa.scalar_tensor_tensor(
            dst=state["o"],
            data=state["o"],
            op0=nl.multiply,
            operand0=unit["decay"],
            op1=nl.add,
            operand1=o,
        )
    elif not unit["last"]:
        state["o"] = nl.ndarray((rows, d), dtype=nl.float32, buffer=nl.sbuf)
        nisa.activation(dst=state["o"], op=nl.copy, data=o)


def divide(call, unit):
    """The output of a row's last unit; to HBM once all heads of the tile are there."""
    tile = unit["tile"]
    o = unit["o"] if unit["first"] else unit["state"]["o"]
    rows, d = o.shape
    p = call["p"]
    head = unit["head"]
    if head == 0:
        tile["out"] = nl.ndarray((rows, p * d), dtype=call["q"].dtype, buffer=nl.sbuf)
        if call["return_state"]:
            tile["max"] = nl.ndarray((rows, p), dtype=nl.float32, buffer=nl.sbuf)
            tile["sum"] = nl.ndarray((rows, p), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=tile["out"][:, head * d : (head + 1) * d], op=nl.copy, data=o, scale=unit["inverse"]
    )
    if call["return_state"]:
        nisa.tensor_scalar(
            dst=tile["max"][:, head : head + 1],
            data=unit["shift"],
            op0=nl.multiply,
            operand0=-1.0,
        )
        nisa.tensor_copy(dst=tile["sum"][:, head : head + 1], src=unit["state"]["total"])
    if head == p - 1:
        store(call["out"], tile["out"], tile, p, d)
        if call["return_state"]:
            store(call["out_max"], tile["max"], tile, p, 1)
            store(call["out_sum"], tile["sum"], tile, p, 1)


def store(out, source, tile, p, width):
    """Store an SBUF tile [rows, p·width] to rows of [B, S, h, width] (or [B, S, h] for width 1)."""
    S = out.shape[1]
    h = out.shape[2]
    move(
        dst=out.ap(
            pattern=[[h * width, tile["rows"]], [1, p * width]],
            offset=((tile["prompt"] * S + tile["row"]) * h + tile["kv"] * p) * width,
        ),
        src=source,
    )
