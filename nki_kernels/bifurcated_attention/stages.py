"""One chunk of keys against a tile of query rows, keys on partitions, in four stages.

A chunk is up to some tiles of 128 keys. Its logits lie transposed in PSUM, [keys, tile, row]: the
exponential then fills all partitions whatever the number of rows, and its result is the stationary
operand of the product with V, without any transpose. What the rows share, their maximum, is found
across partitions, and subtracted in PSUM by a product of -1 with the maxima on a diagonal.

The stages (`find_highest` and `settle_max`, `weigh`, and what the caller does before and after) are
separate functions, so that a caller can interleave those of different chunks: each engine works in
program order.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports nothing but `nki` and pieces under
that rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, FLOOR, PARTITIONS, diagonal, move
from nki_kernels.bifurcated_attention.plan import pitch_of


def chunk_constants(dtype, mask, selects):
    """Tiles that chunks use: identities, a diagonal of `mask`, ones to spread and to sum.

    Where `selects`, a zero too, which `range_select` needs.

    Weights in float16 have no room for a shift that is rounded to bfloat16: theirs is exact, in
    fp32, at four times the cycles.
    """
    column = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=column, pattern=[[1, PARTITIONS]], offset=0, channel_multiplier=0)
    partition = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=partition, pattern=[[1, 1]], offset=0, channel_multiplier=1)
    grid = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=grid, data=column, op0=nl.subtract, operand0=partition)
    exact = nl.float32 if dtype == nl.float16 else nl.bfloat16
    minus = nl.ndarray((PARTITIONS, PARTITIONS), dtype=exact, buffer=nl.sbuf)
    nisa.memset(dst=minus, value=-1.0)
    ones = nl.ndarray((PARTITIONS, 1), dtype=dtype, buffer=nl.sbuf)
    nisa.memset(dst=ones, value=1.0)
    zero = None
    if selects:
        zero = nl.ndarray((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.memset(dst=zero, value=0.0)
    return {
        "zero": zero,
        "identity": diagonal(grid, 1.0, dtype),
        "identity_fp32": diagonal(grid, 1.0, nl.float32),
        "identity_bf16": diagonal(grid, 1.0, nl.bfloat16),
        "mask_diagonal": diagonal(grid, mask, nl.bfloat16),
        "minus": minus,
        "ones": ones,
        "column": column,
        "partition": partition,
    }


def load_lengths(lengths):
    """All numbers of an int32 tensor in HBM on every partition."""
    count = 1
    for size in lengths.shape:
        count = count * size
    raw = nl.ndarray((PARTITIONS, count), dtype=nl.int32, buffer=nl.sbuf)
    move(dst=raw, src=lengths.ap(pattern=[[0, PARTITIONS], [1, count]], offset=0))
    return raw


def spread_lengths(lengths):
    """The same in fp32; exact below 2^24."""
    return in_fp32(load_lengths(lengths))


def in_fp32(raw):
    """An SBUF tile in fp32."""
    wide = nl.ndarray(raw.shape, dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=wide, src=raw)
    return wide


def new_chunk(rows, tiles, parts):
    """An unwritten chunk: its logits in PSUM, tiles in groups of up to four.

    Within a group a row's tiles are neighbours, so that engines stream them at full rate: column of
    (tile, row) = (tile // group · pitch + row) · group + tile % group.
    """
    group = 1
    if tiles % 4 == 0:
        group = 4
    elif tiles % 2 == 0:
        group = 2
    pitch = pitch_of(rows)
    logits = nl.ndarray((PARTITIONS, tiles * pitch), dtype=nl.float32, buffer=nl.psum)
    return {
        "logits": logits,
        "rows": rows,
        "tiles": tiles,
        "parts": parts,
        "pitch": pitch,
        "group": group,
    }


def tile_logits(chunk, tile, first, rows):
    """View [keys, rows] of some rows of one tile of a chunk's logits."""
    group = chunk["group"]
    pitch = chunk["pitch"]
    return chunk["logits"].ap(
        pattern=[[chunk["tiles"] * pitch, chunk["parts"]], [group, rows]],
        offset=(tile // group * pitch + first) * group + tile % group,
    )


def banks_of(chunk):
    """The groups of a chunk that share a PSUM bank, as a list of (first group, groups)."""
    groups = chunk["tiles"] // chunk["group"]
    step = BANK // (chunk["pitch"] * chunk["group"])
    banks = []
    for first in range(0, groups, step):
        banks.append((first, min(step, groups - first)))
    return banks


def group_logits(chunk, first, groups):
    """View [keys, groups, rows, tiles of a group] of a chunk's logits."""
    group = chunk["group"]
    pitch = chunk["pitch"]
    return chunk["logits"].ap(
        pattern=[
            [chunk["tiles"] * pitch, chunk["parts"]],
            [pitch * group, groups],
            [group, chunk["rows"]],
            [1, group],
        ],
        offset=first * pitch * group,
    )


def tile_weights(chunk, tile, first, rows):
    """View [keys, rows] of some rows of one tile of a chunk's weights."""
    group = chunk["group"]
    return chunk["weights"].ap(
        pattern=[[chunk["tiles"] * chunk["rows"], chunk["parts"]], [group, rows]],
        offset=(tile // group * chunk["rows"] + first) * group + tile % group,
    )


def add_mask(chunk, dead, queries, constants):
    """MASK on top of a chunk's logits where `dead` [keys, tiles · queries] says so.

    A query is a sample's token: all its heads see the same keys.
    """
    rows = chunk["rows"]
    parts = chunk["parts"]
    group = chunk["group"]
    for first, count in banks_of(chunk):
        nisa.nc_matmul(
            dst=group_logits(chunk, first, count),
            stationary=constants["mask_diagonal"][0:parts, 0:parts],
            moving=dead.ap(
                pattern=[
                    [chunk["tiles"] * queries, parts],
                    [group * queries, count],
                    [1, queries],
                    [0, rows // queries],
                    [queries, group],
                ],
                offset=first * group * queries,
            ),
        )


def find_highest(chunk):
    """Second stage, first half: the largest logit of each partition and row."""
    rows = chunk["rows"]
    parts = chunk["parts"]
    pitch = chunk["pitch"]
    tiles = chunk["tiles"]
    group = chunk["group"]
    highest = nl.ndarray((parts, rows), dtype=nl.float32, buffer=nl.sbuf)  # a partition's
    view = chunk["logits"].ap(
        pattern=[
            [tiles * pitch, parts],
            [group, rows],
            [pitch * group, tiles // group],
            [1, group],
        ],
        offset=0,
    )
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=view, axis=(2, 3))
    chunk["highest"] = highest


def settle_max(chunk, state, scale, constants):
    """Second stage, second half: what the rows are shifted by, and how their old state decays.

    The shift is the maximum so far of the unscaled logits, rounded to bf16: a softmax is the same
    whatever it is shifted by, and exponentials stay in range while |scaled logits| < 3e4. Where the
    state is to be returned, state["exact"], the maximum itself is kept beside it.
    """
    rows = chunk["rows"]
    parts = chunk["parts"]
    across = nl.ndarray((rows, parts), dtype=nl.float32, buffer=nl.psum)
    nisa.nc_matmul(
        dst=across,
        stationary=chunk["highest"],
        moving=constants["identity_fp32"][0:parts, 0:parts],
        is_moving_onezero=True,
    )
    top = next_top(across, state, constants)
    rounded = constants["minus"].dtype
    shift = nl.ndarray((rows, rows), dtype=rounded, buffer=nl.sbuf)  # top on a diagonal
    nisa.activation(
        dst=shift, op=nl.copy, data=constants["identity_bf16"][0:rows, 0:rows], scale=top
    )
    chunk["shift"] = shift
    take_top(chunk, top, across, state, scale)


def next_top(found, state, constants):
    """fp32 [rows, 1]: the state's maximum once `found` [rows, some] have joined it, rounded."""
    rows = found.shape[0]
    rounded = nl.ndarray((rows, 1), dtype=constants["minus"].dtype, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=rounded, op=nl.maximum, data=found, axis=1)
    top = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
    if len(state["top"]) == 0:
        nisa.tensor_scalar(dst=top, data=rounded, op0=nl.maximum, operand0=FLOOR)
    else:
        nisa.tensor_tensor(dst=top, data1=rounded, data2=state["top"][-1], op=nl.maximum)
    return top


def take_top(chunk, top, found, state, scale):
    """Let `top` be the state's maximum, and chunk["decay"] what its old sums are multiplied by."""
    rows = chunk["rows"]
    fresh = len(state["top"]) == 0
    if not fresh:
        before = state["top"][-1]
        if len(state["shift"]) > 0:
            before = state["shift"].pop()
        less = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(dst=less, data1=before, data2=top, op=nl.subtract)
        decay = nl.ndarray((rows, 1), dtype=nl.float32, buffer=nl.sbuf)  # exp(old max - new max)
        nisa.activation(dst=decay, op=nl.exp, data=less, scale=scale)
        chunk["decay"] = decay
    if state["exact"]:
        join_highest(found, state)
    state["top"].append(top)
    chunk["fresh"] = fresh


def join_highest(found, state):
    """Let maxima [rows, some] join the exact maximum of a state."""
    highest = nl.ndarray((found.shape[0], 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_reduce(dst=highest, op=nl.maximum, data=found, axis=1)
    if len(state["highest"]) == 0:
        nisa.tensor_scalar(dst=highest, data=highest, op0=nl.maximum, operand0=FLOOR)
    else:
        nisa.tensor_tensor(dst=highest, data1=highest, data2=state["highest"][-1], op=nl.maximum)
    state["highest"].append(highest)


def weigh(chunk, scale, dtype, constants):
    """Third stage: chunk["weights"] [keys, tiles, rows] = exp(scale · (logits - maxima))."""
    rows = chunk["rows"]
    parts = chunk["parts"]
    tiles = chunk["tiles"]
    group = chunk["group"]
    for first, count in banks_of(chunk):
        nisa.nc_matmul(
            dst=group_logits(chunk, first, count),
            stationary=constants["minus"][0:rows, 0:parts],
            moving=chunk["shift"].ap(
                pattern=[[rows, rows], [0, count], [1, rows], [0, group]], offset=0
            ),
        )
    weights = nl.ndarray((parts, tiles * rows), dtype=dtype, buffer=nl.sbuf)
    nisa.activation(
        dst=weights.ap(
            pattern=[
                [tiles * rows, parts],
                [rows * group, tiles // group],
                [group, rows],
                [1, group],
            ],
            offset=0,
        ),
        op=nl.exp,
        data=group_logits(chunk, 0, tiles // group),
        scale=scale,
    )
    chunk["weights"] = weights


def add_sums(product, chunk, d, constants):
    """Add the rows' sums of weights to column d of `product`, a PSUM tile [rows, d + 1]."""
    rows = chunk["rows"]
    parts = chunk["parts"]
    for tile in range(chunk["tiles"]):
        nisa.nc_matmul(
            dst=product[:, d : d + 1],
            stationary=tile_weights(chunk, tile, 0, rows),
            moving=constants["ones"][0:parts, :],
        )


def add_columns(product, columns, low, constants):
    """Add the transpose of a PSUM tile [d, rows] to columns low..low + d of `product`."""
    d = columns.shape[0]
    rows = columns.shape[1]
    copied = nl.ndarray((d, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=copied, op=nl.copy, data=columns)
    nisa.nc_matmul(
        dst=product[:, low : low + d],
        stationary=copied,
        moving=constants["identity_fp32"][0:d, 0:d],
        is_moving_onezero=True,
    )


def add_to_state(state, chunk):
    """Last stage: fold a chunk's product [rows, d + 1] of weights with values and ones."""
    product = chunk["product"]
    if chunk["fresh"]:
        state["o"] = nl.ndarray(product.shape, dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=state["o"], src=product)
    else:
        nisa.scalar_tensor_tensor(
            dst=state["o"],
            data=state["o"],
            op0=nl.multiply,
            operand0=chunk["decay"],
            op1=nl.add,
            operand1=product,
        )
