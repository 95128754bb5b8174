"""A decode step as one CUDA graph, so that launches do not set the pace of an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.causal_lm.cache import CacheShape
from models.causal_lm.config import ModelConfig
from models.causal_lm.draw import MOST_CANDIDATES
from models.causal_lm.network import CausalLM
from nki_kernels.errors import require

WARM_UP = 3
"""Runs before the capture: they compile kernels and let cuBLAS take its workspace."""


@dataclass
class _Graph:
    """A captured step and the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Any


class CapturedLM:
    """A `CausalLM` on a GPU whose decode steps are replayed; called as the model itself is.

    A graph is captured at the first step of each shape of tokens and dropped by `allocate`, for it
    holds the addresses of the cache. Prefill runs as it always does.

    Args:
        model: on a CUDA device.
        fuse: let torch.compile fuse what lies between the matrix products (minutes at first use).

    Raises:
        InputError: the model is elsewhere.
    """

    def __init__(self, model: CausalLM, *, fuse: bool = False) -> None:
        require(
            model.device.type == "cuda",
            f"model is on {model.device}; a CUDA graph needs it on a cuda device",
        )
        self.model = model
        self.fuse = fuse
        self._graphs: dict[tuple[int, ...], _Graph] = {}
        self._steps: dict[int, Callable[..., Any]] = {0: self._prepared(model)}

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        return self.model.dtype

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the cache."""
        return self.model.kv_dtype

    def allocate(self, shape: CacheShape) -> None:
        """Makes the cache; graphs over the one before are dropped."""
        self._graphs.clear()
        self.model.allocate(shape)

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Copies a group's context."""
        self.model.copy_context(source, targets)

    def __call__(
        self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: Tensor
    ) -> Tensor:
        """Logits, as `CausalLM.forward`; those of a decode step are overwritten by the next one."""
        if tokens.dim() == 2:
            return self.model(tokens, context_len, suffix_len, group)
        logits: Tensor = self._replay(0, tokens, context_len, suffix_len, group)
        return logits

    def sampled(self, candidates: int) -> Callable[..., tuple[Tensor, Tensor]]:
        """The captured step that draws tokens; so that there are few, for the next power of two.

        What it gives is overwritten by the next step.
        """
        count = min(1 << (candidates - 1).bit_length(), MOST_CANDIDATES)
        if count not in self._steps:
            self._steps[count] = self._prepared(self.model.sampled(count))
        return partial(self._replay, count)

    def _prepared(self, step: nn.Module) -> Callable[..., Any]:
        if not self.fuse:
            return step
        compiled: Callable[..., Any] = torch.compile(step.forward, fullgraph=True, dynamic=False)
        return compiled

    def _replay(self, candidates: int, *inputs: Tensor) -> Any:
        """Runs the step that draws among `candidates`, or that with logits for 0, by its graph."""
        key = (candidates, *inputs[0].shape)
        if key not in self._graphs:
            self._graphs[key] = self._capture(self._steps[candidates], *inputs)
        captured = self._graphs[key]
        for held, given in zip(captured.inputs, inputs, strict=True):
            held.copy_(given)
        captured.graph.replay()
        return captured.outputs

    def _capture(self, step: Callable[..., Any], *inputs: Tensor) -> _Graph:
        held = tuple(x.clone() for x in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(WARM_UP):  # a step writes the same keys however often it runs
                step(*held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            outputs = step(*held)
        return _Graph(graph, held, outputs)
