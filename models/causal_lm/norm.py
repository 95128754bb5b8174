"""The root mean square norm (Zhang and Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.causal_lm.config import ModelConfig


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, computed in fp32.

    With `norm_plus_one` the factor is 1 + weight and applied before rounding to the dtype of x.
    """

    def __init__(
        self, config: ModelConfig, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.eps, self.plus_one = config.rms_norm_eps, config.norm_plus_one
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., size] normalised, in its own dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.plus_one:
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)


def norm_or_nothing(
    wanted: bool, config: ModelConfig, size: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A norm over `size` elements, or a module that passes its input and holds no weight."""
    return RMSNorm(config, size, dtype, device) if wanted else nn.Identity()
