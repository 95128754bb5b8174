"""The stage that compiles every graph of a plan, in both forms, and writes down what it took.

A rehearsal captures the same graphs for the CPU, by `compile.export`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
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
        backend, before = backend_of(plan), list[str]()
        for stage in backend.stages(graphs.graph_specs(plan, CANDIDATES)):
            jobs += [
                Job(f"graphs/{form}/{spec.name}", "graphs", spec.name, plan.instance.target,
                    evidence, partial(make, plan, spec, backend, tuple(before), folder / form))
                for spec in stage
            ]  # fmt: skip
            before += [spec.name for spec in stage]
    return jobs


def make(
    plan: Plan, spec: GraphSpec, backend: Backend, before: Sequence[str], folder: Path
) -> Found:
    """Compile one graph; what it weighs, and what compiling took.

    Args:
        plan, spec, backend: of the graph.
        before: graphs that it may go by, in `folder` with all of a form's graphs.
        folder: its files go there when they are whole.

    Raises:
        InputError: a graph that it goes by was not made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in before:
        require(any(folder.glob(f"{name}.*")), f"graph {name}, which comes first, failed")
    with (
        tempfile.TemporaryDirectory(dir=folder) as fresh,
        backend.building(plan) as model,
    ):
        backend.trace_graph(model, spec, CANDIDATES, folder)(Path(fresh))
        made = sorted(Path(fresh).iterdir())
        files = [path.replace(folder / path.name) for path in made]
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
