"""Chunks of the context with keys on partitions: what the decode kernel's stages need of them.

A chunk is some of the slots that a block has on every partition: tile j holds key j of each. Dead
keys are masked by a product, as context_len is known on the core alone.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import PARTITIONS
from nki_kernels.bifurcated_attention.features import bend_logits, outside_window
from nki_kernels.bifurcated_attention.stages import (
    add_columns,
    add_mask,
    banks_of,
    group_logits,
    tile_logits,
    tile_weights,
)

TURNED_ROWS = 64  # a product of the PE array takes the time of 64 columns or more
TURNED_TILES = 8  # tiles from which on it pays to turn the product at the end


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


def context_logits(call, job, chunk, shared, constants):
    """K · q, and MASK on top where a key is dead: flags times a diagonal, a PSUM bank at a time."""
    cut = job["block"]["cut"]
    slots = cut["slots"]
    parts = chunk["parts"]
    queries = job["room"]["queries"][job["head"]]
    for tile in range(chunk["tiles"]):
        for i in range(len(queries)):
            keys = job["block"]["keys"][i]
            nisa.nc_matmul(
                dst=tile_logits(chunk, tile, 0, chunk["rows"]),
                stationary=keys.ap(
                    pattern=[[parts * slots, keys.shape[0]], [slots, parts]],
                    offset=job["first"] + tile,
                ),
                moving=queries[i],
            )
    if call["softcap"] > 0.0:
        bend_logits(call, job, chunk, constants)
    if call["window"] > 0:
        queries = job["room"]["tile"][1] * job["room"]["tile"][3]
        add_mask(chunk, outside_window(call, job, shared), queries, constants)
        return
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
    turned = rows <= TURNED_ROWS and job["tiles"] >= TURNED_TILES and d <= PARTITIONS
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
        add_columns(product, columns, 0, constants)
