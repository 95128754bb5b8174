"""Options that several scripts share, and what follows from them before a model is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from compile.devices import DEVICES
from models.causal_lm import ModelConfig, Tokenizer
from models.generation import Sampling
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError

# The paper's setting where a checkpoint recommends none (arXiv 2403.08845, section 5.3).
TEMPERATURE, TOP_P = 0.8, 0.95
MAX_NEW_TOKENS = 128
SAMPLES = 16
# Which of the default model's example prompts is shown: one that some of the samples get right.
EXAMPLE = 4


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which checkpoint."""
    parser.add_argument(
        "--model",
        default=str(DEFAULT_MODEL),
        metavar="DIR|ID",
        help="Hugging Face checkpoint directory or hub id (the model that ships with the project)",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Where and in what dtype it runs."""
    add = parser.add_argument
    add(
        "--kernels",
        choices=("auto", "nki", "torch"),
        default="auto",
        help="nki: the NKI kernels, on a NeuronCore, or simulated where the device is the CPU",
    )
    add(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="simulate is the CPU with the NKI kernels on the simulator (%(default)s)",
    )
    add(
        "--target",
        choices=("trn1", "inf2", "trn2", "trn3"),
        default="trn1",
        help="core generation that is simulated (%(default)s)",
    )
    add("--dtype", default="float32", help="float32 or bfloat16 (%(default)s)")
    add("--weights", choices=("int8", "fp8"), help="8 bits for projections (as they are stored)")
    add("--kv-dtype", choices=("fp8",), help="8 bits for keys and values (as the checkpoint says)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How answers are drawn."""
    add = parser.add_argument
    add(
        "-n",
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help="answers to sample: b (%(default)s)",
    )
    add(
        "--max-new-tokens",
        type=int,
        metavar="T",
        help=f"tokens an answer has at most (the checkpoint's, else {MAX_NEW_TOKENS})",
    )
    add("--temperature", type=float, help=f"0 is greedy (the checkpoint's, else {TEMPERATURE})")
    add("--top-p", type=float, help=f"nucleus probability (the checkpoint's, else {TOP_P})")
    add("--top-k", type=int, help="most likely tokens kept, 0 for all (the checkpoint's, else 0)")
    add("--seed", type=int, default=0, help="same seed, same answers (%(default)s)")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="an answer ends before this text; may be given several times",
    )


def choose_sampling(args: argparse.Namespace, tokenizer: Tokenizer) -> Sampling:
    """What the command line says, then what the checkpoint recommends, then the paper's setting."""

    def first(*values: float | None) -> float:
        return next(value for value in values if value is not None)

    given = tokenizer.defaults
    if args.temperature is None and given.do_sample is False:
        return Sampling(temperature=0)
    return Sampling(
        temperature=first(args.temperature, given.temperature, TEMPERATURE),
        top_p=first(args.top_p, given.top_p, TOP_P),
        top_k=int(first(args.top_k, given.top_k, 0)),
    )


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, directory: Path) -> None:
    """Refuses a tokenizer that is another model's; needs no weights.

    A vocabulary may be smaller than the model's, which is padded to a round number, and tokens
    added to it later may lie beyond (a prompt that has one is refused). Tokens of its own must not.

    Raises:
        InputError: the tokenizer's vocabulary does not fit, or no end-of-sequence token does.
    """
    if tokenizer.vocabulary > config.vocab_size:
        raise InputError(
            f"{directory}: the tokenizer has {tokenizer.vocabulary} tokens and the model "
            f"{config.vocab_size} (vocab_size in config.json); they are of different models"
        )
    ends = tokenizer.eos_token_ids
    if ends and min(ends) >= config.vocab_size:
        raise InputError(
            f"{directory}: end-of-sequence token {min(ends)} is not among the model's "
            f"{config.vocab_size} tokens, so no answer would ever end"
        )
