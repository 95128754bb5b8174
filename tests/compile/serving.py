"""Making an artefact for a test, and what its ranks do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compile.artifact import Artifact, open_artifact
from compile.cache import Cache
from compile.export import Cpu
from compile.make import make_artifact
from compile.plan import Plan, Request, make_plan
from compile.run import CompiledLM
from models.causal_lm import load_config
from models.generation import Generator, Sampling
from models.parallel import TensorParallel

NEW = 6


def plan_of(checkpoint: Path, **changes: Any) -> Plan:
    """A small one, in the torch form, which any model has."""
    fields: dict[str, Any] = {
        "instance": "trn1.32xlarge",
        "tp": 1,
        "dtype": torch.float32,
        "contexts": (12,),
        "samples": (3,),
        "max_new_tokens": NEW,
        "kernels": "torch",
    }
    return make_plan(load_config(checkpoint), Request(**fields | changes))


def made(
    checkpoint: Path, folder: Path, cache: Path | None = None, candidates: int = 0, **changes: Any
) -> Artifact:
    """An artefact in `folder`, verified."""
    backend, plan = Cpu(), plan_of(checkpoint, **changes)
    make_artifact(
        plan, checkpoint, folder, backend, Cache(cache or folder.parent / "c"), candidates
    )
    return open_artifact(folder, backend.name, backend.versions())


def served(artifact: Artifact, parallel: TensorParallel) -> CompiledLM:
    """It, loaded on a rank."""
    compiled = CompiledLM(artifact)
    compiled.session = Cpu().load(artifact, parallel)
    return compiled


def tokens(
    parallel: TensorParallel,
    folder: Path,
    prompt: list[int],
    samples: int,
    samplings: list[Sampling],
) -> tuple[list[list[list[int]]], dict[str, int]]:
    """What a rank draws, a list of samples for each sampling, and the bytes it holds."""
    backend = Cpu()
    compiled = served(open_artifact(folder, backend.name, backend.versions()), parallel)
    compiled.warm_up()
    shape = compiled.route(len(prompt), samples, NEW)
    found = []
    for sampling in samplings:
        generation = Generator(compiled, shape).run(
            prompt, samples=samples, max_new_tokens=NEW, sampling=sampling, seed=3
        )
        found.append([sample.tokens for sample in generation.samples])
    return found, compiled.session.nbytes()
