"""What `generate.py` prints and writes: what runs, the ranked answers, their cost."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models.causal_lm import CausalLM
from models.generation import Generation, Ranked, Sample, Sampling, plan_shape
from models.pretrained import DEFAULT_MODEL
from nki_kernels import decode_path
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.torch_ops import cuda_path

SHOWN = 72  # characters of the prompt's end


def describe_kernels(device: str, dtype: torch.dtype, kernels: str, target: str) -> str:
    """Which implementation of attention runs, in words."""
    if kernels == "nki":
        return "nki" if device == "xla" else f"nki, simulated {target}"
    if kernels == "auto" and device == "cuda":
        return cuda_path(dtype)
    if kernels == "torch" or device == "cpu":
        return "torch"
    return "nki"


def attention_path(
    args: argparse.Namespace, model: CausalLM, prompt_tokens: int, where: str
) -> tuple[str, str]:
    """Which way of attention runs, and why."""
    if not where.startswith("nki"):
        if args.attention != "auto":
            return args.attention, "asked for"
        if args.samples == 1:
            return "ordinary", "one sample shares its prompt with nobody"
        return "bifurcated", "several samples read their shared prompt once"
    slots = plan_shape(prompt_tokens, args.samples, args.max_new_tokens, args.attention)
    c, heads = model.config, model.heads
    shape = Shape(
        G=slots.G, r=slots.r, n=1, h=heads.h, g=heads.g, d=c.d, S_ctx=slots.S_ctx, S_dec=slots.S_dec
    )
    choice = decode_path(
        shape, model.dtype.itemsize, args.target, args.attention, c.decode_features(0)
    )
    return choice.path, choice.reason


def print_head(
    args: argparse.Namespace,
    model: CausalLM,
    kernels: str,
    prompt: list[int],
    text: str,
    unknown: int,
    sampling: Sampling,
    ignored: Sequence[str],
) -> None:
    """What is about to run."""
    c = model.config
    where = describe_kernels(model.device.type, model.dtype, kernels, args.target)
    how, why = attention_path(args, model, len(prompt), where)
    print(f"model     {args.model}")
    print(
        f"          l = {c.layers}, h = {c.h}, g = {c.g}, d = {c.d}, {args.dtype} on {model.device}"
    )
    end = (text.strip().splitlines() or [""])[-1]
    print(f"prompt    {len(prompt)} tokens, ending: {end[-SHOWN:]}")
    print_sampling(args, sampling, ignored)
    if model.parallel.size > 1:
        heads, split = model.heads, "its positions" if model.parts > 1 else "nothing"
        print(
            f"tp        {model.parallel.size} processes over {model.parallel.library.name}, each "
            f"with {heads.h} query and {heads.g} key/value heads"
        )
        if heads.replicas > 1:
            print(
                f"          {heads.replicas} of them read the same key/value head and split {split}"
            )
    print(f"attention {how}, kernels: {where}")
    print(f"          {why}", flush=True)
    if unknown:
        print(f"note      {unknown} tokens of the prompt are unknown to this model's tokenizer")
        if Path(args.model).resolve() == DEFAULT_MODEL.resolve():
            print("          it plays countdown and nothing else; without --prompt it shows how")


def print_sampling(args: argparse.Namespace, sampling: Sampling, ignored: Sequence[str]) -> None:
    """How answers are drawn, and what the checkpoint recommends that is not done."""
    print(
        f"sampling  n = {args.samples}, temperature {sampling.temperature:g}, "
        f"top-p {sampling.top_p:g}, top-k {sampling.top_k}, seed {args.seed}"
    )
    if ignored:
        print(f"note      the checkpoint recommends {', '.join(ignored)} too, which is not done")


def print_answers(
    ranked: list[Ranked[Sample]],
    texts: list[str],
    right: list[bool | None],
    show: int,
    scored: bool = False,
) -> None:
    """The distinct answers, best first; `scored` shows the score of a user's own as well."""
    judged = any(verdict is not None for verdict in right)
    columns = f"{'score'.rjust(10)}  " if scored else ""
    print(f"\nrank  {columns}mean log p  times  {'right  ' if judged else ''}answer")
    words = {True: "yes", False: "no", None: "-"}
    for place, each in enumerate(ranked[:show], start=1):
        sample = each.answer
        verdict = f"{words[right[sample.index]]:<7}" if judged else ""
        score = f"{each.score:>10.4g}  " if scored else ""
        cut = "" if sample.finish in ("eos", "stop") else " ... (cut)"
        print(
            f"{place:>4}  {score}{sample.mean_logprob:>10.3f}  {each.count:>5}  {verdict}"
            f"{texts[sample.index]}{cut}"
        )
    if not ranked:
        print("      no answer matches the expression of --vote, so none got a vote")
    if len(ranked) > show:
        print(f"      and {len(ranked) - show} more distinct answers")
    if judged:
        top = any(right[each.answer.index] for each in ranked[:3])
        print(
            f"\nsamples that are right: {sum(v is True for v in right)} of {len(texts)}; "
            f"right among the best three distinct answers: {'yes' if top else 'no'}"
        )


def print_costs(
    generation: Generation, cache_bytes: int, ranks: int, device: str, simulated: bool
) -> None:
    """Seconds, and bytes of keys and values beside what ordinary decoding would take.

    Args:
        generation: what was made.
        cache_bytes: that a rank's cache holds.
        ranks: that shared the network.
        device: the word for it.
        simulated: whether the simulator ran its kernels.
    """
    t, traffic = generation.timings, generation.traffic
    rate = f"{t.tokens_per_second:.1f} tokens/s" if t.steps else "no decode step"
    note = "; the simulator's speed, not a NeuronCore's" if simulated else ""
    print(
        f"\ntime      prefill {t.prefill:.2f} s, decode {t.decode:.2f} s, {rate} ({device}{note})"
    )
    drafted = [each for sample in generation.samples for each in sample.drafts]
    if drafted:
        proposed, accepted = sum(each[0] for each in drafted), sum(each[1] for each in drafted)
        print(
            f"drafts    {proposed} verified, {accepted} taken: "
            f"{t.decoded / len(drafted):.2f} tokens a sample and step"
        )
    ours, theirs = traffic.bifurcated, traffic.ordinary
    each = f" in each of {ranks} processes" if ranks > 1 else ""
    print(
        f"KV stored {size(ours.stored_live)} bifurcated, {size(theirs.stored_live)} ordinary; "
        f"this run's cache holds {size(cache_bytes)}{each}"
    )
    if t.steps:
        print(
            f"KV read   {size(ours.read_live)} a step bifurcated, "
            f"{size(theirs.read_live)} ordinary: {traffic.read_ratio:.1f} x fewer"
        )


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def report(
    args: argparse.Namespace,
    text: str,
    prompt: list[int],
    sampling: Sampling,
    generation: Generation,
    ranked: list[Ranked[Sample]],
    texts: list[str],
    right: list[bool | None],
    kernels: str,
) -> dict[str, Any]:
    """Everything, for `--json`."""
    shape, t, traffic = generation.shape, generation.timings, generation.traffic
    return {
        "arguments": vars(args),
        "sampling": asdict(sampling),
        "prompt": text,
        "prompt_tokens": len(prompt),
        "kernels": kernels,
        "torch": torch.__version__,
        "shape": {"G": shape.G, "r": shape.r, "S_ctx": shape.S_ctx, "S_dec": shape.S_dec},
        "answers": [
            {
                "rank": place,
                "text": texts[each.answer.index],
                "mean_logprob": each.answer.mean_logprob,
                "score": each.score if math.isfinite(each.score) else None,
                "count": each.count,
                "right": right[each.answer.index],
                "sample": each.answer.index,
                "finish": each.answer.finish,
            }
            for place, each in enumerate(ranked, start=1)
        ],
        "samples": [
            {
                "tokens": sample.tokens,
                "logprobs": sample.logprobs,
                "finish": sample.finish,
                "drafts": sample.drafts,
            }
            for sample in generation.samples
        ],
        "seconds": {"prefill": t.prefill, "decode": t.decode},
        "steps": t.steps,
        "tokens_per_second": t.tokens_per_second,
        "kv_bytes": {
            way: {
                "stored_live": each.stored_live,
                "stored_padded": each.stored_padded,
                "read_per_step_live": each.read_live,
                "read_per_step_padded": each.read_padded,
            }
            for way, each in (("bifurcated", traffic.bifurcated), ("ordinary", traffic.ordinary))
        }
        | {"written_per_step": traffic.written},
    }
