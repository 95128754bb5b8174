"""The stage that compiles every graph of a plan, in both forms, and writes down what it took.

A rehearsal captures the same graphs for the CPU, by `compile.export`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from compile import graphs
from compile.backend import Backend
from compile.graphs import GraphSpec
from compile.instances import known
from compile.plan import Plan, Request, make_plan
from models.causal_lm import ModelConfig
from nki_kernels.errors import require
from scripts.validation import machine
from scripts.validation.runner import Found, Job

FORMS = ("nki", "torch")
CANDIDATES = 50
"""Tokens that a decode graph draws among: transformers' default top-k."""

SMALLEST = {"trn1": "trn1.2xlarge", "inf2": "inf2.xlarge", "trn2": "trn2.48xlarge"}
"""The instance that graphs are planned for where none is named, by core generation."""


@dataclass(frozen=True)
class Wanted:
    """What to plan; the fields of `compile.plan.Request`."""

    target: str
    instance: str | None
    tp: int
    contexts: tuple[int, ...]
    samples: tuple[int, ...]
    max_new_tokens: int


def plans(config: ModelConfig, wanted: Wanted) -> dict[str, Plan]:
    """A plan a form.

    Raises:
        InputError: no instance of that target is planned for, or the plan is refused.
    """
    instance = wanted.instance or SMALLEST.get(wanted.target)
    require(
        instance is not None,
        f"--target {wanted.target} has no planned instance; name one of {', '.join(known())}",
    )
    assert instance is not None
    request = Request(
        instance, wanted.tp, torch.bfloat16, wanted.contexts, wanted.samples, wanted.max_new_tokens
    )
    found = {form: make_plan(config, replace(request, kernels=form)) for form in FORMS}
    target = found[FORMS[0]].instance.target
    require(
        target == wanted.target, f"--instance {instance} has cores of {target}, not {wanted.target}"
    )
    return found


def graph_jobs(
    made: Mapping[str, Plan], backend_of: Callable[[Plan], Backend], folder: Path, evidence: str
) -> list[Job]:
    """A job a graph and form, in the order in which a backend makes them."""
    jobs = []
    for form, plan in made.items():
        backend, done = backend_of(plan), dict[str, Path]()
        for stage in backend.stages(graphs.graph_specs(plan, CANDIDATES)):
            for spec in stage:
                place = folder / form / spec.name
                jobs.append(
                    Job(f"graphs/{form}/{spec.name}", "graphs", spec.name, plan.instance.target,
                        evidence, partial(make, plan, spec, backend, dict(done), place))
                )  # fmt: skip
            done |= {spec.name: folder / form / spec.name for spec in stage}
    return jobs


def make(
    plan: Plan, spec: GraphSpec, backend: Backend, done: Mapping[str, Path], folder: Path
) -> Found:
    """Compile one graph into an empty folder; what it weighs, and what compiling took.

    Raises:
        InputError: a graph that it goes by was not made.
    """
    for name, place in done.items():
        require(place.is_dir() and any(place.iterdir()), f"graph {name}, which comes first, failed")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with backend.building(plan) as model:
        backend.trace_graph(model, spec, CANDIDATES, done)(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    planned = next(graph for graph in plan.graphs if graph.name == spec.name)
    return Found(
        wrong=None if files else "the compiler left no file",
        details={
            "instance": plan.instance.name,
            "bytes": sum(path.stat().st_size for path in files),
            "planned_instructions": planned.count.total,
            "largest_child_gib": machine.largest_child_gib(),
        },
    )
