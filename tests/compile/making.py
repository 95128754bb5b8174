"""Random checkpoints, their artefacts, and what these answer; also run by processes of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compile.artifact import Artifact, open_artifact
from compile.buckets import route
from compile.export import Cpu
from compile.run import CompiledLM
from models.causal_lm import load
from models.generation import Sampling, generate
from models.parallel import SINGLE, TensorParallel
from scripts import planning
from tests.models.causal_lm import families

GREEDY = Sampling(temperature=0)
SAMPLED = Sampling(temperature=0.9, top_k=5, top_p=0.9)
OPEN = Sampling(temperature=0.9, top_p=0.9)  # no top-k: drawn on the host

NEW = 5
BASE = ["--instance", "trn1.32xlarge", "--device", "cpu", "--dtype", "fp32"]
BASE += ["--max-new-tokens", str(NEW)]


@dataclass(frozen=True)
class Asked:
    """A request."""

    prompt: tuple[int, ...]
    samples: int
    sampling: Sampling
    seed: int = 7


def asked(prompt: int, samples: int, sampling: Sampling) -> Asked:
    """A request with a prompt of so many tokens, which repeats nothing soon."""
    return Asked(tuple(3 + 7 * i % 53 for i in range(prompt)), samples, sampling)


def checkpoint(folder: Path, family: str = "llama-3", **changes: Any) -> Path:
    """One layer of a family with random weights, in Hugging Face's format."""
    families.make(family, num_hidden_layers=1, **changes).save_pretrained(folder)
    return folder


def compiled(model: Path, out: Path, cache: Path, *options: str) -> Artifact:
    """The artefact that scripts/compile.py makes."""
    planning.main(
        ["--model", str(model), "--out", str(out), "--cache", str(cache), *BASE, *options]
    )
    return opened(out)


def opened(out: Path) -> Artifact:
    """An artefact, verified."""
    return open_artifact(out, "cpu", Cpu().versions())


def served(
    parallel: TensorParallel, out: Path, requests: Sequence[Asked], simulate: bool = True
) -> tuple[list[list[list[int]]], dict[str, int]]:
    """The tokens of each request's samples, of one loaded artefact, and the bytes that it holds."""
    torch.set_num_threads(1)
    artifact = opened(out)
    session = Cpu(simulate).load(artifact, parallel)
    network = CompiledLM(artifact, session)
    network.warm_up()
    answers = []
    for each in requests:
        bucket = route(artifact, len(each.prompt), each.samples, NEW)
        made = generate(
            network, each.prompt, samples=each.samples, max_new_tokens=NEW,
            sampling=each.sampling, seed=each.seed, shape=bucket.shape,
        )  # fmt: skip
        answers.append([sample.tokens for sample in made.samples])
    return answers, session.nbytes()


def eager(model: Path, requests: Sequence[Asked], **options: Any) -> list[list[list[int]]]:
    """The same of the network itself, on one rank."""
    network = load(model, dtype="float32", parallel=SINGLE, **options)
    answers = []
    for each in requests:
        made = generate(
            network, each.prompt, samples=each.samples, max_new_tokens=NEW,
            sampling=each.sampling, seed=each.seed,
        )  # fmt: skip
        answers.append([sample.tokens for sample in made.samples])
    return answers
