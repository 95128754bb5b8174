"""Chunks of the samples' own suffixes: what the decode kernel's stages need beside the context's.

The suffix rows of several samples share the partitions: a sample's S_dec rows take `span`
partitions with `slots` consecutive rows each, so that no load is cut shorter than that, and as many
samples as fit lie side by side. A tile is one row of every partition. It meets the queries of all
its samples; what belongs to another sample is masked like a dead slot, so that the weights come out
block-diagonal and one product with V serves all samples of a tile.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, head_slices, move
from nki_kernels.bifurcated_attention.features import (
    before_suffix_window,
    bend_logits,
    stored,
    widened,
)
from nki_kernels.bifurcated_attention.plan import chosen
from nki_kernels.bifurcated_attention.stages import (
    add_columns,
    add_mask,
    tile_logits,
    tile_weights,
)

VALUE_PIECES = 8
FAR = 1.0e9  # beyond every suffix length: the slot of another sample


def load_suffix(call, job, shared):
    """K of a suffix chunk, and what a row must not see; K is turned later, or by DMA."""
    room = job["room"]
    k_suf = call["k_suf"]
    d = k_suf.shape[2]
    parts = room["sizes"]["parts"]
    blocks = room["sizes"]["blocks"]
    tiles = job["tiles"]
    run, offset = place_of_suffix(call, job)
    job["keys"] = []
    job["turned"] = 0
    if call["pairs"]:
        load_pairs(call, job)
    elif call["dma_turns"]:
        keys = nl.ndarray((d, tiles, blocks * parts), dtype=k_suf.dtype, buffer=nl.sbuf)
        nisa.dma_transpose(
            dst=keys,
            src=k_suf.ap(pattern=[[run, blocks * parts], [d, tiles], [1, d]], offset=offset),
            axes=(2, 1, 0),
        )
        for i in range(blocks * tiles):
            at = i % tiles * blocks * parts + i // tiles * parts
            job["keys"].append(
                [keys.ap(pattern=[[tiles * blocks * parts, d], [1, parts]], offset=at)]
            )
        job["turned"] = blocks * tiles
    else:
        rows = nl.ndarray((parts, blocks * tiles * d), dtype=call["stored"], buffer=nl.sbuf)
        pattern = [[run, parts], [run * parts, blocks], [1, tiles * d]]
        source = stored(call, k_suf, pattern, offset)
        move(dst=rows, src=source)
        job["rows"] = rows
        shared["unturned"].append(job)
    if job["head"] == 0:
        room["dead"].append(dead_slots(call, job, shared))


def load_pairs(call, job):
    """K of a suffix chunk in 8 bits, turned by DMA two numbers at a time.

    Partition j gets elements 2j and 2j + 1 of d, side by side: keys and queries meet once with the
    even ones and once with the odd.
    """
    d = call["k_suf"].shape[2]
    parts = job["room"]["sizes"]["parts"]
    blocks = job["room"]["sizes"]["blocks"]
    tiles = job["tiles"]
    run, offset = place_of_suffix(call, job)
    keys = nl.ndarray((d // 2, tiles, blocks * parts), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.dma_transpose(
        dst=keys,
        src=call["k_suf"].ap(
            pattern=[[run // 2, blocks * parts], [d // 2, tiles], [1, d // 2]],
            offset=offset // 2,
            dtype=nl.bfloat16,
        ),
        axes=(2, 1, 0),
    )
    width = 2 * tiles * blocks * parts
    for i in range(blocks * tiles):
        at = i % tiles * blocks * parts + i // tiles * parts
        halves = []
        for odd in range(2):
            halves.append(
                keys.ap(
                    pattern=[[width, d // 2], [2, parts]],
                    offset=2 * at + odd,
                    dtype=nl.float8_e4m3,
                )
            )
        job["keys"].append(halves)
    job["turned"] = blocks * tiles


def load_suffix_values(call, job):
    """V of a suffix chunk, in some pieces: the first ones can be used while the last one comes."""
    d = call["v_suf"].shape[2]
    parts = job["room"]["sizes"]["parts"]
    blocks = job["room"]["sizes"]["blocks"]
    tiles = job["tiles"]
    run, offset = place_of_suffix(call, job)
    job["values"] = []
    piece = value_piece(blocks)
    for first in range(0, blocks, piece):
        count = min(piece, blocks - first)
        values = nl.ndarray((parts, count * tiles * d), dtype=call["stored"], buffer=nl.sbuf)
        pattern = [[run, parts], [run * parts, count], [1, tiles * d]]
        source = stored(call, call["v_suf"], pattern, offset + first * run * parts)
        move(dst=values, src=source)
        values = widened(call, values)
        for i in range(count * tiles):
            job["values"].append(values[:, i * d : (i + 1) * d])


def value_piece(blocks):
    """Blocks of suffix values that are one load."""
    return -(-blocks // VALUE_PIECES)


def place_of_suffix(call, job):
    """Numbers of a partition, all blocks one behind the other, and where a chunk's first lie."""
    room = job["room"]
    sizes = room["sizes"]
    _, rows, d = call["k_suf"].shape
    base = (room["group"] * call["suffix_len"].shape[1] + room["tile"][0]) * sizes["S_dec"]
    at = (room["kv"] + job["head"]) * rows + base + job["first"]
    return sizes["slots"] * d, at * d


def turn_keys(job, batches, constants):
    """Transpose K of up to `batches` times as many tiles as fill a PSUM bank.

    VectorE moves `copy_share` of every 8 such banks back to SBUF, ScalarE the others.
    """
    sizes = job["room"]["sizes"]
    parts = sizes["parts"]
    total = sizes["blocks"] * job["tiles"]
    rows = job["rows"]
    d = constants["d"]
    for _ in range(batches):
        first = job["turned"]
        count = min(BANK // parts, total - first)
        if count > 0:
            for _ in range(count):
                job["keys"].append([])
            for low, size in head_slices(d):
                turned = nl.ndarray((size, count * parts), dtype=nl.float32, buffer=nl.psum)
                keys = nl.ndarray((size, count * parts), dtype=constants["wide"], buffer=nl.sbuf)
                for i in range(count):
                    at = (first + i) * d + low
                    nisa.nc_matmul(
                        dst=turned[:, i * parts : (i + 1) * parts],
                        stationary=rows[:, at : at + size],
                        moving=constants["identity_stored"][0:parts, 0:parts],
                        is_moving_onezero=True,
                    )
                    job["keys"][first + i].append(keys[:, i * parts : (i + 1) * parts])
                if chosen(first // count, constants["copy_share"]):
                    nisa.tensor_copy(dst=keys, src=turned)
                else:
                    nisa.activation(dst=keys, op=nl.copy, data=turned)
            job["turned"] = first + count


def dead_slots(call, job, shared):
    """bf16 [partitions, tiles · queries], 1 where a slot is another sample's or dead.

    A query is a sample's token: all its heads see the same slots.
    """
    room = job["room"]
    sizes = job["room"]["sizes"]
    s, samples, _, tokens, _, _ = room["tile"]
    queries = samples * tokens
    parts = sizes["parts"]
    tiles = job["tiles"]
    r = call["suffix_len"].shape[1]
    slot = own_slots(shared, room)
    dead = nl.ndarray((parts, tiles * queries), dtype=nl.bfloat16, buffer=nl.sbuf)
    lengths = shared["suffix_len"].ap(
        pattern=[[call["q"].shape[0] * r, parts], [0, tiles], [1, samples], [0, tokens]],
        offset=room["group"] * r + s,
    )
    slots = slot[:, 0 : tiles * queries]
    if call["split_units"] and job["first"] == 0 and call["window"] == 0:
        # VectorE is what such a call waits for.
        nisa.tensor_tensor(
            dst=dead, data1=slots, data2=lengths, op=nl.greater_equal, engine=nisa.engine.gpsimd
        )
        return dead
    nisa.scalar_tensor_tensor(
        dst=dead,
        data=slots,
        op0=nl.add,
        operand0=job["first"] * 1.0,
        op1=nl.greater_equal,
        operand1=lengths,
    )
    if call["window"] > 0:
        before_suffix_window(call, job, shared, slot, dead)
    return dead


def own_slots(shared, room):
    """fp32 [partitions, tiles · queries]: what a suffix length must exceed for a slot to be seen.

    That is the slot's number as the query's sample counts it, more by the n - 1 - t tokens behind
    token t of n, and FAR or more where the slot is another sample's: a negative number times -FAR,
    or, for those behind, a number beyond every length.
    """
    sizes = room["sizes"]
    _, samples, t, tokens, _, _ = room["tile"]
    name = f"{samples} {t} {tokens}"
    if name in shared["slots"]:
        return shared["slots"][name]
    parts = sizes["parts"]
    tiles = min(sizes["step"], sizes["slots"])
    together = sizes["together"]
    blocks = sizes["blocks"]
    first = nl.ndarray((parts, tiles * together), dtype=nl.float32, buffer=nl.sbuf)  # of a block
    pattern = [[1, tiles], [-sizes["S_dec"], together]]
    nisa.iota(dst=first, pattern=pattern, offset=0, channel_multiplier=sizes["slots"])
    own = first.ap(
        pattern=[[tiles * together, parts], [together, tiles], [0, blocks], [1, together]], offset=0
    )
    mine = nl.ndarray((parts, tiles * samples), dtype=nl.float32, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=mine.reshape((parts, tiles, blocks, together)),
        data=own,
        op0=nl.multiply,
        operand0=-FAR,
        op1=nl.maximum,
        operand1=own,
    )
    slot = mine
    if sizes["n"] > 1:
        columns = tiles * samples * tokens
        later = nl.ndarray((parts, columns), dtype=nl.float32, buffer=nl.sbuf)
        pattern = [[0, tiles * samples], [-1, tokens]]
        nisa.iota(dst=later, pattern=pattern, offset=sizes["n"] - 1 - t)
        slot = nl.ndarray((parts, columns), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=slot,
            data1=mine.ap(
                pattern=[[tiles * samples, parts], [1, tiles * samples], [0, tokens]], offset=0
            ),
            data2=later,
            op=nl.add,
        )
    shared["slots"][name] = slot
    return slot


def suffix_logits(call, job, chunk, constants):
    """K · q of samples that share partitions, and MASK on top where a row must not see a slot."""
    room = job["room"]
    sizes = job["room"]["sizes"]
    rows = chunk["rows"]
    tiles = chunk["tiles"]
    width = rows // sizes["blocks"]
    queries = (room["halves"] if call["pairs"] else room["queries"])[job["head"]]
    for block in range(sizes["blocks"]):
        at = block * width
        for tile in range(tiles):
            keys = job["keys"][block * tiles + tile]
            for i in range(len(keys)):
                nisa.nc_matmul(
                    dst=tile_logits(chunk, tile, at, width),
                    stationary=keys[i],
                    moving=queries[i][:, at : at + width],
                )
    if call["softcap"] > 0.0:
        bend_logits(call, job, chunk, constants)
    add_mask(chunk, room["dead"][job["number"]], room["tile"][1] * room["tile"][3], constants)


def suffix_product(job, product, d, constants, count):
    """Weights times the suffixes' values in `count` blocks: [d, rows] block by block, then turned.

    The other blocks' rows of `product` stay as they are.
    """
    tiles = job["tiles"]
    width = job["room"]["rows"] // job["room"]["sizes"]["blocks"]
    for low, size in head_slices(d):
        columns = nl.ndarray((size, count * width), dtype=nl.float32, buffer=nl.psum)
        for block in range(count):
            at = block * width
            for tile in range(tiles):
                nisa.nc_matmul(
                    dst=columns[:, at : at + width],
                    stationary=job["values"][block * tiles + tile][:, low : low + size],
                    moving=tile_weights(job["chunk"], tile, at, width),
                )
        add_columns(product[0 : count * width, :], columns, low, constants)
