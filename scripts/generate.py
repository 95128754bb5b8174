"""Sample many answers to one prompt and print them ranked.

python scripts/generate.py                                     the default model, an unseen problem
python scripts/generate.py --model DIR --prompt "..." -n 16    a Hugging Face checkpoint
torchrun --nproc-per-node 2 scripts/generate.py --tp 2         a model split over two processes
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import contextlib
import math
import os
from dataclasses import asdict

import torch
from tqdm import tqdm

from compile.devices import resolve
from models.causal_lm import (
    CausalLM,
    ModelConfig,
    Tokenizer,
    find_checkpoint,
    load,
    load_config,
)
from models.causal_lm.sharding import check_degree
from models.evaluation import scorer
from models.evaluation.commands import TIME_LIMIT
from models.files import output_path, write_json
from models.generation import (
    DraftModel,
    Generation,
    Progress,
    PromptLookup,
    Ranked,
    Sample,
    Sampling,
    Speculation,
    check_draft,
    check_request,
    check_stop,
    generate,
    plan_shape,
    rank,
    vote,
)
from models.parallel import started
from models.pretrained import DEFAULT_MODEL, checker, example_prompt
from nki_kernels import decode_path
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.errors import InputError
from nki_kernels.torch_ops import cuda_path
from scripts import command_line, options

Check = Callable[[str, str], bool | None]
Drafts = Callable[[], Speculation | None]
Ranking = Callable[[Sequence[Sample], Sequence[str]], list[Ranked[Sample]]]

# Which of the default model's example prompts is shown: one that some of the samples get right.
EXAMPLE = 4

SHOWN = 72  # characters of the prompt's end


def parse() -> argparse.Namespace:
    """The command line; every word means the same in all scripts."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    options.add_model(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt (the default model has one)")
    prompt.add_argument("--prompt-file", metavar="F", help="a UTF-8 file that holds the prompt")
    add("--chat", action="store_true", help="put the prompt through the checkpoint's chat template")
    options.add_sampling(parser, samples=16)
    add(
        "--attention",
        choices=("auto", "bifurcated", "ordinary"),
        default="auto",
        help="bifurcated reads the prompt once a step, ordinary once per sample (%(default)s)",
    )
    options.add_machine(parser)
    add(
        "--speculate",
        metavar="prompt-lookup|DIR",
        help="verify drafts, copied from the prompt or from a smaller model; same answers",
    )
    add("--draft-tokens", type=int, default=4, metavar="K", help="drafts a step (%(default)s)")
    ranking = parser.add_mutually_exclusive_group()
    ranking.add_argument(
        "--score",
        metavar="MODULE:FUNCTION|COMMAND",
        help="rank by function(prompt, answer), or by the number that a command prints",
    )
    ranking.add_argument(
        "--vote",
        nargs="?",
        const="",
        metavar="REGEX",
        help="rank by how many answers agree: in their text, or in what REGEX matches last",
    )
    add(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="S",
        help="seconds that the --score command has for an answer (%(default)s)",
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
    kernels = kernels_of(args)
    directory = find_checkpoint(args.model)
    text = read_prompt(args)
    config = load_config(directory)
    tokenizer = Tokenizer.load(directory)
    options.check_vocabulary(config, tokenizer, directory)
    if args.max_new_tokens is None:
        args.max_new_tokens = tokenizer.defaults.max_new_tokens or options.MAX_NEW_TOKENS
    sampling = options.choose_sampling(args, tokenizer)
    prompt = tokenizer.encode_chat(text) if args.chat else tokenizer.encode(text)
    check_request(config, prompt, args.samples, args.max_new_tokens, args.seed)
    check_degree(config, args.tp)
    check_stop(args.stop, tokenizer.decode, config.vocab_size)
    ranking, drafts = choose_ranking(args, text), choose_drafts(args, config)
    with started(args.tp, device.torch) as parallel, spoken_by(parallel.rank == 0):
        model = load(
            directory,
            dtype=args.dtype,
            device=device.torch,
            kernels=kernels,
            target=args.target,
            attention=args.attention,
            parallel=parallel,
            kv_split=args.kv_split,
            weights=args.weights,
            kv_dtype=args.kv_dtype,
            progress=parallel.rank == 0,
        )
        unknown = tokenizer.count_unknown(prompt)
        print_head(args, model, kernels, prompt, text, unknown, sampling)
        generation = sample_answers(args, model, prompt, sampling, tokenizer, drafts())
    if parallel.rank > 0:
        return
    texts = [(sample.text or "").strip() for sample in generation.samples]
    check: Check = checker(directory) or (lambda prompt, answer: None)
    right = [check(text, answer) for answer in texts]
    ranked = ranking(generation.samples, texts)
    print_answers(ranked, texts, right, args.show, scored=args.score is not None)
    print_costs(generation, model, args.device, kernels)
    if out is not None:
        write_json(
            out, report(args, text, prompt, sampling, generation, ranked, texts, right, kernels)
        )
        print(f"written   {out}")


@contextlib.contextmanager
def spoken_by(me: bool) -> Iterator[None]:
    """Prints, or does not: one of several processes speaks."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(sys.stdout if me else nowhere),
    ):
        yield


def sample_answers(
    args: argparse.Namespace,
    model: CausalLM,
    prompt: list[int],
    sampling: Sampling,
    tokenizer: Tokenizer,
    speculation: Speculation | None,
) -> Generation:
    """Draw, with a bar of the steps."""
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

        return generate(
            model,
            prompt,
            samples=args.samples,
            max_new_tokens=args.max_new_tokens,
            sampling=sampling,
            seed=args.seed,
            attention=args.attention,
            eos_token_ids=tokenizer.eos_token_ids,
            stop=args.stop,
            detokenise=tokenizer.decode,
            progress=progress,
            speculation=speculation,
        )


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


def choose_drafts(
    args: argparse.Namespace, config: ModelConfig
) -> Callable[[], Speculation | None]:
    """What makes the drafts, once the model is loaded; whatever is wrong with it is told before."""
    if args.speculate is None:
        return lambda: None
    if args.speculate == "prompt-lookup":
        lookup = Speculation(PromptLookup(), args.draft_tokens)
        return lambda: lookup
    directory = find_checkpoint(args.speculate)
    check_draft(load_config(directory), config)

    def make() -> Speculation:
        draft = load(
            directory,
            dtype=args.dtype,
            device=resolve(args.device).torch,
            kernels=kernels_of(args),
            target=args.target,
        )
        return Speculation(DraftModel(draft, config), args.draft_tokens)

    return make


def kernels_of(args: argparse.Namespace) -> str:
    """The kernels that run on the device, where the command line leaves them open."""
    return resolve(args.device).kernels if args.kernels == "auto" else args.kernels


def choose_ranking(args: argparse.Namespace, prompt: str) -> Ranking:
    """What puts samples in order, from their texts.

    Raises:
        InputError: a regular expression or a score that is none.
    """
    if args.score is not None:
        score = scorer(args.score, "--score", args.time_limit)
        return lambda samples, texts: rank(
            samples,
            key=lambda sample: texts[sample.index],
            score=lambda sample: score(prompt, texts[sample.index]),
        )
    if args.vote is None:
        return lambda samples, texts: rank(samples, key=lambda sample: texts[sample.index])
    try:
        pattern = re.compile(args.vote)
    except re.error as error:
        raise InputError(f"--vote {args.vote!r} is no regular expression: {error}") from error

    def ballot(text: str) -> str | None:
        if not args.vote:
            return text
        found = list(pattern.finditer(text))
        return found[-1][1 if pattern.groups else 0] if found else None

    return lambda samples, texts: vote(samples, key=lambda sample: ballot(texts[sample.index]))


def describe_kernels(
    device: str, dtype: torch.dtype, kernels: str, target: str, split_windows: bool
) -> str:
    """Which implementation of attention runs, in words.

    `split_windows`: ranks share a context by position, and some layers see a window of it.
    """
    if kernels == "nki":
        return "nki" if device == "xla" else f"nki, simulated {target}"
    if kernels == "auto" and device == "cuda":
        path = cuda_path(dtype)
        # the Triton kernels do not take `query_position`
        return f"{path}, torch in layers with a window" if split_windows else path
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
        shape, model.dtype.itemsize, args.target, args.attention, c.window(0), c.attention_softcap
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
) -> None:
    """What is about to run."""
    c = model.config
    split_windows = model.parts > 1 and any(c.window(i) is not None for i in range(c.layers))
    where = describe_kernels(model.device.type, model.dtype, kernels, args.target, split_windows)
    how, why = attention_path(args, model, len(prompt), where)
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
    print(f"attention {how}, kernels: {where}")
    print(f"          {why}", flush=True)
    if unknown:
        print(f"note      {unknown} tokens of the prompt are unknown to this model's tokenizer")
        if Path(args.model).resolve() == DEFAULT_MODEL.resolve():
            print("          it plays countdown and nothing else; without --prompt it shows how")


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


def print_costs(generation: Generation, model: CausalLM, device: str, kernels: str) -> None:
    """Seconds, and bytes of keys and values beside what ordinary decoding would take."""
    t, traffic = generation.timings, generation.traffic
    rate = f"{t.tokens_per_second:.1f} tokens/s" if t.steps else "no decode step"
    simulated = kernels == "nki" and model.device.type == "cpu"
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


if __name__ == "__main__":
    command_line.run(main)
