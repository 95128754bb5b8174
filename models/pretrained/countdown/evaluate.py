"""Measure a countdown model: `python -m models.pretrained.countdown.evaluate --problems 200`.

Each problem is held out from training and asked after twelve solved ones; the project's own
network and generator draw the answers, and `task.check` judges them. What the figures mean is said
in `models.evaluation.outcomes`. `scripts/evaluate.py` does the same for anyone's prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from models.causal_lm import Tokenizer, load
from models.evaluation import Outcome, outcomes
from models.files import output_path, write_json
from models.generation import Sample, Sampling, generate
from models.pretrained import DEFAULT_MODEL
from models.pretrained.countdown import data, task
from nki_kernels.errors import InputError


def unseen_prompts(seed: int, count: int) -> Iterator[str]:
    """Prompts of held-out problems, each after its own worked examples from the training split."""
    problems = task.draw_problems(seed, count, "heldout")
    examples = task.draw_problems(seed, count * task.EXAMPLES, "train")
    for i, problem in enumerate(problems):
        yield task.prompt(problem, examples[i * task.EXAMPLES : (i + 1) * task.EXAMPLES])


def judge(prompt: str, samples: Sequence[Sample], tokenizer: Tokenizer) -> Outcome:
    """Check every answer to a prompt and rank them."""
    texts = [tokenizer.decode(sample.tokens).strip() for sample in samples]
    return outcomes.judge(samples, texts, [bool(task.check(prompt, text)) for text in texts])


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
    found: list[Outcome] = []
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
            found.append(judge(prompt, generation.samples, tokenizer))
            bar.update()
            bar.set_postfix(right=sum(o.right for o in found) / args.samples / len(found))
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
        **outcomes.summarise(found),
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
