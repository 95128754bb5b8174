"""Sample many answers to one prompt and print them ranked.

python scripts/generate.py                                     the default model, an unseen problem
python scripts/generate.py --model DIR --prompt "..." -n 16    a Hugging Face checkpoint
torchrun --nproc-per-node 2 scripts/generate.py --tp 2         a model split over two processes
python scripts/generate.py --artifact DIR --prompt "..."       graphs that scripts/compile.py made
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

from compile.devices import resolve
from models.causal_lm import (
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
    PromptLookup,
    Ranked,
    Sample,
    Sampling,
    Speculation,
    check_draft,
    check_request,
    check_stop,
    generate,
    rank,
    vote,
)
from models.parallel import started
from models.pretrained import DEFAULT_MODEL, checker, example_prompt
from nki_kernels.errors import InputError
from scripts import command_line, options, serving, telling
from scripts.serving import Run, spoken_by, steps

Check = Callable[[str, str], bool | None]
Drafts = Callable[[], Speculation | None]
Ranking = Callable[[Sequence[Sample], Sequence[str]], list[Ranked[Sample]]]

EXAMPLE = options.EXAMPLE


def parse() -> argparse.Namespace:
    """The command line; every word means the same in all scripts."""
    made = parser()
    args = made.parse_args()
    if args.artifact is not None:
        serving.check_options(args, made.parse_args([]))
    return args


def parser() -> command_line.Parser:
    """The options."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    options.add_model(parser)
    add(
        "--artifact", metavar="DIR", help="compiled graphs (scripts/compile.py) in place of --model"
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt (the default model has one)")
    prompt.add_argument("--prompt-file", metavar="F", help="a UTF-8 file that holds the prompt")
    add("--chat", action="store_true", help="put the prompt through the checkpoint's chat template")
    options.add_sampling(parser)
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
    return parser  # fmt: skip


def main() -> None:
    """Load, sample, rank, print."""
    args = parse()
    out = None if args.json is None else output_path(args.json, "--json")
    if args.show < 1:
        raise InputError(f"--show is {args.show}; it must be 1 or more")
    compiled = None
    if args.artifact is not None:
        compiled = serving.find_artifact(args.artifact, args.kernels)
    directory = find_checkpoint(args.model) if compiled is None else compiled[0].checkpoint
    text = read_prompt(args, directory)
    config = load_config(directory)
    tokenizer = Tokenizer.load(directory)
    options.check_vocabulary(config, tokenizer, directory)
    if args.max_new_tokens is None:
        args.max_new_tokens = tokenizer.defaults.max_new_tokens or options.MAX_NEW_TOKENS
    sampling = options.choose_sampling(args, tokenizer)
    prompt = tokenizer.encode_chat(text) if args.chat else tokenizer.encode(text)
    check_request(config, prompt, args.samples, args.max_new_tokens, args.seed)
    check_stop(args.stop, tokenizer.decode, config.vocab_size)
    ranking = choose_ranking(args, text)
    if compiled is None:
        run = eager(args, directory, config, tokenizer, text, prompt, sampling)
    else:
        run = serving.answered(args, *compiled, tokenizer, prompt, sampling)
    if run is None:
        return
    generation, texts = run.generation, [(s.text or "").strip() for s in run.generation.samples]
    check: Check = checker(directory) or (lambda prompt, answer: None)
    right = [check(text, answer) for answer in texts]
    ranked = ranking(generation.samples, texts)
    telling.print_answers(ranked, texts, right, args.show, scored=args.score is not None)
    telling.print_costs(generation, run.cache_bytes, run.ranks, run.device, run.simulated)
    if out is not None:
        write_json(
            out,
            telling.report(
                args, text, prompt, sampling, generation, ranked, texts, right, run.kernels
            ),
        )
        print(f"written   {out}")


def eager(
    args: argparse.Namespace,
    directory: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    text: str,
    prompt: list[int],
    sampling: Sampling,
) -> Run | None:
    """Loads the checkpoint and draws; None on all ranks but the first."""
    device, kernels = resolve(args.device), kernels_of(args)
    check_degree(config, args.tp)
    drafts = choose_drafts(args, config)
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
        ignored = tokenizer.defaults.ignored
        telling.print_head(args, model, kernels, prompt, text, unknown, sampling, ignored)
        with steps(args.max_new_tokens, parallel.rank > 0) as progress:
            generation = generate(
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
                speculation=drafts(),
            )
    simulated = kernels == "nki" and model.device.type == "cpu"
    run = Run(generation, model.cache_bytes(), args.tp, args.device, kernels, simulated)
    return run if parallel.rank == 0 else None


def read_prompt(args: argparse.Namespace, directory: Path) -> str:
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
    # Compiled from the default model, an artefact plays what that plays.
    its = directory if args.artifact is None else DEFAULT_MODEL
    if its.resolve() == DEFAULT_MODEL.resolve() and checker(directory) is not None:
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


if __name__ == "__main__":
    command_line.run(main)
