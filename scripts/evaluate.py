"""Measure a checkpoint: perplexity of a text, and how often its answers pass your own check.

python scripts/evaluate.py --perplexity TEXT.txt --model DIR
python scripts/evaluate.py --prompts PROMPTS.jsonl --model DIR -n 64 --records DONE.jsonl
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import hashlib
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch
from tqdm import tqdm

from compile.devices import resolve
from models.causal_lm import CausalLM, ModelConfig, Tokenizer, find_checkpoint, load, load_config
from models.evaluation import (
    Finished,
    Outcome,
    Prompt,
    Records,
    check_command,
    check_text,
    judge,
    perplexity,
    read_prompts,
    run_command,
    summarise,
)
from models.evaluation.commands import TIME_LIMIT
from models.files import output_path, write_json
from models.generation import Sampling, check_request, check_stop, generate
from models.pretrained import DEFAULT_MODEL, checker
from nki_kernels.errors import InputError
from scripts import command_line, options

DEMONSTRATION = "a demonstration: the model that ships plays countdown, and says nothing of others"


def parse() -> argparse.Namespace:
    """The command line; every word means the same in all scripts."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    options.add_model(parser)
    add("--perplexity", metavar="F", help="a UTF-8 text to score")
    add("--window", type=int, metavar="W", help="tokens seen at most (all that the model takes)")
    add("--stride", type=int, metavar="S", help="tokens scored a window (half a window)")
    add("--prompts", metavar="F", help="JSONL of prompts, each with a command that checks answers")
    add(
        "--check",
        nargs=argparse.REMAINDER,
        metavar="ARG",
        help="last: the command for prompts without one; {answer} and {prompt} stand for files, "
        "without {answer} the answer is on standard input; exit status 0 is right",
    )
    add("--time-limit", type=float, default=TIME_LIMIT, metavar="S",
        help="seconds that a check has for an answer (%(default)s)")  # fmt: skip
    add("--checks-at-once", type=int, default=1, metavar="J", help="checks run beside each other")
    add("--chat", action="store_true", help="put prompts through the checkpoint's chat template")
    options.add_sampling(parser)
    add("--attention", choices=("auto", "bifurcated", "ordinary"), default="auto")
    options.add_machine(parser)
    add("--records", metavar="F", help="keep finished prompts here, and go on from them")
    add("--json", metavar="OUT", help="write the result to this file as well")
    return parser.parse_args()


def main() -> None:
    """Check everything that can be checked, load, measure, print."""
    args = parse()
    out = None if args.json is None else output_path(args.json, "--json")
    if args.perplexity is None and args.prompts is None:
        raise InputError("nothing to measure: give --perplexity F, --prompts F, or both")
    if not (math.isfinite(args.time_limit) and args.time_limit > 0):
        raise InputError(f"--time-limit is {args.time_limit}; it must be above 0 seconds")
    if args.checks_at_once < 1:
        raise InputError(f"--checks-at-once is {args.checks_at_once}; it must be 1 or more")
    device = resolve(args.device)
    directory = find_checkpoint(args.model)
    config, tokenizer = load_config(directory), Tokenizer.load(directory)
    options.check_vocabulary(config, tokenizer, directory)
    text = None if args.perplexity is None else encode_text(Path(args.perplexity), tokenizer)
    if text is not None:
        check_text(config, text[0], args.window, args.stride)
    asked = None if args.prompts is None else Questions(args, directory, config, tokenizer)
    kernels = device.kernels if args.kernels == "auto" else args.kernels
    model = load(
        directory,
        dtype=args.dtype,
        device=device.torch,
        kernels=kernels,
        target=args.target,
        weights=args.weights,
        kv_dtype=args.kv_dtype,
        progress=True,
    )
    default = directory.resolve() == DEFAULT_MODEL.resolve()
    result: dict[str, Any] = {
        "model": str(args.model),
        "note": DEMONSTRATION if default else None,
        "dtype": args.dtype,
        "weights": args.weights,
        "kv_dtype": args.kv_dtype,
        "device": device.name,
        "kernels": kernels,
        "torch": torch.__version__,
    }
    print(f"model       {args.model}, {args.dtype} on {device.name}")
    if default:
        print(f"            {DEMONSTRATION}")
    if text is not None:
        unknown = tokenizer.count_unknown(text[0])
        result["perplexity"] = measure_perplexity(args, model, text) | {"unknown": unknown}
        if unknown:
            print(f"            tokens that are unknown to the tokenizer: {unknown}; bits a byte")
            print("            do not count what those say")
    if asked is not None:
        result["answers"] = asked.measure(model)
    if out is not None:
        write_json(out, result)
        print(f"written     {out}")


def encode_text(path: Path, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The tokens of a text, with those that the model expects before it, and its bytes."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--perplexity {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--perplexity {path} is not UTF-8 text: {error}") from error
    if not text.strip():
        raise InputError(f"--perplexity {path}: the text is empty")
    return tokenizer.encode(text), len(text.encode())


def measure_perplexity(
    args: argparse.Namespace, model: CausalLM, text: tuple[list[int], int]
) -> dict[str, Any]:
    """Score the text and print what came of it."""
    tokens, size = text
    begin = time.perf_counter()
    with tqdm(total=len(tokens) - 1, unit="token", leave=False, dynamic_ncols=True) as bar:
        found = perplexity(
            model, tokens, window=args.window, stride=args.stride, progress=bar.update
        )
    bits = found.nats / size / math.log(2)
    print(
        f"perplexity  {found.perplexity:.4f}: {found.nats_per_token:.5f} nats a token over "
        f"{found.tokens} tokens, {bits:.4f} bits a byte\n"
        f"            window {found.window}, stride {found.stride}; {args.perplexity}"
    )
    return {
        "file": args.perplexity,
        **asdict(found),
        "nats_per_token": found.nats_per_token,
        "perplexity": found.perplexity,
        "bits_per_byte": bits,
        "seconds": round(time.perf_counter() - begin, 2),
    }


class Questions:
    """Prompts, how they are answered, and how answers are checked.

    Raises:
        InputError: on making it, whatever can be wrong before weights are loaded.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        directory: Path,
        config: ModelConfig,
        tokenizer: Tokenizer,
    ) -> None:
        self.args, self.tokenizer = args, tokenizer
        path = Path(args.prompts)
        self.prompts = read_prompts(path)
        self.task = checker(directory)
        self.check = None
        if args.check is not None:
            self.check = check_command(args.check, "--check")
        self.sampling: Sampling = options.choose_sampling(args, tokenizer)
        recommended = tokenizer.defaults.max_new_tokens or options.MAX_NEW_TOKENS
        given = args.max_new_tokens
        self.new: int = recommended if given is None else given
        self.tokens: dict[str, list[int]] = {}
        for prompt in self.prompts:
            if prompt.check is None and self.check is None and self.task is None:
                raise InputError(
                    f"--prompts {path}: prompt {prompt.id!r} has no check, there is no --check, "
                    "and the checkpoint names no task (task.json)"
                )
            encode = tokenizer.encode_chat if args.chat else tokenizer.encode
            self.tokens[prompt.id] = encode(prompt.text)
            try:
                check_request(config, self.tokens[prompt.id], args.samples, self.new, args.seed)
            except InputError as error:
                raise InputError(f"--prompts {path}, prompt {prompt.id!r}: {error}") from error
        check_stop(args.stop, tokenizer.decode, config.vocab_size)
        settings = {
            "model": str(directory.resolve()),
            "prompts": hashlib.sha256(path.read_bytes()).hexdigest(),
            "check": self.check,
            "time_limit": args.time_limit,
            "chat": args.chat,
            "samples": args.samples,
            "max_new_tokens": self.new,
            "sampling": asdict(self.sampling),
            "seed": args.seed,
            "stop": args.stop,
            "dtype": args.dtype,
            "weights": args.weights,
            "kv_dtype": args.kv_dtype,
        }
        self.records = Records(None if args.records is None else Path(args.records), settings)
        self.settings = settings

    def measure(self, model: CausalLM) -> dict[str, Any]:
        """Answer and check what is not finished, and print the summary."""
        finished = self.records.finished
        if finished:
            print(f"records     {len(finished)} of {len(self.prompts)} prompts are finished there")
        begin = time.perf_counter()
        with (
            ThreadPoolExecutor(self.args.checks_at_once) as pool,
            tqdm(total=len(self.prompts), initial=len(finished), unit="prompt", leave=False,
                 dynamic_ncols=True) as bar,
        ):  # fmt: skip
            for index, prompt in enumerate(self.prompts):
                if prompt.id not in finished:
                    self.records.add(self._answer(model, index, prompt, pool))
                    bar.update()
                    some = [each["right"] > 0 for each in finished.values()]
                    bar.set_postfix(solved=f"{sum(some)} of {len(some)}")
        seconds = time.perf_counter() - begin
        records = [finished[prompt.id] for prompt in self.prompts]
        fields = Outcome.__dataclass_fields__
        summary = summarise([Outcome(**{f: each[f] for f in fields}) for each in records])
        self._print(summary, records)
        return {"settings": self.settings, **summary, "seconds": round(seconds, 2),
                "prompts": records}  # fmt: skip

    def _answer(
        self, model: CausalLM, index: int, prompt: Prompt, pool: ThreadPoolExecutor
    ) -> dict[str, Any]:
        args, begin = self.args, time.perf_counter()
        generation = generate(
            model,
            self.tokens[prompt.id],
            samples=args.samples,
            max_new_tokens=self.new,
            sampling=self.sampling,
            seed=(args.seed + index) % 2**64,
            attention=args.attention,
            eos_token_ids=self.tokenizer.eos_token_ids,
            stop=args.stop,
            detokenise=self.tokenizer.decode,
        )
        generated = time.perf_counter() - begin
        texts = [(sample.text or "").strip() for sample in generation.samples]
        right, complaint = self._check(prompt, texts, pool)
        outcome = judge(generation.samples, texts, [right[text] for text in texts])
        return {
            "id": prompt.id,
            **asdict(outcome),
            "answers": [{"text": text, "right": right[text], "count": texts.count(text)}
                        for text in dict.fromkeys(texts)],
            "complaint": complaint,
            "seconds": {"generate": round(generated, 3),
                        "check": round(time.perf_counter() - begin - generated, 3)},
        }  # fmt: skip

    def _check(
        self, prompt: Prompt, texts: list[str], pool: ThreadPoolExecutor
    ) -> tuple[dict[str, bool], str | None]:
        """Whether each distinct answer is right, and what a check that failed said first."""
        command = prompt.check or self.check
        distinct = list(dict.fromkeys(texts))
        if command is None:
            assert self.task is not None
            return {text: bool(self.task(prompt.text, text)) for text in distinct}, None
        run: Callable[[str], Finished] = lambda text: run_command(  # noqa: E731
            command, prompt.text, text, self.args.time_limit
        )
        done = dict(zip(distinct, pool.map(run, distinct), strict=True))
        said = (last_line(each) for each in done.values() if not each.passed)
        right = {text: each.passed for text, each in done.items()}
        return right, next(filter(None, said), None)

    def _print(self, summary: dict[str, Any], records: list[dict[str, Any]]) -> None:
        a, s = self.args, self.sampling
        print(
            f"answers     {len(records)} prompts, {a.samples} samples each, temperature "
            f"{s.temperature:g}, top-p {s.top_p:g}, top-k {s.top_k}, at most {self.new} new tokens"
        )
        for name, value in summary.items():
            if name.startswith("pass@"):
                print(f"            {name:<16} {value:.4f}")
        print(f"            ended {summary['ended']:.0%}, distinct {summary['distinct']:.1f}")
        if not any(each["right"] for each in records):
            said = next((each["complaint"] for each in records if each["complaint"]), None)
            print("            no answer passed" + (f"; a check said: {said}" if said else ""))


def last_line(finished: Finished) -> str:
    """What a check that did not pass complained of."""
    if finished.code is None:
        return "the time was up"
    return (finished.complaint.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    command_line.run(main)
