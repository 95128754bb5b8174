"""What a decode call may ask for beside the plain softmax, each as a step between the stages.

    window      flags of the keys that lie outside a row's own window, for the mask product
    soft-cap    logits leave PSUM through tanh and come back by a product with the cap on a diagonal
    sinks       a logit more that joins a row's state at its end
    8-bit keys  read as float8_e4m3; their factors scale the exponential's argument and the output

None costs an instruction in a call that does not ask for it. `call` and `job` as in kernel.py.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import PARTITIONS, move
from nki_kernels.bifurcated_attention.stages import banks_of, group_logits, spread_lengths


def name_dtypes(call):
    """How the caches are stored; before anything is loaded."""
    call["narrow"] = call["k_ctx"].dtype != call["q"].dtype
    call["stored"] = nl.float8_e4m3 if call["narrow"] else call["q"].dtype
    whole = call["q"].shape[4] % 2 == 0 and call["q"].dtype != nl.float32
    call["pairs"] = call["narrow"] and call["dma_turns"] and whole
    if call["narrow"] and not call["pairs"]:
        call["dma_turns"] = False  # DMA turns 2-byte numbers


def add_features(call, constants):
    """What a call's dtypes and options add to its constants."""
    constants["wide"] = call["q"].dtype
    constants["identity_stored"] = constants["identity"]
    if call["narrow"]:
        constants["identity_stored"] = constants["identity_bf16"]


def load_features(call, shared):
    """Bring the options that are tensors to all partitions: factors of keys, window's starts."""
    if call["with_scales"]:
        call["factors"] = spread_factors(call["k_scale"], call["scale"])
        if call["row_chunks"]:
            call["minus_factors"] = spread_factors(call["k_scale"], -call["scale"])
        if call["softcap"] > 0.0:
            scale = call["scale"] / call["softcap"]
            call["bends"] = spread_factors(call["k_scale"], scale)
        call["value_factors"] = spread_factors(call["v_scale"], 1.0)
    if call["window"] > 0:
        shared["starts"] = window_starts(call, shared)


def kv_head(job):
    """The kv head that a job is about."""
    return job["room"]["kv"] + job["head"]


# --- 8-bit keys and values


def stored(call, cache, pattern, offset):
    """A cache's access pattern in the dtype that the core knows it by.

    8-bit caches hold bytes of float8_e4m3fn within ±240, which float8_e4m3 reads alike.
    """
    if call["narrow"]:
        return cache.ap(pattern=pattern, offset=offset, dtype=nl.float8_e4m3)
    return cache.ap(pattern=pattern, offset=offset)


def widened(call, tile):
    """A loaded tile as products take it: 8-bit numbers meet 16-bit ones, but never fp32."""
    if call["narrow"] and call["q"].dtype == nl.float32:
        wide = nl.ndarray(tile.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=wide, src=tile)
        return wide
    return tile


def spread_factors(factors, scale):
    """fp32 [128, g]: the factor of each kv head, times `scale`, on every partition."""
    g = factors.shape[0]
    spread = nl.ndarray((PARTITIONS, g), dtype=nl.float32, buffer=nl.sbuf)
    source = factors.ap(pattern=[[0, PARTITIONS], [1, g]], offset=0)
    move(dst=spread, src=source)
    nisa.tensor_scalar(dst=spread, data=spread, op0=nl.multiply, operand0=scale)
    return spread


def factor_of(call, job, partitions):
    """What a chunk's logits are multiplied by: a float, or one of a head as a column."""
    if call["softcap"] > 0.0:
        return call["softcap"]  # they are tanh(scaled logit / cap)
    if call["with_scales"]:
        return call["factors"][0:partitions, kv_head(job) : kv_head(job) + 1]
    return call["scale"]


def minus_factor_of(call, job, partitions):
    """The same with the other sign, for rows on partitions."""
    if call["softcap"] > 0.0:
        return -call["softcap"]
    if call["with_scales"]:
        return call["minus_factors"][0:partitions, kv_head(job) : kv_head(job) + 1]
    return -call["scale"]


def scale_values(call, job, inverse):
    """Multiply a row's inverse sum by the factor of its values."""
    kv = kv_head(job)
    nisa.tensor_tensor(
        dst=inverse,
        data1=inverse,
        data2=call["value_factors"][0 : inverse.shape[0], kv : kv + 1],
        op=nl.multiply,
    )


# --- soft-cap


def bend_logits(call, job, chunk, constants):
    """Logits s of a chunk become tanh(scale · s / c), whose factor is c.

    ScalarE bends them on the way to SBUF; a product with ones on a diagonal brings them back to
    PSUM, where masks can be added.
    """
    rows = chunk["rows"]
    parts = chunk["parts"]
    tiles = chunk["tiles"]
    group = chunk["group"]
    bent = nl.ndarray((parts, tiles * rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=bent.ap(
            pattern=[
                [tiles * rows, parts],
                [rows * group, tiles // group],
                [group, rows],
                [1, group],
            ],
            offset=0,
        ),
        op=nl.tanh,
        data=group_logits(chunk, 0, tiles // group),
        scale=bend_of(call, job, parts),
    )
    chunk["logits"] = nl.ndarray(chunk["logits"].shape, dtype=nl.float32, buffer=nl.psum)
    for first, count in banks_of(chunk):
        nisa.nc_matmul(
            dst=group_logits(chunk, first, count),
            stationary=constants["identity_fp32"][0:parts, 0:parts],
            moving=bent.ap(
                pattern=[[tiles * rows, parts], [rows * group, count], [group, rows], [1, group]],
                offset=first * rows * group,
            ),
        )


def bend_of(call, job, partitions):
    """What the tanh's argument is a logit's multiple of: a float, or one of a head as a column."""
    if call["with_scales"]:
        return call["bends"][0:partitions, kv_head(job) : kv_head(job) + 1]
    return call["scale"] / call["softcap"]


def bent_rows(call, job, raw):
    """The same of logits [rows, keys] in PSUM, in SBUF."""
    if call["softcap"] == 0.0:
        return raw
    bent = nl.ndarray(raw.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=bent, op=nl.tanh, data=raw, scale=bend_of(call, job, raw.shape[0]))
    return bent


# --- window


def window_starts(call, shared):
    """fp32 [128, G · r · n]: the first position that each query token sees, on every partition."""
    G, r, n = call["q"].shape[0:3]
    if call["with_position"]:
        last = spread_lengths(call["query_position"])
    else:
        last = nl.ndarray((PARTITIONS, G * r), dtype=nl.float32, buffer=nl.sbuf)
        context = shared["context_len"]
        nisa.scalar_tensor_tensor(
            dst=last,
            data=shared["suffix_len"],
            op0=nl.subtract,
            operand0=1.0,
            op1=nl.add,
            operand1=context.ap(pattern=[[G, PARTITIONS], [1, G], [0, r]], offset=0),
        )
    back = nl.ndarray((PARTITIONS, G * r * n), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(
        dst=back, pattern=[[0, G * r], [1, n]], offset=2 - n - call["window"], channel_multiplier=0
    )
    starts = nl.ndarray((PARTITIONS, G * r * n), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=starts,
        data1=last.ap(pattern=[[G * r, PARTITIONS], [1, G * r], [0, n]], offset=0),
        data2=back,
        op=nl.add,
    )
    return starts


def starts_of_rows(call, room, shared, constants):
    """fp32 [rows, 1]: the first position that each row of a tile sees."""
    if call["window"] == 0:
        return constants["zero"][0 : room["rows"], :]
    if len(room["starts"]) == 0:
        G, r, n = call["q"].shape[0:3]
        s, samples, t, tokens, _, count = room["tile"]
        column = nl.ndarray((room["rows"], 1), dtype=nl.float32, buffer=nl.sbuf)
        move(
            dst=column,
            src=shared["starts"].ap(
                pattern=[[G * r * n, 1], [1, samples * tokens], [0, count]],
                offset=(room["group"] * r + s) * n + t,
            ),
        )
        room["starts"].append(column)
    return room["starts"][0]


def outside_window(call, job, shared):
    """bf16 [keys, tiles · queries] of a context chunk, 1 where a query does not see a key.

    It lies before the query's window, or at or behind context_len: one flag, one mask.
    """
    room = job["room"]
    cut = job["block"]["cut"]
    parts = job["parts"]
    tiles = job["tiles"]
    G, r, n = call["q"].shape[0:3]
    s, samples, t, tokens, _, _ = room["tile"]
    queries = samples * tokens
    group = room["group"]
    position = nl.ndarray((parts, tiles), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(
        dst=position,
        pattern=[[1, tiles]],
        offset=cut["start"] + job["first"],
        channel_multiplier=cut["slots"],
    )
    positions = position.ap(pattern=[[tiles, parts], [1, tiles], [0, queries]], offset=0)
    outside = nl.ndarray((parts, tiles * queries), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.tensor_tensor(
        dst=outside,
        data1=positions,
        data2=shared["starts"].ap(
            pattern=[[G * r * n, parts], [0, tiles], [1, queries]],
            offset=(group * r + s) * n + t,
        ),
        op=nl.less,
    )
    nisa.scalar_tensor_tensor(
        dst=outside,
        data=positions,
        op0=nl.greater_equal,
        operand0=shared["context_len"][0:parts, group : group + 1],
        op1=nl.maximum,
        operand1=outside,
    )
    return outside


def before_suffix_window(call, job, shared, slot, dead):
    """Add to `dead` [keys, tiles · queries] the own slots that a query's window has left behind.

    `slot` holds what a suffix length must exceed for a slot to be seen; by more than the window it
    must not.
    """
    room = job["room"]
    G, r, _ = call["q"].shape[0:3]
    s, samples, _, tokens, _, _ = room["tile"]
    group = room["group"]
    parts, columns = dead.shape
    past = nl.ndarray((parts, columns), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=past,
        data=slot[:, 0:columns],
        op0=nl.add,
        operand0=job["first"] + call["window"] + 1.0,
        op1=nl.less_equal,
        operand1=shared["suffix_len"].ap(
            pattern=[[G * r, parts], [0, job["tiles"]], [1, samples], [0, tokens]],
            offset=group * r + s,
        ),
    )
    nisa.tensor_tensor(dst=dead, data1=dead, data2=past, op=nl.maximum)


# --- sinks


def join_sink(call, job):
    """Let a head's sink take part in its rows' maxima and sums: a logit without a value.

    From here on the state's maxima are those of scaled logits.
    """
    room = job["room"]
    state = job["state"]
    rows = room["rows"]
    i = job["head"]
    if len(room["sinks"]) == 0:
        room["sinks"].append(load_sinks(call, room))
    sink = room["sinks"][0][:, i : i + 1]
    d = state["o"].shape[1] - 1
    top = scaled_with(state["top"][-1], factor_of(call, job, rows))
    joined = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=joined, data1=top, data2=sink, op=nl.maximum)
    decay = exp_of_difference(top, joined, 1.0)
    nisa.tensor_scalar(dst=state["o"], data=state["o"], op0=nl.multiply, operand0=decay)
    total = state["o"][:, d : d + 1]
    extra = exp_of_difference(sink, joined, 1.0)
    nisa.tensor_tensor(dst=total, data1=total, data2=extra, op=nl.add)
    state["top"].append(joined)
    if state["exact"]:
        highest = scaled_with(state["highest"][-1], factor_of(call, job, rows))
        nisa.tensor_tensor(dst=highest, data1=highest, data2=sink, op=nl.maximum)
        state["highest"].append(highest)


def load_sinks(call, room):
    """fp32 [rows, heads of a pass]: the sink of each row's query head."""
    _, samples, _, tokens, head, count = room["tile"]
    p = call["q"].shape[3] // room["g"]
    sinks = nl.ndarray((room["rows"], room["heads"]), dtype=nl.float32, buffer=nl.sbuf)
    move(
        dst=sinks,
        src=call["sinks"].ap(
            pattern=[[0, samples * tokens], [1, count], [p, room["heads"]]],
            offset=room["kv"] * p + head,
        ),
    )
    return sinks


def scaled_with(column, factor):
    """column · factor, fp32 [rows, 1]."""
    scaled = nl.ndarray(column.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=scaled, data=column, op0=nl.multiply, operand0=factor)
    return scaled


def exp_of_difference(a, b, factor):
    """exp(factor · (a - b)), fp32 [rows, 1]."""
    less = nl.ndarray(a.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_tensor(dst=less, data1=a, data2=b, op=nl.subtract)
    grown = nl.ndarray(a.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=grown, op=nl.exp, data=less, scale=factor)
    return grown
