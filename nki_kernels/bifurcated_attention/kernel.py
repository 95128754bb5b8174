"""Decode attention with a shared context, on a NeuronCore: chunks of the context and chunks of the
suffixes, folded into one state a row.

Keys lie on partitions (see stages.py). Query rows are (sample, token, head of one
kv head), at most 128 a row tile. Each block of the context's keys and values is loaded once and met
by all row tiles of its group; each row tile's suffixes are loaded for it alone, several samples
sharing partitions. All chunks of a call pass through one pipeline of stages, so that every engine
has work of other chunks while one waits. Logits never leave the core. README.md draws it.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import MASK
from nki_kernels.bifurcated_attention.closing import (
    choose_closing,
    close,
    end_rows,
    set_apart,
)
from nki_kernels.bifurcated_attention.context import context_logits, context_product, dead_keys
from nki_kernels.bifurcated_attention.features import (
    add_features,
    factor_of,
    load_features,
    minus_factor_of,
    name_dtypes,
)
from nki_kernels.bifurcated_attention.loads import load_keys, load_values
from nki_kernels.bifurcated_attention.plan import (
    make_passes,
    new_room,
    plan_head,
    share_out,
    suffix_sizes,
)
from nki_kernels.bifurcated_attention.row_chunks import (
    fold_rows,
    round_top,
    row_logits,
    settle_rows,
    show_top,
    turn_weights,
    weigh_rows,
)
from nki_kernels.bifurcated_attention.rows import finish, halve_queries, load_queries, turn_queries
from nki_kernels.bifurcated_attention.stages import (
    add_sums,
    add_to_state,
    chunk_constants,
    find_highest,
    in_fp32,
    load_lengths,
    new_chunk,
    settle_max,
    weigh,
)
from nki_kernels.bifurcated_attention.suffix import (
    load_suffix,
    load_suffix_values,
    own_slots,
    suffix_logits,
    suffix_product,
    turn_keys,
)
from nki_kernels.bifurcated_attention.timetable import timetable


@nki.jit
def bifurcated_attention_kernel(
    q,
    k_ctx,
    v_ctx,
    k_suf,
    v_suf,
    context_len,
    suffix_len,
    scale,
    query_position=None,
    sinks=None,
    k_scale=None,
    v_scale=None,
    with_position=False,
    with_sinks=False,
    with_scales=False,
    window=0,
    softcap=0.0,
    return_state=False,
    heads_per_pass=1,
    tiles_per_pass=1,
    tile_samples=128,
    block_slots=16,
    suffix_slots=8,
    suffix_tiles=8,
    chunk_columns=1024,
    ramp=4,
    ahead=1,
    turns=4,
    dma_turns=False,
    late_suffixes=False,
    row_chunks=False,
    turn_share=0,
    copy_share=4,
    lag=2,
    unit_slots=32,
    resident_slots=64,
    values_late=0,
    split_units=False,
    turn_lag=1,
    start_jobs=0,
    ramp_down=0,
    join_slots=1024,
):
    """Attend r samples of each of G prompts; all tensors in HBM, dense.

    q              [G, r, n, h, d]    float32, bfloat16 or float16; d <= 256
    k_ctx          [g, d, G·S_ctx]    context keys, transposed; h a multiple of g. As the other
                                      caches in q's dtype, or in 8 bits read as float8_e4m3
    v_ctx          [g, G·S_ctx, d]
    k_suf, v_suf   [g, G·r·S_dec, d]  rows of sample (j, i) from (j·r + i)·S_dec
    context_len    int32 [G]          live context slots of a group
    suffix_len     int32 [G, r]       live suffix rows of a sample, this step's n tokens included
    scale          compile-time float, > 0
    window         positions a query sees, its own included; 0 is all
    query_position int32 [G, r] with `with_position`: where each sample's last query token stands
    softcap        c bends each scaled logit s to c·tanh(s / c); 0 does not
    sinks          float32 [h] with `with_sinks`: a logit each head adds to its denominators
    k_scale        float32 [g] with `with_scales`, and v_scale: factors of 8-bit keys and values
    return_state   also return max and sum, float32 [G, r, n, h], of keys and sink
    and the sizes of `tuning.Schedule`.

    Query token t sees the whole context, and its suffix up to row suffix_len - (n - 1 - t). On a
    logical core of two physical ones each takes a share of the heads, else of prompts, of the
    context, or of samples.
    """
    G, r, n, h, d = q.shape
    g = k_ctx.shape[0]
    out = nl.ndarray((G, r, n, h, d), dtype=q.dtype, buffer=nl.shared_hbm)
    stores = [out]
    if return_state:
        out_max = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)
        out_sum = nl.ndarray((G, r, n, h), dtype=nl.float32, buffer=nl.shared_hbm)
        stores = [out, out_max, out_sum]
    old = nisa.get_nc_version() == nisa.nc_version.gen2
    rows_first = row_chunks and not (old and (window > 0 or softcap > 0.0))  # range_select is v3's
    call = {
        "q": q,
        "k_ctx": k_ctx,
        "v_ctx": v_ctx,
        "k_suf": k_suf,
        "v_suf": v_suf,
        "context_len": context_len,
        "suffix_len": suffix_len,
        "scale": scale,
        "stores": stores,
        "dma_turns": dma_turns,
        "late_suffixes": late_suffixes,
        "late": [],
        "query_position": query_position,
        "sinks": sinks,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "with_position": with_position,
        "with_sinks": with_sinks,
        "with_scales": with_scales,
        "window": window,
        "softcap": softcap,
        "row_chunks": rows_first,
        "turn_share": turn_share,
        "copy_share": copy_share,
        "copies": 0,
        "turned_groups": 0,
        "unit_slots": unit_slots,
        "resident_slots": resident_slots,
        "values_late": values_late,
        "split_units": split_units and rows_first,
        "turn_lag": turn_lag,
        "start_jobs": start_jobs,
        "join_slots": join_slots,
        "old": old,
    }

    name_dtypes(call)
    call["core"] = nl.program_id(0)
    call["own"] = share_out(call, nl.program_id(0), nl.num_programs(0))
    passes = make_passes(call["own"], n, h // g, tile_samples, tiles_per_pass, heads_per_pass)
    jobs: list = []
    for number in range(len(passes)):
        group, batch, kv, heads = passes[number]
        rooms = []
        for tile in batch:
            sizes = suffix_sizes(call, tile, suffix_slots, suffix_tiles)
            rooms.append(new_room(group, tile, kv, heads, g, sizes))
        for i in range(heads):
            plan_head(
                jobs,
                call,
                rooms,
                i,
                [block_slots, (ramp, ramp_down or ramp), chunk_columns],
                number + i == 0,
                number + 1 == len(passes) and i + 1 == heads,
            )
    if len(call["late"]) > 0 and len(jobs) > 0:
        for _ in range(lag):  # nothing is to wait behind loads that come last
            jobs.append({})
    jobs.extend(call["late"])
    if len(jobs) > 0:
        run(call, jobs, ahead, turns, lag)

    if return_state:
        return stores[0], stores[1], stores[2]
    return stores[0]


# --- the pipeline


def run(call, jobs, ahead, turns, lag):
    """Take every job through its stages, those of neighbours interleaved.

    Engines work about in the order of the program. A step settles the maxima of the job before it,
    makes its own logits, folds the job `lag` before it and weighs the one before it; loads are
    `ahead` jobs early. The few turned maxima go before the long search for the next ones, and a
    fold leaves exponentials the time of a step. An empty job is a step that makes nothing new.
    """
    shared: dict = {"unturned": [], "dead": {}, "slots": {}}
    # What GpSimd makes comes first: later it is busy with transposes' descriptors (v3).
    constants = chunk_constants(call["q"].dtype, MASK, call["row_chunks"] and not call["old"])
    constants["d"] = call["q"].shape[4]
    constants["copy_share"] = call["copy_share"]
    add_features(call, constants)
    for job in jobs:
        if len(job) > 0 and not job["context"]:
            own_slots(shared, job["room"])
    choose_closing(call, jobs)
    steps = timetable(jobs, call, lag)
    first = jobs[0]  # what it waits for, in the order in which it does
    load_queries(call, first["room"])
    if first["context"] and call["split_units"]:
        load_keys(call, first, first["blocks"][0])
    context_len = load_lengths(call["context_len"])
    if first["context"]:
        load_keys(call, first, first["blocks"][0])
    for job in jobs[0 : ahead + 1]:
        if len(job) > 0 and not call["split_units"]:  # where nothing stands in their way
            load_queries(call, job["room"])
    if first["context"] and call["values_late"] == 0:
        load_values(call, first, first["blocks"][0])
    suffix_len = load_lengths(call["suffix_len"])
    shared["context_len"] = in_fp32(context_len)
    shared["suffix_len"] = in_fp32(suffix_len)
    load_features(call, shared)
    for i in range(ahead):
        prepare(call, jobs, i, shared, constants)
    for step in range(len(steps)):
        prepare(call, jobs, step + ahead, shared, constants)
        job = job_at(jobs, step)
        for before in steps[step]["settle"]:
            settle(call, before, constants)
        for before in steps[step]["weigh"]:
            if job_of_rows(call, before):
                weigh_job(call, before, constants)
        make_logits(call, job, shared, constants)
        if len(job) > 0 and not job_of_rows(call, job):
            find_highest(job["chunk"])
        turn_some(shared, turns, constants)
        for before in steps[step]["turn"]:
            if job_of_rows(call, before):
                turn_weights(call, before, constants)
        for before in steps[step]["fold"]:
            if len(before) > 0 and not job_of_rows(call, before) and "closing" not in before:
                multiply(call, before, constants)
        for before in steps[step]["fold"]:
            fold(call, before, constants)
        for before in steps[step]["weigh"]:
            if not job_of_rows(call, before):
                weigh_job(call, before, constants)


def job_at(jobs, step):
    """The job that a step makes, an empty one before the first and after the last."""
    if step >= 0 and step < len(jobs):
        return jobs[step]
    return {}


def job_of_rows(call, job):
    """Whether a job has its query rows on partitions."""
    return len(job) > 0 and job["context"] and call["row_chunks"]


def settle(call, job, constants):
    """Second stage: the maximum so far."""
    if len(job) == 0:
        return
    rows = job["room"]["rows"]
    if job_of_rows(call, job):
        settle_rows(call, job, minus_factor_of(call, job, rows))
    else:
        round_top(job["state"], constants)
        settle_max(job["chunk"], job["state"], factor_of(call, job, rows), constants)


def weigh_job(call, job, constants):
    """Third stage: weights."""
    if len(job) == 0:
        return
    if job_of_rows(call, job):
        weigh_rows(call, job, factor_of(call, job, job["room"]["rows"]))
    else:
        weigh(job["chunk"], factor_of(call, job, job["parts"]), call["q"].dtype, constants)
    if "closing" in job:
        set_apart(job)


def turn_some(shared, turns, constants):
    """Transpose some more of the suffix keys that lie loaded, in the order of their jobs."""
    if len(shared["unturned"]) > 0:
        job = shared["unturned"][0]
        turn_keys(job, turns, constants)
        if job["turned"] == job["room"]["sizes"]["blocks"] * job["tiles"]:
            shared["unturned"].pop(0)


def prepare(call, jobs, step, shared, constants):
    """Load what a job needs and no job before it has loaded, but values of one some jobs before.

    Values of suffixes that are folded soon, as those of split units are, come with their keys.
    """
    prepare_keys(call, job_at(jobs, step), shared, constants)
    load_values_of(call, job_at(jobs, step - call["values_late"]))


def prepare_keys(call, job, shared, constants):
    """Load and make what the first stage of a job needs."""
    if len(job) == 0:
        return
    room = job["room"]
    load_queries(call, room)
    if not job["context"]:
        load_suffix(call, job, shared)
        if call["split_units"]:
            load_suffix_values(call, job)
    for block in job["blocks"]:
        load_keys(call, job, block)
    if len(room["queries"]) == 0:
        turn_queries(room, call["q"].shape[4], constants["identity"], call["split_units"])
    if call["pairs"] and not job["context"] and len(room["halves"]) == 0:
        halve_queries(room, call["q"].shape[4], constants["identity"], call["split_units"])
    if job["context"] and call["window"] == 0 and not call["row_chunks"]:
        job["block"]["dead"] = dead_keys(room["group"], job["block"]["cut"], shared, constants)


def load_values_of(call, job):
    """Load the values that a job needs and no job before it has loaded."""
    if len(job) == 0:
        return
    if not job["context"] and not call["split_units"]:
        load_suffix_values(call, job)
    for block in job["blocks"]:
        load_values(call, job, block)


def make_logits(call, job, shared, constants):
    """First stage: masked logits of a chunk."""
    if len(job) == 0:
        return
    room = job["room"]
    if job_of_rows(call, job):
        row_logits(call, job, shared, constants)
        return
    chunk = new_chunk(room["rows"], job["tiles"], job["parts"])
    job["chunk"] = chunk
    if job["context"]:
        context_logits(call, job, chunk, shared, constants)
    else:
        while job["turned"] < job["room"]["sizes"]["blocks"] * job["tiles"]:
            turn_some(shared, 1, constants)
        suffix_logits(call, job, chunk, constants)


def multiply(call, job, constants):
    """Last stage, first half, with keys on partitions: weights meet values.

    Rows' weights may wait for DMA to turn them; these never do.
    """
    d = call["q"].shape[4]
    product = nl.ndarray((job["room"]["rows"], d + 1), dtype=nl.float32, buffer=nl.psum)
    if job["context"]:
        context_product(job, product, d, constants)
    else:
        suffix_product(job, product, d, constants, job["room"]["sizes"]["blocks"])
    add_sums(product, job["chunk"], d, constants)
    job["chunk"]["product"] = product


def fold(call, job, constants):
    """Last stage: the state takes weights times values; the last one is stored."""
    if len(job) == 0:
        return
    d = call["q"].shape[4]
    if "closing" in job:
        close(call, job, d, constants)
        return
    if job_of_rows(call, job):
        fold_rows(call, job, d)
    elif "put_off" not in job:
        add_to_state(job["state"], job["chunk"])
    job["state"]["jobs"] -= 1
    if "ending" in job:
        end_rows(call, job, d)
    elif job["state"]["jobs"] == 0:
        if call["with_sinks"] or call["own"]["joined"] or len(call["stores"]) > 1:
            show_top(job["state"])
        finish(call, job, d)
