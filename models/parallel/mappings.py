"""The collectives of tensor parallelism on torch.distributed: gloo on a CPU, NCCL on CUDA.

Names and arguments are those of `neuronx_distributed.parallel_layers.mappings`
(https://github.com/aws-neuron/neuronx-distributed), except that the group is never left out: there
is no global one here. They are the functional collectives of torch, so that torch.export and
torch.compile hold them as nodes of a graph. For inference: no gradients.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from models.parallel.group import Group, TracedRanks
from nki_kernels.errors import InputError


def reduce_from_tensor_model_parallel_region(input_: Tensor, process_group: Group) -> Tensor:
    """The sum of all ranks' `input_`, on each of them."""
    if process_group.size() == 1:
        return input_
    if isinstance(process_group, TracedRanks):
        return process_group.all_reduce(input_)
    ops = _collectives()
    name = _name(process_group)
    return cast(Tensor, ops.wait_tensor(ops.all_reduce(input_.contiguous(), "sum", name)))


def gather_from_tensor_model_parallel_region(input_: Tensor, process_group: Group) -> Tensor:
    """All ranks' `input_`, one behind the other along the last dimension."""
    return gather_from_tensor_model_parallel_region_with_dim(input_, -1, process_group)


def gather_from_tensor_model_parallel_region_with_dim(
    input_: Tensor, gather_dim: int, process_group: Group
) -> Tensor:
    """All ranks' `input_`, one behind the other along `gather_dim`, in the order of ranks."""
    size = process_group.size()
    if size == 1:
        return input_
    if isinstance(process_group, TracedRanks):
        return process_group.all_gather(input_, gather_dim % input_.dim())
    ops = _collectives()
    name = _name(process_group)
    stacked = ops.all_gather_into_tensor(input_.contiguous(), size, name)  # [size * first, ...]
    stacked = cast(Tensor, ops.wait_tensor(stacked))
    return stacked if gather_dim == 0 else torch.cat(stacked.chunk(size), gather_dim)


def scatter_to_tensor_model_parallel_region(input_: Tensor, process_group: Group) -> Tensor:
    """This rank's part of `input_` along the last dimension."""
    if process_group.size() == 1:
        return input_
    return input_.chunk(process_group.size(), -1)[process_group.rank()]


def _collectives() -> Any:
    return torch.ops._c10d_functional


def _name(group: Group) -> str:
    if not isinstance(group, ProcessGroup):
        raise InputError(
            f"tp is {group.size()}, and this process has joined no group: models.parallel.start "
            "under torchrun does"
        )
    return group.group_name
