"""Weights and caches in 8 bits.

Weight-only: a projection's weight W [out, in] is stored as V in int8 or fp8 and a factor s [out] in
fp32, one an output channel, so that W is about V times s along the outputs. The product is taken
with V, which bfloat16 holds exactly, and scaled behind: y = (x V^T) s + b. Embedding, head, router,
norms and biases stay as they are.

fp8 is float8_e4m3fn kept within ±240. NeuronCores before the fourth generation know e4m3 with
infinities, whose largest number is 240; up to there the two give each bit pattern the same meaning,
so one file serves both (AWS Neuron SDK, NKI data types; OCP 8-bit floating point specification,
table 2). Beyond it, e4m3fn has numbers where e4m3 has infinities and NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.causal_lm.config import Weights
from models.causal_lm.storage import Stored

FP8 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, FP8: 240.0}
DTYPES: dict[str, torch.dtype] = {"int8": torch.int8, "fp8": FP8}

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_projection(name: str) -> bool:
    """Whether a network's weight of that name is quantised."""
    *_, module, kind = name.split(".")
    return module in PROJECTIONS and kind == "weight"


def encode(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` / `scale` in int8 or fp8: rounded to nearest even, and never beyond LARGEST."""
    largest = LARGEST[dtype]
    scaled = (x.float() / scale).clamp(-largest, largest)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype)


def channel_scales(weight: Stored, dtype: torch.dtype) -> Tensor:
    """fp32 [out]: the largest of each output channel becomes the largest of `dtype`.

    A rank that holds a part of the inputs has the factor of the whole channel.
    """
    rows, columns = weight.part[0], slice(0, weight.whole[1])
    whole = replace(weight, part=(rows, columns), padding=(*weight.padding[:1], 0))
    scales = [block.float().abs().amax(1) / LARGEST[dtype] for block in whole.blocks()]
    scale = torch.cat(scales)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def encoded_blocks(weight: Stored, scale: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The rows of a weight in 8 bits, some at a time."""
    first = 0
    for block in weight.blocks():
        last = first + block.shape[0]
        yield encode(block, scale[first:last, None], dtype)
        first = last


class QuantisedLinear(nn.Module):
    """A rank's part of a projection with weights in 8 bits, in the place of `layer`.

    Args:
        layer: a projection of `models.parallel`, whose sizes, dtype and device it takes over.
        dtype: torch.int8 or torch.float8_e4m3fn.
        reduce: sums what the ranks computed, in fp32; None where outputs are split or each rank
            gives a summand.
    """

    def __init__(
        self, layer: nn.Module, dtype: torch.dtype, reduce: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        self.reduce = reduce
        values = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        self.weight = nn.Parameter(values, requires_grad=False)
        scale = torch.ones(weight.shape[0], dtype=torch.float32, device=weight.device)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = bias if isinstance(bias, nn.Parameter) else None

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] -> [..., out], of this rank."""
        y = F.linear(x, self.weight.to(x.dtype)).float() * self.weight_scale
        y = (y if self.reduce is None else self.reduce(y)).to(x.dtype)
        return y if self.bias is None else y + self.bias


def quantise_projections(
    network: nn.Module, weights: Weights, reduce: Callable[[Tensor], Tensor]
) -> None:
    """Puts a QuantisedLinear in the place of each projection of a network."""
    if weights == "float":
        return
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if name in PROJECTIONS:
                summed = getattr(layer, "reduce_output", False)
                made = QuantisedLinear(layer, DTYPES[weights], reduce if summed else None)
                setattr(module, name, made)


def power_of_two_scales(largest: Tensor, spare: float = 2.0) -> Tensor:
    """fp32, shaped as `largest`: the smallest powers of two that keep `spare` times it in fp8.

    Scaling by a power of two loses no bit, neither in fp8 nor in bfloat16.
    """
    wanted = (largest.float() * spare / LARGEST[FP8]).clamp(min=2.0**-60)
    return torch.exp2(torch.ceil(torch.log2(wanted)))
