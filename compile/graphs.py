"""The graphs of a plan as what is traced: one module, one set of buffers, and the inputs of each.

All graphs work on the same weights and the same states, the buffers of the largest bucket. A graph
of a smaller bucket uses the first slots of them. Which bucket a graph is for stands in the module
while that graph is traced, not among its inputs, for ModelBuilder v2 wants one list of parameters
for all graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compile.plan import Graph, Plan
from models.causal_lm import CacheShape, CausalLM
from models.causal_lm.draw import MOST_CANDIDATES
from models.generation.single import plan_shape
from models.parallel import TensorParallel
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class GraphSpec:
    """What a graph is traced from.

    Attributes:
        name: the plan's, unique and without dots.
        phase: "prefill" or "decode".
        shape: the layout of the cache that it works on.
        inputs: by name, in the order of the module's `forward`; their values are examples.
    """

    name: str
    phase: str
    shape: CacheShape
    inputs: dict[str, Tensor]


def check_candidates(candidates: int) -> None:
    """Refuses a number of candidates that no graph draws among; 0 is a graph without a draw."""
    if not 0 <= candidates <= MOST_CANDIDATES:
        raise InputError(
            f"top_k is {candidates}; graphs draw among 1 to {MOST_CANDIDATES} tokens, or leave it "
            "to the host (0)"
        )


def build(plan: Plan, parallel: TensorParallel, device: str = "cpu") -> CausalLM:
    """A rank's network of a plan, with buffers for the largest bucket and weights of any values."""
    request, network = plan.request, plan.network
    model = CausalLM(
        plan.config,
        dtype=request.dtype,
        device=device,
        kernels=network.kernels,
        target=plan.instance.target,
        attention=request.attention,
        parallel=parallel,
        kv_split=request.kv_split,
    )
    model.allocate(plan.cache)
    return model


def traced(model: CausalLM, candidates: int) -> nn.Module:
    """What is traced: the network, or a step that draws among so many candidates a row."""
    return model.sampled(candidates) if candidates else model


@contextmanager
def bucket(model: CausalLM, shape: CacheShape) -> Iterator[None]:
    """Within this the network works on a cache of `shape`, in the first slots of its buffers."""
    before = model.shape
    model.use(shape)
    try:
        yield
    finally:
        assert before is not None
        model.use(before)


def graph_specs(plan: Plan, candidates: int) -> list[GraphSpec]:
    """The graphs of a plan, in its order: prefill first.

    Args:
        plan: of them.
        candidates: as `traced` is given.
    """
    check_candidates(candidates)
    return [_spec(plan, graph, candidates) for graph in plan.graphs]


def _spec(plan: Plan, graph: Graph, candidates: int) -> GraphSpec:
    request = plan.request
    if graph.shape is None:
        # A prefill writes where the decode graphs of its context bucket read: their layout differs
        # in how many groups there are, and group j begins at slot j · S_ctx of any of them.
        shape = plan_shape(
            graph.queries, request.samples[-1], request.max_new_tokens, request.attention
        )
        tokens = torch.zeros(1, graph.queries, dtype=torch.int32)
        context = torch.full((shape.G,), graph.queries, dtype=torch.int32)
        suffix = torch.zeros(shape.G, shape.r, dtype=torch.int32)
    else:
        shape = graph.shape
        tokens = torch.zeros(shape.G, shape.r, 1, dtype=torch.int32)
        context = torch.full((shape.G,), shape.S_ctx, dtype=torch.int32)
        suffix = torch.ones(shape.G, shape.r, dtype=torch.int32)
    inputs = {
        "tokens": tokens,
        "context_len": context,
        "suffix_len": suffix,
        "group": torch.zeros(1, dtype=torch.int32),
    }
    if candidates:
        rows = shape.G, shape.r
        inputs["u"] = torch.full((*rows, 1), 0.5)
        inputs["temperature"] = torch.ones(rows)
        inputs["top_k"] = torch.full(rows, candidates, dtype=torch.int32)
        inputs["top_p"] = torch.ones(rows)
    return GraphSpec(graph.name, graph.phase, shape, inputs)
