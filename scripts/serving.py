"""`generate.py --artifact`: the same answers, from graphs that were compiled."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from compile.artifact import Artifact, open_artifact, read_manifest
from compile.backend import Backend
from compile.buckets import check_sampling, route
from compile.run import CompiledLM
from models.causal_lm import CacheShape, Tokenizer
from models.generation import Generation, Progress, Sampling, generate
from models.generation.results import ProgressCallback
from nki_kernels.errors import InputError
from scripts import telling
from scripts.compiling import backend_for

OWN = {
    "device": "was chosen when it was compiled",
    "model": "is in the artefact",
    "dtype": "was chosen when it was compiled",
    "target": "was chosen when it was compiled",
    "attention": "was chosen when it was compiled",
    "weights": "are in the artefact",
    "kv_dtype": "was chosen when it was compiled",
    "kv_split": "was chosen when it was compiled",
    "tp": "was chosen when it was compiled",
    "speculate": "needs graphs of several tokens a step, which are not compiled",
}


@dataclass(frozen=True)
class Run:
    """What was drawn, and by what.

    Attributes:
        generation: the answers.
        cache_bytes: that a rank's keys and values take.
        ranks: that shared the network.
        device: the word for it.
        kernels: "auto", "nki" or "torch".
        simulated: whether the simulator ran the kernels.
    """

    generation: Generation
    cache_bytes: int
    ranks: int
    device: str
    kernels: str
    simulated: bool


def check_options(args: argparse.Namespace, defaults: argparse.Namespace) -> None:
    """Refuses options that an artefact has settled.

    Raises:
        InputError: naming the first.
    """
    for name, why in OWN.items():
        if getattr(args, name) != getattr(defaults, name):
            raise InputError(f"--{name.replace('_', '-')} does not go with --artifact: it {why}")


def find_artifact(folder: str, kernels: str) -> tuple[Artifact, Backend]:
    """A verified artefact and what runs it.

    `kernels` "torch" has the torch reference compute NKI operators in place of the simulator.

    Raises:
        InputError: it is none, or cannot run here.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"--artifact {folder}: there is no such folder")
    manifest = read_manifest(path)
    try:
        backend, _ = backend_for(manifest["device"], simulate=kernels != "torch")
    except InputError as error:
        raise InputError(f"{folder} was compiled for {manifest['device']}: {error}") from None
    if kernels == "nki" and manifest["kernels"] != "nki":
        raise InputError(f"--kernels nki: {folder} was compiled in the torch form")
    return open_artifact(path, backend.name, backend.versions()), backend


def answered(
    args: argparse.Namespace,
    artifact: Artifact,
    backend: Backend,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: Sampling,
) -> Run | None:
    """Loads an artefact, runs each graph once, and draws; None on all ranks but the first.

    Raises:
        InputError: no bucket holds the request, or the graphs do not draw so.
    """
    what = artifact.manifest
    check_sampling(artifact, sampling)
    shape = route(artifact, len(prompt), args.samples, args.max_new_tokens).shape
    with backend.joined(what["tp"]) as parallel, spoken_by(parallel.rank == 0):
        began = time.perf_counter()
        compiled = CompiledLM(artifact, backend.load(artifact, parallel))
        load = time.perf_counter() - began
        ignored = tokenizer.defaults.ignored
        warm = compiled.warm_up(progress=parallel.rank == 0)
        print_head(args, artifact, prompt, shape, sampling, ignored, load, warm)
        with steps(args.max_new_tokens, parallel.rank > 0) as progress:
            generation = generate(
                compiled,
                prompt,
                samples=args.samples,
                max_new_tokens=args.max_new_tokens,
                sampling=sampling,
                seed=args.seed,
                eos_token_ids=tokenizer.eos_token_ids,
                stop=args.stop,
                detokenise=tokenizer.decode,
                progress=progress,
                shape=shape,
            )
    simulated = backend.name == "cpu" and what["kernels"] == "nki" and args.kernels != "torch"
    run = Run(
        generation, compiled.cache_bytes(), what["tp"], backend.name, what["kernels"], simulated
    )
    return run if parallel.rank == 0 else None


def print_head(
    args: argparse.Namespace,
    artifact: Artifact,
    prompt: list[int],
    shape: CacheShape,
    sampling: Sampling,
    ignored: Sequence[str],
    load: float,
    warm: dict[str, float],
) -> None:
    """What is about to run, and where."""
    what = artifact.manifest
    top = what["candidates"]
    draw = f"among {top} tokens, in the graph" if top else "on the host"
    print(f"artefact  {artifact.folder}, for {what['device']}: {what['instance']}, tp {what['tp']}")
    print(f"          {what['family']}, {what['dtype']}, kernels: {what['kernels']}, draw {draw}")
    print(
        f"          loaded in {load:.1f} s, {len(warm)} graphs warmed up in "
        f"{sum(warm.values()):.1f} s"
    )
    print(f"prompt    {len(prompt)} tokens")
    print(
        f"bucket    G = {shape.G}, r = {shape.r}, S_ctx = {shape.S_ctx}, S_dec = {shape.S_dec}; "
        f"{len(prompt) / shape.S_ctx:.0%} of the context slots are used"
    )
    telling.print_sampling(args, sampling, ignored)
    sys.stdout.flush()


@contextmanager
def spoken_by(me: bool) -> Iterator[None]:
    """Prints, or does not: one of several processes speaks."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(sys.stdout if me else nowhere):
        yield


@contextmanager
def steps(total: int, silent: bool) -> Iterator[ProgressCallback]:
    """A bar of the steps of a generation."""
    with tqdm(total=total, unit="step", leave=False, dynamic_ncols=True, disable=silent) as bar:

        def progress(at: Progress) -> None:
            what = f"{at.phase}, {at.unfinished} of {at.samples} samples go on"
            bar.set_description(what, refresh=at.phase == "prefill")
            bar.update(at.step - bar.n)

        yield progress
