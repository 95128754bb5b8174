"""Sample many answers to one prompt and print them ranked.

python scripts/generate.py                                     the default model, an unseen problem
python scripts/generate.py --model DIR --prompt "..." -n 16    a Hugging Face checkpoint
torchrun --nproc-per-node 2 scripts/generate.py --tp 2         a model split over two processes
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import contextlib
import os
from dataclasses import asdict

import torch
from tqdm import tqdm

from compile.devices import DEVICES, resolve
from models.causal_lm import CausalLM, Tokenizer, find_checkpoint, load, load_config
from models.causal_lm.sharding import check_degree
from models.files import output_path, write_json
from models.generation import (
    Generation,
    Progress,
    Ranked,
    Sample,
    Sampling,
    check_request,
    generate,
    rank,
)
from models.parallel import started
from models.pretrained import DEFAULT_MODEL, checker, example_prompt
from nki_kernels.errors import InputError
from nki_kernels.torch_ops import cuda_path
from scripts import command_line

Check = Callable[[str, str], bool | None]

# The paper's setting where a checkpoint recommends none (arXiv 2403.08845, section 5.3).
TEMPERATURE, TOP_P = 0.8, 0.95
MAX_NEW_TOKENS = 128

# Which of the default model's example prompts is shown: one that some of the samples get right.
EXAMPLE = 4

SHOWN = 72  # characters of the prompt's end


def parse() -> argparse.Namespace:
    """The command line; every word means the same in all scripts."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--model",
        default=str(DEFAULT_MODEL),
        metavar="DIR|ID",
        help="Hugging Face checkpoint directory or hub id (the model that ships with the project)",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt (the default model has one)")
    prompt.add_argument("--prompt-file", metavar="F", help="a UTF-8 file that holds the prompt")
    add("--chat", action="store_true", help="put the prompt through the checkpoint's chat template")
    add(
        "-n",
        "--samples",
        type=int,
        default=16,
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
        "--attention",
        choices=("auto", "bifurcated", "ordinary"),
        default="auto",
        help="bifurcated reads the prompt once a step, ordinary once per sample (%(default)s)",
    )
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
    add(
        "--tp",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the model, as many as torchrun starts (%(default)s)",
    )
    add(
        "--kv-split",
        choices=("positions", "replicate"),
        default="positions",
        help="what processes that read one key/value head keep of the prompt: each a part of its "
        "positions, or each all of them (%(default)s)",
    )
    add("--dtype", default="float32", help="float32 or bfloat16 (%(default)s)")
    add("--show", type=int, default=10, metavar="K", help="ranked answers to print (%(default)s)")
    add("--json", metavar="OUT", help="write everything to this file as well")
    return parser.parse_args()  # fmt: skip


def main() -> None:
    """Load, sample, rank, print."""
    args = parse()
    out = None if args.json is None else output_path(args.json, "--json")
    if args.show < 1:
        raise InputError(f"--show is {args.show}; it must be 1 or more")
    device = resolve(args.device)
    kernels = device.kernels if args.kernels == "auto" else args.kernels
    directory = find_checkpoint(args.model)
    text = read_prompt(args)
    config = load_config(directory)
    tokenizer = Tokenizer.load(directory)
    if args.max_new_tokens is None:
        args.max_new_tokens = tokenizer.defaults.max_new_tokens or MAX_NEW_TOKENS
    sampling = choose_sampling(args, tokenizer)
    prompt = tokenizer.encode_chat(text) if args.chat else tokenizer.encode(text)
    check_request(config, prompt, args.samples, args.max_new_tokens, args.seed)
    check_degree(config, args.tp)
    with started(args.tp, device.torch) as parallel, spoken_by(parallel.rank == 0):
        model = load(
            directory,
            dtype=args.dtype,
            device=device.torch,
            kernels=kernels,
            target=args.target,
            parallel=parallel,
            kv_split=args.kv_split,
        )
        answer(args, model, tokenizer, directory, prompt, text, sampling, kernels, out)


@contextlib.contextmanager
def spoken_by(me: bool) -> Iterator[None]:
    """Prints, or does not: one of several processes speaks."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(sys.stdout if me else nowhere),
    ):
        yield


def answer(
    args: argparse.Namespace,
    model: CausalLM,
    tokenizer: Tokenizer,
    directory: Path,
    prompt: list[int],
    text: str,
    sampling: Sampling,
    kernels: str,
    out: Path | None,
) -> None:
    """Sample, rank, print; and write to `out`."""
    unknown = tokenizer.count_unknown(prompt)
    print_head(args, model, kernels, prompt, text, unknown, sampling)

    with tqdm(
        total=args.max_new_tokens,
        unit="step",
        leave=False,
        dynamic_ncols=True,
        disable=model.parallel.rank > 0,
    ) as bar:

        def progress(at: Progress) -> None:
            what = f"{at.phase}, {at.unfinished} of {at.samples} samples go on"
            bar.set_description(what, refresh=at.phase == "prefill")
            bar.update(at.step - bar.n)

        generation = generate(
            model,
            prompt,
            samples=args.samples,
            max_new_tokens=args.max_new_tokens,
            sampling=sampling,
            seed=args.seed,
            attention=args.attention,
            eos_token_ids=tokenizer.eos_token_ids,
            progress=progress,
        )

    texts = [tokenizer.decode(sample.tokens).strip() for sample in generation.samples]
    check: Check = checker(directory) or (lambda prompt, answer: None)
    right = [check(text, answer) for answer in texts]
    ranked = rank(generation.samples, key=lambda sample: texts[sample.index])
    print_answers(ranked, texts, right, args.show)
    print_costs(generation, model, args.device, kernels)
    if out is not None and model.parallel.rank == 0:
        write_json(
            out, report(args, text, prompt, sampling, generation, ranked, texts, right, kernels)
        )
        print(f"written   {out}")


def read_prompt(args: argparse.Namespace) -> str:
    """The prompt's text, from the argument, the file, or the default model's example."""
    if args.prompt is not None:
        return not_blank(args.prompt, "--prompt")
    if args.prompt_file is not None:
        try:
            text = Path(args.prompt_file).read_text(encoding="utf-8-sig")  # with or without a BOM
            return not_blank(text, f"--prompt-file {args.prompt_file}")
        except OSError as error:
            raise InputError(f"--prompt-file {args.prompt_file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"--prompt-file {args.prompt_file} is not UTF-8 text: {error}"
            ) from error
    if Path(args.model).resolve() == DEFAULT_MODEL.resolve():
        return example_prompt(EXAMPLE)
    raise InputError("a prompt is needed: --prompt TEXT or --prompt-file F")


def not_blank(text: str, where: str) -> str:
    """The text itself.

    Raises:
        InputError: there is nothing in it.
    """
    if not text.strip():
        raise InputError(f"{where}: the prompt is empty")
    return text


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


def describe_kernels(device: str, dtype: torch.dtype, kernels: str, target: str) -> str:
    """Which implementation of attention runs, in words."""
    if kernels == "nki":
        return "nki" if device == "xla" else f"nki, simulated {target}"
    if kernels == "auto" and device == "cuda":
        return cuda_path(dtype)
    if kernels == "torch" or device == "cpu":
        return "torch"
    return "nki"


def print_head(
    args: argparse.Namespace,
    model: CausalLM,
    kernels: str,
    prompt: list[int],
    text: str,
    unknown: int,
    sampling: Sampling,
) -> None:
    """What is about to run."""
    c = model.config
    how = args.attention
    if how == "auto":
        how = "bifurcated" if args.samples > 1 else "ordinary"
    where = describe_kernels(model.device.type, model.dtype, kernels, args.target)
    print(f"model     {args.model}")
    print(
        f"          l = {c.layers}, h = {c.h}, g = {c.g}, d = {c.d}, {args.dtype} on {model.device}"
    )
    end = (text.strip().splitlines() or [""])[-1]
    print(f"prompt    {len(prompt)} tokens, ending: {end[-SHOWN:]}")
    print(
        f"sampling  n = {args.samples}, temperature {sampling.temperature:g}, "
        f"top-p {sampling.top_p:g}, top-k {sampling.top_k}, seed {args.seed}"
    )
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
    print(f"attention {how}, kernels: {where}", flush=True)
    if unknown:
        print(f"note      {unknown} tokens of the prompt are unknown to this model's tokenizer")
        if Path(args.model).resolve() == DEFAULT_MODEL.resolve():
            print("          it plays countdown and nothing else; without --prompt it shows how")


def print_answers(
    ranked: list[Ranked[Sample]], texts: list[str], right: list[bool | None], show: int
) -> None:
    """The distinct answers, best first."""
    judged = any(verdict is not None for verdict in right)
    print(f"\nrank  mean log p  times  {'right  ' if judged else ''}answer")
    words = {True: "yes", False: "no", None: "-"}
    for place, each in enumerate(ranked[:show], start=1):
        sample = each.answer
        verdict = f"{words[right[sample.index]]:<7}" if judged else ""
        cut = "" if sample.finish == "eos" else " ... (cut)"
        print(
            f"{place:>4}  {sample.mean_logprob:>10.3f}  {each.count:>5}  {verdict}"
            f"{texts[sample.index]}{cut}"
        )
    if len(ranked) > show:
        print(f"      and {len(ranked) - show} more distinct answers")
    if judged:
        top = any(right[each.answer.index] for each in ranked[:3])
        print(
            f"\nsamples that are right: {sum(v is True for v in right)} of {len(texts)}; "
            f"right among the best three distinct answers: {'yes' if top else 'no'}"
        )


def print_costs(generation: Generation, model: CausalLM, device: str, kernels: str) -> None:
    """Seconds, and bytes of keys and values beside what ordinary decoding would take."""
    t, traffic = generation.timings, generation.traffic
    rate = f"{t.tokens_per_second:.1f} tokens/s" if t.steps else "no decode step"
    simulated = kernels == "nki" and model.device.type == "cpu"
    note = "; the simulator's speed, not a NeuronCore's" if simulated else ""
    print(
        f"\ntime      prefill {t.prefill:.2f} s, decode {t.decode:.2f} s, {rate} ({device}{note})"
    )
    ours, theirs = traffic.bifurcated, traffic.ordinary
    each = f" in each of {model.parallel.size} processes" if model.parallel.size > 1 else ""
    print(
        f"KV stored {size(ours.stored_live)} bifurcated, {size(theirs.stored_live)} ordinary; "
        f"this run's cache holds {size(model.cache_bytes())}{each}"
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
                "count": each.count,
                "right": right[each.answer.index],
                "sample": each.answer.index,
                "finish": each.answer.finish,
            }
            for place, each in enumerate(ranked, start=1)
        ],
        "samples": [
            {"tokens": sample.tokens, "logprobs": sample.logprobs, "finish": sample.finish}
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


if __name__ == "__main__":
    command_line.run(main)
