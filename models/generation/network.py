"""What a generator needs of a model, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.causal_lm import CacheShape, ModelConfig

Step = Callable[..., tuple[Tensor, Tensor]]
"""Tokens and log-probabilities of a decode step; arguments as `DecodeStep.forward`'s."""


class Network(Protocol):
    """What the generator needs of a model; `models.causal_lm.CausalLM` has it."""

    @property
    def config(self) -> ModelConfig:
        """Sizes."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the cache."""

    def allocate(self, shape: CacheShape) -> None:
        """Makes the cache."""

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Copies a group's context."""

    def sampled(self, candidates: int) -> Step | None:
        """The decode step that draws tokens itself; None where there is none for so many."""

    def __call__(
        self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: Tensor
    ) -> Tensor:
        """Prefill or decode; see `CausalLM.forward`."""


def call(
    model: Network, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: int
) -> Tensor:
    """Logits of a step, its inputs moved to the model's device first."""
    device = model.device
    return model(
        tokens.to(device),
        context_len.to(device),
        suffix_len.to(device),
        torch.tensor([group], dtype=torch.int32, device=device),
    )
