"""What more samples buy, and in what time: pass@n and pass@top3, bifurcated beside ordinary.

python scripts/measure_pass_at_n.py --json F --plot F.svg     measure the default model and draw it
python scripts/measure_pass_at_n.py --from F --plot F.svg     draw what was measured before
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
import itertools
import json
import os
import platform
from collections.abc import Sequence
from statistics import median

import torch
from tqdm import tqdm

from models.causal_lm import Tokenizer, load
from models.files import output_path, write_json
from models.generation import Sample, Sampling, generate, pass_at_k, pass_at_top, rank
from models.pretrained import DEFAULT_MODEL
from models.pretrained.countdown import data, task
from models.pretrained.countdown.evaluate import unseen_prompts
from nki_kernels.errors import InputError
from scripts import command_line

WAYS = ("bifurcated", "ordinary")
CURVES = {  # name: label, marker, line
    "pass@n": ("pass@n", "o", "-"),
    "pass@top3": ("pass@top3, the paper's ranking", "s", "--"),
    "pass@top3_ended": ("pass@top3, answers that ended", "^", ":"),
}
COLOURS = {"bifurcated": "#0072b2", "ordinary": "#d55e00"}  # told apart by colour-blind readers


def parse() -> argparse.Namespace:
    """The command line; every word means the same in all scripts."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--problems", type=int, default=200, help="unseen problems (%(default)s)")
    add("--timed", type=int, default=24, help="problems that are timed as well (%(default)s)")
    add("-n", "--samples", type=int, default=64, metavar="N", help="samples of each (%(default)s)")
    add("--seed", type=int, default=2026, help="of problems and sampling (%(default)s)")
    add("--from", dest="source", metavar="F", help="draw these measurements, and make none")
    add("--json", metavar="OUT", help="write the measurements to this file")
    add("--plot", metavar="OUT", help="draw them to this file, SVG or PNG (needs matplotlib)")
    return parser.parse_args()


def main() -> None:
    """Measure or read, print, write, draw."""
    args = parse()
    out = None if args.json is None else output_path(args.json, "--json")
    picture = None if args.plot is None else output_path(args.plot, "--plot")
    for name in ("problems", "timed", "samples"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    if args.source is None:
        found = measure(args)
    else:
        try:
            found = json.loads(Path(args.source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--from {args.source} cannot be read: {error}") from error
    print("   n   pass@n   top3   ended    s bifurcated  s ordinary")
    for i, n in enumerate(found["n"]):
        seconds = [found["seconds"][way][i] for way in WAYS]
        print(
            f"{n:>4}   {found['pass@n'][i]:.3f}  {found['pass@top3'][i]:.3f}"
            f"   {found['pass@top3_ended'][i]:.3f}   {seconds[0]:>12.3f}  {seconds[1]:>10.3f}"
        )
    if out is not None:
        write_json(out, found)
    if picture is not None:
        draw(found, picture)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Draw and judge answers, and time both ways of decoding by turns."""
    tokenizer, model = Tokenizer.load(DEFAULT_MODEL), load(DEFAULT_MODEL, dtype="float32")
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n <= args.samples]
    seconds: dict[str, dict[int, list[float]]] = {way: {n: [] for n in ns} for way in WAYS}
    passed: dict[int, list[float]] = {n: [] for n in ns}
    best: dict[int, list[float]] = {n: [] for n in ns}
    best_ended: dict[int, list[float]] = {n: [] for n in ns}
    lengths = []
    prompts = list(unseen_prompts(args.seed, args.problems))
    work = args.problems + 2 * len(ns) * min(args.timed, args.problems)
    with tqdm(total=work, unit="run", leave=False, dynamic_ncols=True) as bar:
        for i, prompt in enumerate(prompts):
            tokens = tokenizer.encode(prompt)
            lengths.append(len(tokens))

            def answer(n: int, way: Any, i: int = i, tokens: list[int] = tokens) -> Any:
                bar.update()
                return generate(
                    model, tokens, samples=n, max_new_tokens=data.ANSWER_TOKENS,
                    sampling=Sampling(), seed=args.seed + i, attention=way,
                    eos_token_ids=tokenizer.eos_token_ids,
                )  # fmt: skip

            samples = answer(args.samples, "bifurcated").samples
            texts = [tokenizer.decode(sample.tokens).strip() for sample in samples]
            right = [bool(task.check(prompt, text)) for text in texts]
            for n in ns:
                passed[n].append(pass_at_k(args.samples, sum(right), n))
                best[n].append(mean_top3(samples, texts, right, n, ended=False))
                best_ended[n].append(mean_top3(samples, texts, right, n, ended=True))
            if i < args.timed:
                # By turns and in both orders, so that a busy machine disturbs both alike.
                for n in ns:
                    for way in WAYS if i % 2 else reversed(WAYS):
                        t = answer(n, way).timings
                        seconds[way][n].append(t.prefill + t.decode)

    threads = torch.get_num_threads()

    def mean(values: Sequence[float]) -> float:
        return round(sum(values) / len(values), 4)

    return {
        "model": "the default model, countdown: a demonstration",
        "problems": args.problems,
        "timed": min(args.timed, args.problems),
        "samples": args.samples,
        "seed": args.seed,
        "prompt_tokens": {"median": median(lengths), "least": min(lengths), "most": max(lengths)},
        "max_new_tokens": data.ANSWER_TOKENS,
        "dtype": "float32",
        "torch": torch.__version__,
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores, {threads} thread{'s' * (threads > 1)}",
        "n": ns,
        "pass@n": [mean(passed[n]) for n in ns],
        "pass@top3": [mean(best[n]) for n in ns],
        "pass@top3_ended": [mean(best_ended[n]) for n in ns],
        "seconds": {way: [round(median(seconds[way][n]), 4) for n in ns] for way in WAYS},
    }


def mean_top3(
    samples: Sequence[Sample], texts: Sequence[str], right: Sequence[bool], n: int, ended: bool
) -> float:
    """pass@top3 of n samples, or of those that ended: the mean over disjoint sets of n."""
    sets = [samples[at : at + n] for at in range(0, len(samples) - n + 1, n)]
    kept = [[s for s in each if not ended or s.finish == "eos"] for each in sets]
    hits = [
        pass_at_top(rank(each, lambda s: texts[s.index]), lambda s: right[s.index]) for each in kept
    ]
    return sum(hits) / len(hits)


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def draw(found: dict[str, Any], path: Path) -> None:
    """Two panels with one vertical axis: against n, and against time.

    Raises:
        InputError: matplotlib is not there, or cannot write such a file.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("--plot needs matplotlib: pip install 'bifork[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "bifork", "svg.fonttype": "path"})
    figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for name, (label, marker, line) in CURVES.items():
        style: dict[str, Any] = {"linestyle": line, "marker": marker, "markersize": 4.5}
        panels[0].plot(found["n"], found[name], color="#333333", label=label, **style)
        axes = panels[1] if name == "pass@n" else panels[2]
        for way in WAYS:
            seconds = found["seconds"][way]
            axes.plot(seconds, found[name], color=COLOURS[way], **style)
            axes.annotate(
                f"n = {found['n'][-1]}", (seconds[-1], found[name][-1]), xytext=(0, -13),
                textcoords="offset points", ha="center", fontsize=8, color=COLOURS[way],
            )  # fmt: skip
    for way in WAYS:
        panels[1].plot([], [], color=COLOURS[way], linewidth=3, label=way)
    for label, marker, line in list(CURVES.values())[1:]:
        panels[2].plot([], [], color="#333333", linestyle=line, marker=marker, label=label)
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(found["n"], [str(each) for each in found["n"]])
    panels[0].set_xlabel("n, samples of a prompt")
    panels[0].set_ylabel("share of problems")
    panels[0].set_title("against n: the same answers either way", fontsize=10)
    ticks = nice_ticks(list(itertools.chain(*found["seconds"].values())))
    for axes, name in zip(panels[1:], ("pass@n", "pass@top3"), strict=True):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
        axes.minorticks_off()
        axes.set_xlabel("seconds a prompt (median)")
        axes.set_title(f"{name} against time", fontsize=10)
    for axes in panels:
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    tokens = found["prompt_tokens"]["median"]
    figure.suptitle(
        f"Countdown, {found['problems']} unseen problems, few-shot prompts of {tokens:g} tokens "
        f"(median); {found['hardware']}",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    try:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    except ValueError as error:
        raise InputError(f"--plot {path}: {error}") from error


def nice_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten that span the values."""
    all_ticks = [m * 10.0**e for e in range(-4, 4) for m in (1, 2, 5)]
    below = max((t for t in all_ticks if t <= min(values)), default=all_ticks[0])
    above = min((t for t in all_ticks if t >= max(values)), default=all_ticks[-1])
    return [t for t in all_ticks if below <= t <= above]


if __name__ == "__main__":
    command_line.run(main)
