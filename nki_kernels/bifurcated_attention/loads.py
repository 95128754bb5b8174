"""Blocks of the context on their way from HBM to SBUF, each loaded once and met by all row tiles.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki.language as nl

from nki_kernels.attention_state.kernel import head_slices, move
from nki_kernels.bifurcated_attention.features import stored, widened


def load_keys(call, job, block):
    """K of a block, [d, keys] by slices of d."""
    if len(block["keys"]) > 0:
        return
    at, kv, keys = place_of(call, job, block)
    k_ctx = call["k_ctx"]
    d = k_ctx.shape[1]
    width = k_ctx.shape[2]
    step = keys
    if "step" in block["cut"]:
        step = block["cut"]["step"]
    for low, size in head_slices(d):
        tile = nl.ndarray((size, keys), dtype=call["stored"], buffer=nl.sbuf)
        for first in range(0, keys, step):
            count = min(step, keys - first)
            offset = (kv * d + low) * width + at + first
            source = stored(call, k_ctx, [[width, size], [1, count]], offset)
            piece = tile[:, first : first + count]
            move(dst=piece, src=source)
        block["keys"].append(widened(call, tile))


def load_values(call, job, block):
    """V of a block, [128, keys a partition · d]."""
    if "values" in block:
        return
    at, kv, _ = place_of(call, job, block)
    width, d = call["v_ctx"].shape[1:3]
    slots = block["cut"]["slots"]
    parts = block["cut"]["parts"]
    values = nl.ndarray((parts, slots * d), dtype=call["stored"], buffer=nl.sbuf)
    pattern = [[slots * d, parts], [1, slots * d]]
    source = stored(call, call["v_ctx"], pattern, offset=(kv * width + at) * d)
    move(dst=values, src=source)
    block["values"] = widened(call, values)


def place_of(call, job, block):
    """Where a block starts in the caches' slots, of which kv head it is, and its keys."""
    cut = block["cut"]
    slots = call["k_ctx"].shape[2] // call["context_len"].shape[0]
    at = job["room"]["group"] * slots + cut["start"]
    return at, job["room"]["kv"] + job["head"], cut["parts"] * cut["slots"]
