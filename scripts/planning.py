"""The command line of `scripts/compile.py`: reads a config, prints the plan, and compiles it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from compile.instances import known
from compile.plan import Request, make_plan
from compile.report import as_json, as_text
from models.causal_lm import ModelConfig
from models.causal_lm.directory import find_checkpoint, load_config, read_json
from models.files import output_path, write_text
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from scripts.command_line import Parser

DESCRIPTION = (
    "Compiles a model for a Neuron instance into an artefact that serves; --dry-run only plans it."
)
CONTEXT = 1024

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "float32": torch.float32,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Plans what the command line asks for, and compiles it unless it is a dry run."""
    args = parser().parse_args(argv)
    if not (args.dry_run or args.lower) and args.config is not None:
        raise InputError("--config is for --dry-run; compiling needs a checkpoint: --model DIR")
    if args.json and args.json != "-":
        args.json = str(output_path(args.json, "--json"))
    if args.model is None and args.config is None:
        args.model = str(DEFAULT_MODEL)
    config = read_config(args.model, args.config)
    if args.context is None:  # what is usual, or all that the model has
        args.context = str(min(CONTEXT, max(1, config.max_position - args.max_new_tokens)))
    if args.weights:
        config = replace(config, weights=args.weights)
    if args.kv_dtype:
        config = replace(config, kv_dtype=args.kv_dtype)
    plan = make_plan(
        config,
        Request(
            instance=args.instance,
            tp=args.tp,
            dtype=DTYPES[args.dtype],
            contexts=numbers(args.context, "--context"),
            samples=numbers(args.samples, "--samples"),
            max_new_tokens=args.max_new_tokens,
            attention=args.attention,
            kernels=args.kernels,
            kv_split=args.kv_split,
            largest=largest(args.request) if args.request else None,
        ),
    )
    if args.lower:
        from scripts.lowering import lower_plan

        lower_plan(plan, Path(args.lower), args.top_k or 0)
        return
    if not args.dry_run:
        from scripts.compiling import compile_plan  # what a plan does not need

        assert args.model is not None
        print(as_text(plan) + "\n")
        compile_plan(args, find_checkpoint(args.model), plan)
        return
    if args.json:
        text = json.dumps(as_json(plan), indent=2) + "\n"
        if args.json == "-":
            print(text, end="")
            return
        write_text(Path(args.json), text)
    print(as_text(plan))


def parser() -> Parser:
    """The options."""
    made = Parser(prog="compile.py", description=DESCRIPTION)
    add = made.add_argument
    add("--dry-run", action="store_true", help="plan only, which needs neither SDK nor weights")
    add(
        "--model",
        metavar="DIR",
        help="checkpoint directory; a plan reads its config.json alone "
        "(the model that ships with the project)",
    )
    add("--config", metavar="FILE", help="a config.json alone")
    add("--instance", required=True, metavar="NAME", help=", ".join(known()))
    add("--tp", type=int, default=1, help="tensor-parallel degree (%(default)s)")
    add("--dtype", choices=sorted(DTYPES), default="bf16", help="(%(default)s)")
    add("--context", metavar="S,...", help=f"prompt buckets ({CONTEXT}, or what the model has)")
    add("-n", "--samples", default="16", metavar="B,...", help="buckets of b (%(default)s)")
    add("--max-new-tokens", type=int, default=128, metavar="T", help="(%(default)s)")
    add("--request", metavar="SxB", help="largest request that the buckets must cover, as 6000x16")
    add("--attention", choices=("auto", "bifurcated", "ordinary"), default="auto")
    add("--kernels", choices=("auto", "nki", "torch"), default="auto")
    add("--kv-split", choices=("positions", "replicate"), default="positions")
    add("--weights", choices=("int8", "fp8"), help="8 bits for projections")
    add("--kv-dtype", choices=("fp8",), help="8 bits for keys and values")
    add(
        "--json",
        metavar="OUT",
        help="write the plan, or what was made of it, as JSON too; with "
        "--dry-run, - prints it alone",
    )
    add(
        "--device",
        choices=("auto", "cpu", "neuron"),
        default="auto",
        help="what graphs are "
        "compiled for; auto is neuron where the Neuron SDK is installed, else the CPU",
    )
    add(
        "--lower",
        metavar="DIR",
        help="write the HLO that neuronx-cc would be given, and a report of it, through PyTorch/XLA"
        " 2.9 on this host; needs no SDK and no weights",
    )
    add("--out", metavar="DIR", help="the artefact (compiled-INSTANCE-tpN)")
    add(
        "--top-k",
        type=int,
        metavar="K",
        help="the decode graphs draw among at most K tokens; 0: "
        "they give logits and the host draws (the checkpoint's, else 0)",
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="compilers at a time (as many as the host has memory for, by the plan's estimate)",
    )
    add(
        "--compiler-flags",
        metavar="TEXT",
        help="flags of neuronx-cc behind its own, for every graph, as --compiler-flags=-O1",
    )
    add("--cache", metavar="DIR", help="where compiled graphs are kept (~/.cache/bifork/graphs)")
    return made


def read_config(model: str | None, config: str | None) -> ModelConfig:
    """The config of a directory or of a file.

    Raises:
        InputError: both are given, or it cannot be read.
    """
    if model is not None and config is not None:
        raise InputError("give either --model DIR or --config FILE")
    if config is not None:
        return ModelConfig.from_hf(read_json(Path(config)))
    assert model is not None
    if not Path(model).is_dir():
        raise InputError(f"--model {model} is no directory here; a plan needs its config.json only")
    return load_config(Path(model))


def numbers(text: str, option: str) -> tuple[int, ...]:
    """The integers of "1024,8192"; InputError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} is {text!r}; write integers as 1024,8192") from None


def largest(text: str) -> tuple[int, int]:
    """Prompt tokens and samples of "6000x16"; InputError for anything else."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise InputError(f"--request is {text!r}; write prompt tokens and samples as 6000x16")
    return int(parts[0]), int(parts[1])
