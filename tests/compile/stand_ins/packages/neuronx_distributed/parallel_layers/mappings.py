"""Stand-in of neuronx_distributed/parallel_layers/mappings.py, of what inference uses.

While a graph is traced a collective is a line of it; while ranks run, they meet in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_neuronx.xla_impl import recording

from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.parallel_layers.world import exchange


def reduce_from_tensor_model_parallel_region(input_, process_group=None):
    """The sum over the ranks."""
    group = _group(process_group)
    if group.size() == 1:
        return input_
    if recording.tracing():
        recording.note(f"all-reduce {list(input_.shape)} {group.mesh}")
        return torch.empty_like(input_)
    return torch.stack(exchange(group, input_)).sum(0)


def scatter_to_tensor_model_parallel_region(input_, process_group=None):
    """This rank's part of the last dimension."""
    if _group(process_group).size() == 1:
        return input_
    raise NotImplementedError("the real one takes rank 0's part in a graph for all ranks")


def gather_from_tensor_model_parallel_region(input_, process_group=None) -> Tensor:
    """All ranks' along the last dimension."""
    return _gather(input_, input_.dim() - 1, process_group)


def gather_from_tensor_model_parallel_region_with_dim(
    input_: Tensor, gather_dim: int, process_group: Any = None
) -> Tensor:
    """All ranks' along `gather_dim`."""
    return _gather(input_, gather_dim, process_group)


def _gather(input_: Tensor, dim: int, process_group: Any) -> Tensor:
    group = _group(process_group)
    if group.size() == 1:
        return input_
    if recording.tracing():
        recording.note(f"all-gather {list(input_.shape)} along {dim} {group.mesh}")
        return torch.cat([input_] * group.size(), dim)
    return torch.cat(exchange(group, input_), dim)


def _group(process_group: Any) -> Any:
    if process_group is not None:
        return process_group
    return parallel_state.get_tensor_model_parallel_group()
