"""Which job is at which of its stages in a step of the pipeline, and who turns its weights.

Decided while the kernel is traced, from shapes alone; nothing here runs on the core.

Legal in NKI 0.2 to 0.7. Imports only pieces under that rule.
"""

from __future__ import annotations

from nki_kernels.attention_state.kernel import PARTITIONS
from nki_kernels.bifurcated_attention.plan import chosen

FOLD_LAG = 2  # jobs that copies of turned weights have time for
LAST_COPIES = 2  # jobs at the end of a call, when VectorE has no logits left to search


def timetable(jobs, call, lag):
    """The stages of every step: lists of jobs to settle, weigh, turn and fold.

    Step i makes the logits of job i, settles those of job i - 1 and weighs them, turns weights of
    job i - 2 and folds job i - lag. With split units exponentials wait for the unit's last job and
    then follow one job a step, in order; TensorE turns weights `turn_lag` steps later, so that its
    next logits are not kept waiting by late exponentials; what DMA turns is folded after `lag`
    steps, whatever TensorE has turned before.
    """
    if call["split_units"]:
        share_turns(jobs, call)
    steps: list = []
    for _ in range(2 * len(jobs) + lag + call["turn_lag"] + FOLD_LAG + 2):
        steps.append({"settle": [], "weigh": [], "turn": [], "fold": []})
    weighed = 0
    folded = 0  # the last step so far that adds to a state: one follows the other
    unit: list = []
    for i in range(len(jobs)):
        job = jobs[i]
        if not call["split_units"] or not job["context"]:
            steps[i + 1]["settle"].append(job)
            steps[i + 1]["weigh"].append(job)
            steps[i + 2]["turn"].append(job)
            folded = max(folded, i + 2) if call["split_units"] else i + lag
            steps[folded]["fold"].append(job)
            continue
        unit.append(job)
        if not job["closes"]:
            continue
        steps[i + 1]["settle"].append(job)
        for j in range(len(unit)):
            weighed = max(weighed, i) + 1
            steps[weighed]["weigh"].append(unit[j])
            steps[weighed + call["turn_lag"]]["turn"].append(unit[j])
            at = weighed + lag
            if not unit[j]["by_dma"]:
                at = weighed + call["turn_lag"] + FOLD_LAG
            folded = max(folded, at)
            if j + 1 == len(unit):
                at = folded
            steps[at]["fold"].append(unit[j])
        unit = []
    return steps[0 : folded + 1]


def share_turns(jobs, call):
    """Say who turns the weights of each job of the context, and who copies what TensorE turned.

    DMA turns `turn_share` of every 8, but not of the first `start_jobs`: it is busy with loads, and
    ScalarE has time to copy. The last ones are copied by VectorE.
    """
    context = []
    for job in jobs:
        if job["context"]:
            context.append(job)
    share = call["turn_share"]
    for i in range(len(context)):
        job = context[i]
        whole = job["room"]["rows"] == PARTITIONS
        for block in job["blocks"]:
            whole = whole and block["cut"]["parts"] == PARTITIONS
        at = i - call["start_jobs"]
        job["by_dma"] = whole and at >= 0 and chosen(at, share)
        if at < 0:
            job["copied_by"] = "scalar"
        elif i + LAST_COPIES >= len(context):
            job["copied_by"] = "vector"
