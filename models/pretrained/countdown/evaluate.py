"""Measure a countdown model: `python -m models.pretrained.countdown.evaluate --problems 200`.

Each problem is held out from training and asked after twelve solved ones; the project's own
network and generator draw the answers, and `task.check` judges them. pass@k is the unbiased
estimate of Chen et al. (arXiv 2107.03374); pass@top3 asks whether one of the three distinct answers
with the highest mean log-probability is right (arXiv 2403.08845, section 5.3); names that end in
`_ended` leave out the answers that were cut before they ended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models.causal_lm import Tokenizer, load
from models.files import output_path, write_json
from models.generation import Generation, Sample, Sampling, generate, pass_at_k, pass_at_top, rank
from models.pretrained import DEFAULT_MODEL
from models.pretrained.countdown import data, task
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """What the answers to one problem were."""

    samples: int
    right: int
    ended: int
    distinct: int
    best: dict[str, bool]  # whether the best answers of a ranking hold a right one
    right_tokens: list[int]  # length of each right answer, its end included


def unseen_prompts(seed: int, count: int) -> Iterator[str]:
    """Prompts of held-out problems, each after its own worked examples from the training split."""
    problems = task.draw_problems(seed, count, "heldout")
    examples = task.draw_problems(seed, count * task.EXAMPLES, "train")
    for i, problem in enumerate(problems):
        yield task.prompt(problem, examples[i * task.EXAMPLES : (i + 1) * task.EXAMPLES])


def judge(prompt: str, generation: Generation, tokenizer: Tokenizer) -> Outcome:
    """Check every answer to a prompt and rank them."""
    texts = [tokenizer.decode(sample.tokens).strip() for sample in generation.samples]
    verdicts = [bool(task.check(prompt, text)) for text in texts]
    ended = [sample for sample in generation.samples if sample.finish == "eos"]

    def name(sample: Sample) -> str:
        return texts[sample.index]

    def right(sample: Sample) -> bool:
        return verdicts[sample.index]

    everything, whole = rank(generation.samples, name), rank(ended, name)
    return Outcome(
        samples=len(texts),
        right=sum(verdicts),
        ended=len(ended),
        distinct=len(everything),
        best={
            f"pass@top{k}{suffix}": pass_at_top(ranked, right, k)
            for suffix, ranked in (("", everything), ("_ended", whole))
            for k in (1, 3)
        },
        right_tokens=[len(s.tokens) for s in generation.samples if verdicts[s.index]],
    )


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over problems, and the lengths of right answers."""
    samples = outcomes[0].samples
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= samples]
    lengths = [n for outcome in outcomes for n in outcome.right_tokens]
    return {
        **{f"pass@{k}": _mean([pass_at_k(samples, o.right, k) for o in outcomes]) for k in ks},
        **{name: _mean([o.best[name] for o in outcomes]) for name in outcomes[0].best},
        "ended": _mean([o.ended / samples for o in outcomes]),
        "distinct": _mean([o.distinct for o in outcomes]),
        "right_answer_tokens": {
            "mean": round(float(np.mean(lengths)), 2) if lengths else None,
            "largest": max(lengths, default=None),
        },
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="checkpoint directory")
    p.add_argument("--problems", type=int, default=200)
    p.add_argument("--samples", type=int, default=64, help="answers a problem")
    p.add_argument("--seed", type=int, default=2026, help="of the problems and of the sampling")
    p.add_argument("--temperature", type=float, help="the checkpoint's unless given, else 1")
    p.add_argument("--top-p", type=float, help="the checkpoint's unless given, else 1")
    p.add_argument("--max-new-tokens", type=int, default=data.ANSWER_TOKENS)
    p.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--kernels", choices=["auto", "nki", "torch"], default="auto")
    p.add_argument("--json", help="write the result to this file as well")
    return p


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Draw and judge the answers; the result names the settings and the machine.

    Raises:
        InputError: an argument out of range, or a checkpoint that cannot be loaded.
    """
    for option in ("problems", "samples"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option} is {getattr(args, option)}; it must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here")
    tokenizer = Tokenizer.load(args.model)
    model = load(args.model, dtype=args.dtype, device=args.device, kernels=args.kernels)
    defaults = tokenizer.defaults
    given = (args.temperature, args.top_p)
    recommended = (defaults.temperature, defaults.top_p)
    temperature, top_p = (
        next(value for value in (*pair, 1.0) if value is not None)
        for pair in zip(given, recommended, strict=True)
    )
    sampling = Sampling(temperature=temperature, top_p=top_p)
    outcomes = []
    begin = time.perf_counter()
    with tqdm(total=args.problems, unit="problem", mininterval=1.0) as bar:
        for i, prompt in enumerate(unseen_prompts(args.seed, args.problems)):
            generation = generate(
                model,
                tokenizer.encode(prompt),
                samples=args.samples,
                max_new_tokens=args.max_new_tokens,
                sampling=sampling,
                seed=args.seed + i,
                eos_token_ids=tokenizer.eos_token_ids,
            )
            outcomes.append(judge(prompt, generation, tokenizer))
            bar.update()
            bar.set_postfix(right=sum(o.right for o in outcomes) / args.samples / len(outcomes))
    return {
        "problems": args.problems,
        "samples": args.samples,
        "seed": args.seed,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype,
        "kernels": args.kernels,
        "hardware": torch.cuda.get_device_name()
        if args.device == "cuda"
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - begin, 1),
        **summarise(outcomes),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends in one sentence and exit code 2."""
    args = parser().parse_args(argv)
    try:
        out = None if args.json is None else output_path(args.json, "--json")
        result = evaluate(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result, indent=1))
    if out is not None:
        write_json(out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
