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

from nki_kernels.attention_state.kernel import BANK, PARTITIONS, transpose_rows
from nki_kernels.bifurcated_attention.stages import (
    banks_of,
    group_logits,
    tile_logits,
    tile_weights,
)

FAR = 1.0e9  # beyond every suffix length: the slot of another sample


def suffix_sizes(call, tile, suffix_slots, suffix_tiles):
    """How a row tile's suffix rows lie on partitions.

    A sample's S_dec rows take `span` partitions with `slots` consecutive rows each; `together`
    samples lie side by side, in `blocks` blocks of as many.
    """
    S_dec = call["k_suf"].shape[1] // (call["suffix_len"].shape[0] * call["suffix_len"].shape[1])
    span = 1
    for candidate in range(1, min(S_dec, PARTITIONS) + 1):
        if S_dec % candidate == 0 and S_dec // candidate >= suffix_slots:
            span = candidate
    samples = tile[1]
    together = 1
    for candidate in range(1, min(samples, PARTITIONS // span) + 1):
        if samples % candidate == 0:
            together = candidate
    return {
        "S_dec": S_dec,
        "span": span,
        "slots": S_dec // span,
        "together": together,
        "blocks": samples // together,
        "parts": span * together,
        "step": suffix_tiles,
    }


def load_suffix(call, job, constants):
    """K, transposed, and V of a suffix chunk, and which slots a row must not see."""
    room = job["room"]
    sizes = job["sizes"]
    k_suf = call["k_suf"]
    d = k_suf.shape[2]
    parts = sizes["parts"]
    blocks = sizes["blocks"]
    tiles = job["tiles"]
    r = call["suffix_len"].shape[1]
    kv = room["kv"] + job["head"]
    base = (room["group"] * r + room["tile"][0]) * sizes["S_dec"] + job["first"]
    pattern = [
        [sizes["slots"] * d, parts],
        [sizes["together"] * sizes["S_dec"] * d, blocks],
        [1, tiles * d],
    ]
    offset = (kv * k_suf.shape[1] + base) * d
    rows = nl.ndarray((parts, blocks * tiles * d), dtype=k_suf.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=rows, src=k_suf.ap(pattern=pattern, offset=offset))
    values = nl.ndarray((parts, blocks * tiles * d), dtype=k_suf.dtype, buffer=nl.sbuf)
    nisa.dma_copy(dst=values, src=call["v_suf"].ap(pattern=pattern, offset=offset))
    job["values"] = values

    # As many tiles as fill a PSUM bank are transposed together.
    keys = []
    together = BANK // parts
    for first in range(0, blocks * tiles, together):
        chunks = []
        for i in range(first, min(first + together, blocks * tiles)):
            chunks.append(rows[:, i * d : (i + 1) * d])
        turned = transpose_rows(chunks, constants["identity"])
        for i in range(len(chunks)):
            keys.append(turned[:, i * parts : (i + 1) * parts])
    job["keys"] = keys
    if job["head"] == 0:
        room["dead"].append(dead_slots(call, job))


def dead_slots(call, job):
    """bf16 [partitions, tiles · rows], 1 where a row must not see a slot: another's, or dead."""
    room = job["room"]
    sizes = job["sizes"]
    s, samples, t, tokens, _, count = room["tile"]
    rows = room["rows"]
    parts = sizes["parts"]
    tiles = job["tiles"]
    n = call["q"].shape[2]
    r = call["suffix_len"].shape[1]
    if len(room["dead"]) == 0:
        raw = nl.ndarray((PARTITIONS, samples), dtype=nl.int32, buffer=nl.sbuf)
        nisa.dma_copy(
            dst=raw,
            src=call["suffix_len"].ap(
                pattern=[[0, PARTITIONS], [1, samples]], offset=room["group"] * r + s
            ),
        )
        # Token t of n does not see the n - 1 - t tokens behind it.
        unseen = nl.ndarray((PARTITIONS, rows), dtype=nl.float32, buffer=nl.sbuf)
        nisa.iota(dst=unseen, pattern=[[0, samples], [1, tokens], [0, count]], offset=t - (n - 1))
        lengths = nl.ndarray((PARTITIONS, samples), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_copy(dst=lengths, src=raw)
        seen = nl.ndarray((PARTITIONS, rows), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=seen,
            data1=lengths.ap(
                pattern=[[samples, PARTITIONS], [1, samples], [0, tokens * count]], offset=0
            ),
            data2=unseen,
            op=nl.add,
        )
        room["seen"] = seen
        room["slot"] = own_slots(sizes, tokens * count, min(sizes["step"], sizes["slots"]))
    dead = nl.ndarray((parts, tiles * rows), dtype=nl.bfloat16, buffer=nl.sbuf)
    nisa.scalar_tensor_tensor(
        dst=dead,
        data=room["slot"][:, 0 : tiles * rows],
        op0=nl.add,
        operand0=job["first"] * 1.0,
        op1=nl.greater_equal,
        operand1=room["seen"].ap(pattern=[[rows, parts], [0, tiles], [1, rows]], offset=0),
    )
    return dead


def own_slots(sizes, width, tiles):
    """fp32 [partitions, tiles · rows]: a tile's slot on a partition as its row's sample counts
    it, FAR where it is another sample's. `width` rows a sample.
    """
    parts = sizes["parts"]
    together = sizes["together"]
    pattern = [[1, tiles], [0, sizes["blocks"]], [-sizes["S_dec"], together], [0, width]]
    columns = tiles * sizes["blocks"] * together * width
    slot = nl.ndarray((parts, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=slot, pattern=pattern, offset=0, channel_multiplier=sizes["slots"])
    mine = nl.ndarray((parts, columns), dtype=nl.float32, buffer=nl.sbuf)
    nisa.affine_select(
        dst=mine,
        pattern=pattern,
        channel_multiplier=sizes["slots"],
        on_true_tile=slot,
        on_false_value=FAR,
        cmp_op=nl.greater_equal,
        offset=0,
    )
    return mine


def suffix_logits(job, chunk, constants):
    """K · q of samples that share partitions, and MASK on top where a row must not see a slot."""
    room = job["room"]
    sizes = job["sizes"]
    rows = chunk["rows"]
    parts = chunk["parts"]
    tiles = chunk["tiles"]
    width = rows // sizes["blocks"]
    queries = room["queries"][job["head"]]
    for block in range(sizes["blocks"]):
        at = block * width
        for tile in range(tiles):
            nisa.nc_matmul(
                dst=tile_logits(chunk, tile, at, width),
                stationary=job["keys"][block * tiles + tile],
                moving=queries[:, at : at + width],
            )
    dead = room["dead"][job["number"]]
    group = chunk["group"]
    for first, count in banks_of(chunk):
        nisa.nc_matmul(
            dst=group_logits(chunk, first, count),
            stationary=constants["mask_diagonal"][0:parts, 0:parts],
            moving=dead.ap(
                pattern=[
                    [tiles * rows, parts],
                    [group * rows, count],
                    [1, rows],
                    [rows, group],
                ],
                offset=first * group * rows,
            ),
        )


def suffix_product(job, product, d, constants):
    """Weights times the suffixes' values: [d, rows] sample by sample, then turned."""
    sizes = job["sizes"]
    rows = job["room"]["rows"]
    tiles = job["tiles"]
    width = rows // sizes["blocks"]
    columns = nl.ndarray((d, rows), dtype=nl.float32, buffer=nl.psum)
    for block in range(sizes["blocks"]):
        at = block * width
        for tile in range(tiles):
            value = (block * tiles + tile) * d
            nisa.nc_matmul(
                dst=columns[:, at : at + width],
                stationary=job["values"][:, value : value + d],
                moving=tile_weights(job["chunk"], tile, at, width),
            )
    copied = nl.ndarray((d, rows), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=copied, op=nl.copy, data=columns)
    nisa.nc_matmul(
        dst=product[:, 0:d],
        stationary=copied,
        moving=constants["identity_fp32"][0:d, 0:d],
        is_moving_onezero=True,
    )
