"""Layers that hold one rank's part of a weight, with neuronx-distributed's names and arguments.

They are thin: the arguments of `neuronx_distributed.parallel_layers.layers` that inference here
uses, with its defaults, and none of those for training (AWS Neuron SDK, neuronx-distributed API
guide; https://github.com/aws-neuron/neuronx-distributed). The group is named by the caller; with
one of a single rank they are `nn.Linear` and `nn.Embedding`, bit for bit. Weights are zero until
they are loaded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parallel.group import Group
from models.parallel.mappings import (
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_tensor_model_parallel_region,
)
from nki_kernels.errors import InputError


class ColumnParallelLinear(nn.Module):
    """y = x A^T + b with the rows of A, the outputs, split: weight [output_size/tp, input_size].

    Args:
        input_size: of x.
        output_size: of y, all ranks together.
        bias: whether there is one; it is split like the outputs, or whole when they are gathered.
        gather_output: whether every rank gets all outputs, or its own.
        dtype: of the weights.
        device: where they are.
        pad: whether outputs are padded to a multiple of tp; gathered ones are cut again.
        tensor_model_parallel_group: the ranks.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        *,
        pad: bool = False,
        tensor_model_parallel_group: Group,
    ) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, output_size
        self.gather_output = gather_output
        self.group = tensor_model_parallel_group
        mine = part_size("output_size", output_size, self.group.size(), pad)
        self.weight = _zeros((mine, input_size), dtype, device)
        size = output_size if gather_output else mine
        self.bias = _zeros((size,), dtype, device) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """`input` [..., input_size] -> [..., output_size], or [..., output_size/tp]."""
        if not self.gather_output:
            return F.linear(input, self.weight, self.bias)
        y = gather_from_tensor_model_parallel_region(F.linear(input, self.weight), self.group)
        y = y[..., : self.output_size]
        return y if self.bias is None else y + self.bias


class RowParallelLinear(nn.Module):
    """y = x A^T + b with the columns of A, the inputs, split: weight [output_size, input_size/tp].

    Args:
        input_size: of x, all ranks together.
        output_size: of y.
        bias: whether there is one; whole on every rank, added after the sum.
        input_is_parallel: whether each rank is given its own part of x, or all of it.
        dtype: of the weights.
        device: where they are.
        pad: whether inputs are padded to a multiple of tp.
        reduce_output: whether the ranks' products are summed; without a bias they need not be.
        tensor_model_parallel_group: the ranks.
        reduce_dtype: in which the sum is taken.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        *,
        pad: bool = False,
        reduce_output: bool = True,
        tensor_model_parallel_group: Group,
        reduce_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, output_size
        self.input_is_parallel, self.reduce_output = input_is_parallel, reduce_output
        self.group, self.reduce_dtype = tensor_model_parallel_group, reduce_dtype
        mine = part_size("input_size", input_size, self.group.size(), pad)
        self.padding = mine * self.group.size() - input_size
        self.weight = _zeros((output_size, mine), dtype, device)
        self.bias = _zeros((output_size,), dtype, device) if bias else None

    def forward(self, input_: Tensor) -> Tensor:
        """`input_` [..., input_size/tp], or [..., input_size], -> [..., output_size]."""
        if not self.input_is_parallel:
            padded = F.pad(input_, (0, self.padding)) if self.padding else input_
            input_ = scatter_to_tensor_model_parallel_region(padded, self.group)
        if self.group.size() == 1:
            return F.linear(input_, self.weight, self.bias)
        y = F.linear(input_, self.weight)
        if self.reduce_output:
            wide = reduce_from_tensor_model_parallel_region(y.to(self.reduce_dtype), self.group)
            y = wide.to(y.dtype)
        return y if self.bias is None else y + self.bias


class SPMDRank(nn.Module):
    """The rank as a tensor: all ranks run one traced graph, and this is what tells them apart.

    Args:
        world_size: ranks there are.
    """

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size
        self.rank = nn.Parameter(torch.zeros(1, dtype=torch.int32), requires_grad=False)

    def get_rank(self) -> Tensor:
        """i32[1]."""
        return self.rank


class ParallelEmbedding(nn.Module):
    """An embedding with its rows, the vocabulary, split: weight [num_embeddings/tp, embedding_dim].

    Args:
        num_embeddings: tokens, all ranks together.
        embedding_dim: elements of a token's vector.
        device: where the weight is.
        dtype: of it.
        pad: whether tokens are padded to a multiple of tp.
        tensor_model_parallel_group: the ranks.
        use_spmd_rank: whether the rank is a tensor, `rank_util.rank`, or a constant of the graph.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        pad: bool = False,
        tensor_model_parallel_group: Group,
        use_spmd_rank: bool = False,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.group = tensor_model_parallel_group
        mine = part_size("num_embeddings", num_embeddings, self.group.size(), pad)
        self.num_embeddings_per_partition = mine
        self.rank_util = SPMDRank(self.group.size()) if use_spmd_rank else None
        self.weight = _zeros((mine, embedding_dim), dtype, device)

    def forward(self, input_: Tensor) -> Tensor:
        """Token ids `input_` [...] -> [..., embedding_dim], whole on every rank."""
        if self.group.size() == 1:
            return F.embedding(input_, self.weight)
        rank = self.group.rank() if self.rank_util is None else self.rank_util.get_rank()
        count = self.num_embeddings_per_partition
        index = input_ - rank * count
        here = (index >= 0) & (index < count)
        x = F.embedding(index.clamp(0, count - 1), self.weight)
        x = torch.where(here.unsqueeze(-1), x, torch.zeros_like(x))
        return reduce_from_tensor_model_parallel_region(x, self.group)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))


def part_size(name: str, size: int, tp: int, pad: bool) -> int:
    """What each of `tp` ranks holds of `size`; with `pad` rounded up.

    Raises:
        InputError: `size` is no multiple of `tp`, and there is no padding.
    """
    if size % tp and not pad:
        raise InputError(f"{name} is {size}, no multiple of tp = {tp}; pass pad=True")
    return -(-size // tp)
