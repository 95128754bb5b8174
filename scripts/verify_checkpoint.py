"""Compare a checkpoint in this network with transformers, before anything is compiled for it.

python scripts/verify_checkpoint.py --model DIR                  layers, logits, greedy tokens, fp32
python scripts/verify_checkpoint.py --model DIR --memory layer   one layer's weights at a time
python scripts/verify_checkpoint.py --model DIR8 --against DIR   what quantising has changed

Exit code 0: equal. 1: they differ. 2: the checkpoint or the command is wrong.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import math
import time
from dataclasses import asdict
from typing import Any

import torch

from models.causal_lm import Tokenizer, find_checkpoint, load_config
from models.causal_lm.checkpoint import find_weights
from models.causal_lm.comparison import (
    TOLERANCE,
    Comparison,
    compare,
    memory_needed,
    run_ours,
    run_transformers,
)
from models.causal_lm.directory import DTYPES, is_split, verify_files, weight_files
from models.files import output_path, write_json
from nki_kernels.errors import InputError
from scripts import command_line, options

DIFFERS = 1
SPARE = 1.25  # memory wanted, as a multiple of the weights: states, copies, the libraries

TEXT = "The numbers are 3, 17 and 42. Write the sum of them, then explain how you found it:\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|ID", help="checkpoint directory or hub id")
    add("--dtype", default="float32", choices=DTYPES, help="to compute in (%(default)s)")
    add("--prompt", default=TEXT, metavar="TEXT", help="what both are fed (a short English text)")
    add("--tokens", type=int, default=16, metavar="N", help="decode steps (%(default)s)")
    add(
        "--memory",
        choices=("auto", "whole", "layer"),
        default="auto",
        help="weights in memory at once: of one network, or of one layer of it (what fits)",
    )
    add(
        "--kernels",
        choices=("torch", "nki"),
        default="torch",
        help="nki: the NKI kernels on the simulator (%(default)s)",
    )
    add(
        "--against",
        metavar="DIR|ID",
        help="compare with this checkpoint in the same network instead of transformers",
    )
    add("--tolerance", type=float, metavar="E", help="difference of logits that counts as none, "
        "as a fraction of the largest (1e-4 in float32, 16 ulp in bfloat16)")  # fmt: skip
    add("--checksums", action="store_true", help="compare the files with SHA256SUMS or the hub's")
    add("--json", metavar="OUT", help="write everything to this file as well")
    return parser.parse_args()


def main() -> None:
    """Check names and shapes, then the tokenizer, then numbers."""
    args = parse()
    out = None if args.json is None else output_path(args.json, "--json")
    if args.tokens < 0:
        raise InputError(f"--tokens is {args.tokens}; it must be 0 or more")
    directory, dtype = find_checkpoint(args.model), DTYPES[args.dtype]
    other = None if args.against is None else find_checkpoint(args.against)
    tolerance = TOLERANCE[dtype] if args.tolerance is None else args.tolerance
    if not 0 < tolerance < math.inf:
        raise InputError(f"--tolerance is {tolerance}; it must be above 0")
    config = load_config(directory)
    quantised = config.weights != "float" or config.kv_dtype != "model"
    if other is None and (quantised or is_split(directory)):
        raise InputError(
            f"{args.model} was written by scripts/convert.py; give the checkpoint that it was made "
            "of as --against"
        )
    if other is not None:
        find_weights(other, load_config(other))
    parts = find_weights(directory, config)
    print(f"model     {args.model}: {config.family}, l = {config.layers}, h = {config.h}, "
          f"g = {config.g}, d = {config.d}")  # fmt: skip
    print(f"tensors   {len(parts)} weights, every name and shape as config.json says")
    if args.checksums:
        verify_files(directory, weight_files(directory))
        print("checksums as they should be")
    tokenizer = Tokenizer.load(directory)
    options.check_vocabulary(config, tokenizer, directory)
    prompt = tokenizer.encode(args.prompt)
    if not prompt:
        raise InputError("--prompt has no tokens")
    if len(prompt) + args.tokens > config.max_position:
        raise InputError(
            f"{len(prompt)} tokens of --prompt and --tokens {args.tokens} are more than the "
            f"model's {config.max_position} positions"
        )
    round_trip = check_tokenizer(tokenizer, prompt, args.prompt, config.vocab_size)
    by_layer = choose_memory(args.memory, directory, dtype)
    start = time.perf_counter()
    if other is None:
        theirs = run_transformers(directory, prompt, args.tokens, dtype, by_layer)
    else:
        theirs = run_ours(other, prompt, args.tokens, dtype, by_layer, args.kernels)
        if len(theirs.hidden) != config.layers or theirs.logits[0].numel() != config.vocab_size:
            raise InputError(f"{args.against} has other layers or another vocabulary")
    ours = run_ours(directory, prompt, theirs.tokens[:-1], dtype, by_layer, args.kernels)
    found = compare(theirs, ours, tolerance)
    print_comparison(found)
    equal = found.equal and round_trip is not False
    print(f"\n{'equal' if equal else 'DIFFERENT'}, in {time.perf_counter() - start:.1f} s")
    if out is not None:
        write_json(out, report(args, found, prompt, round_trip, by_layer, equal))
        print(f"written   {out}")
    if not equal:
        sys.stdout.flush()
        sys.exit(DIFFERS)


def check_tokenizer(tokenizer: Tokenizer, prompt: list[int], text: str, vocab: int) -> bool | None:
    """Whether the prompt's tokens give its text back; None where the vocabulary cannot say it."""
    unknown = tokenizer.count_unknown(prompt)
    same = None if unknown else tokenizer.decode(prompt).strip() == text.strip()
    words = {True: "its text comes back", False: "its text does NOT come back"}
    print(
        f"tokenizer {len(tokenizer)} tokens for {vocab} rows; the prompt is {len(prompt)} tokens, "
        + (f"{unknown} of them unknown" if same is None else words[same])
    )
    return same


def choose_memory(memory: str, directory: Path, dtype: torch.dtype) -> bool:
    """Whether to hold one layer at a time, and what is needed, in words."""
    whole, layer = (memory_needed(directory, dtype, by_layer) for by_layer in (False, True))
    free = available_memory()
    by_layer = memory == "layer" or (memory == "auto" and free is not None and free < SPARE * whole)
    needed = SPARE * (layer if by_layer else whole)
    held = "one layer's at a time" if by_layer else "of one network at a time"
    print(
        f"memory    weights {held}: {needed / 2**30:.2f} GiB"
        + ("" if free is None else f" of {free / 2**30:.2f} GiB available")
        + (", read again each step" if by_layer else "")
    )
    if free is not None and free < needed:
        hint = "" if by_layer else f"; --memory layer needs {SPARE * layer / 2**30:.2f} GiB"
        raise InputError(
            f"{needed / 2**30:.2f} GiB of memory are needed and {free / 2**30:.2f} GiB are "
            f"available{hint}"
        )
    return by_layer


def available_memory() -> int | None:
    """Bytes that the system can still give; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kib = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kib[0]) * 1024 if kib else None


def print_comparison(found: Comparison) -> None:
    """Layers, logits, tokens."""
    print("\nlargest difference, as a fraction of the largest element")
    for i, difference in enumerate(found.layers):
        mark = "  <- the first that differs" if i == found.first_wrong_layer else ""
        print(f"layer {i:<3} {difference:.1e}{mark}")
    print(f"logits    prefill {found.logits[0]:.1e}", end="")
    if found.logits[1:]:
        print(f", {len(found.logits) - 1} decode steps {max(found.logits[1:]):.1e}", end="")
    print(f"; root mean square {found.mean:.1e}; up to {found.tolerance:.1e} counts as none")
    wrong = found.wrong_tokens
    same = sum(a == b for a, b in zip(found.theirs, found.ours, strict=True))
    print(f"greedy    {same} of {len(found.theirs)} tokens the same", end="")
    print(f", the first other one in place {wrong[0]}" if wrong else "", end="")
    tied = len(found.theirs) - same - len(wrong)
    print(f", {tied} of the others tied within that" if tied else "")


def report(
    args: argparse.Namespace,
    found: Comparison,
    prompt: list[int],
    round_trip: bool | None,
    by_layer: bool,
    equal: bool,
) -> dict[str, Any]:
    """Everything, for `--json`."""
    import transformers

    return {
        "arguments": vars(args),
        "equal": equal,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "by_layer": by_layer,
        "prompt_tokens": prompt,
        "tokenizer_round_trip": round_trip,
        **asdict(found),
        "first_wrong_layer": found.first_wrong_layer,
        "wrong_tokens": found.wrong_tokens,
    }


if __name__ == "__main__":
    command_line.run(main)
