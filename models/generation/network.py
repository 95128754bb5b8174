"""What a generator needs of a model, and how it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.causal_lm import CacheShape, ModelConfig


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
        """Of the cache."""

    def allocate(self, shape: CacheShape) -> None:
        """Makes the cache."""

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Copies a group's context."""

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
