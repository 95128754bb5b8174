"""Networks small enough for any test, with weights that make every part of them matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.causal_lm import CausalLM, ModelConfig, RopeConfig

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=48,
    intermediate_size=64,
    layers=2,
    h=4,
    g=2,
    d=12,
    max_position=128,
    rms_norm_eps=1e-5,
    rope=RopeConfig("default", 10000.0),
)


def randomise(weights: Iterable[tuple[str, Tensor]], seed: int = 0) -> None:
    """Fills matrices, biases and norms alike, so that a part left out changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights:
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() >= 2:
            scale = 1.0 if "embed" in name else 1.5 * weight.shape[-1] ** -0.5
            weight.data.copy_(noise * scale)
        else:
            weight.data.copy_(noise * 0.2 + ("norm" in name))


def model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> CausalLM:
    """A network with random weights; `changes` replace fields of CONFIG."""
    network = CausalLM(replace(CONFIG, **changes), dtype=dtype)
    randomise(network.named_parameters(), seed)
    return network


def int32(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
