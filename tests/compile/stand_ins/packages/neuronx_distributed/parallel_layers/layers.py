"""Stand-in of neuronx_distributed/parallel_layers/layers.py, of what inference uses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import init

from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.parallel_layers.mappings import (
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    scatter_to_tensor_model_parallel_region,
)


class _Layer(nn.Module):
    """What the three have in common: a group, a padded size, a split weight."""

    pad: bool
    pad_size: int

    def _begin(self, group: Any, device: torch.device | None) -> None:
        nn.Module.__init__(self)
        if not parallel_state.model_parallel_is_initialized():
            raise RuntimeError("layers outside a parallel state make a hidden group of their own")
        if device is not None and not isinstance(device, torch.device):
            raise TypeError(f"device is {device!r}; it is a torch.device or None")
        self.group = (
            group if group is not None else parallel_state.get_tensor_model_parallel_group()
        )

    def _part(self, size: int, pad: bool) -> int:
        count = self.group.size()
        self.pad, self.pad_size = pad, -size % count if pad else 0
        if (size + self.pad_size) % count:
            raise AssertionError(f"{size} is not divisible by {count}")
        return (size + self.pad_size) // count

    def _split(self, shape: tuple[int, ...], dim: int, dtype: Any, device: Any) -> nn.Parameter:
        weight = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
        mark(weight, dim, self.group.size())
        return weight

    def _check(self) -> None:
        if self.pad and self.training:
            raise RuntimeError("`pad=True` is only supported for inference. Set model.eval()")


def mark(weight: Tensor, dim: int, count: int) -> None:
    """Says how a weight is split (set_tensor_model_parallel_attributes of utils.py)."""
    weight.tensor_model_parallel = True  # type: ignore[attr-defined]
    weight.partition_dim = dim  # type: ignore[attr-defined]
    weight.partition_stride = 1  # type: ignore[attr-defined]
    weight.num_partitions = count  # type: ignore[attr-defined]


class ParallelEmbedding(_Layer):
    """An embedding split by its rows."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: Any = None,
        max_norm: Any = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        init_method: Any = init.normal_,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        shard_across_embedding: bool = False,
        pad: bool = False,
        sequence_parallel_enabled: bool = False,
        tensor_model_parallel_group: Any = None,
        use_spmd_rank: bool = False,
        sequence_dimension: int | None = None,
        tile_cc: bool = False,
        rank_ordering: list | None = None,
        collect_output: bool = True,
    ):
        self._begin(tensor_model_parallel_group, device)
        if shard_across_embedding or sequence_parallel_enabled or not collect_output:
            raise NotImplementedError("the stand-in splits rows and sums")
        self.rank_util = SPMDRank(self.group.size()) if use_spmd_rank else None
        self.num_embeddings_per_partition = self._part(num_embeddings, pad)
        shape = (self.num_embeddings_per_partition, embedding_dim)
        # As the real one: on a CPU the weight is made on torch's default device, whatever is asked.
        self.weight = self._split(shape, 0, dtype, None)

    def forward(self, input_: Tensor) -> Tensor:
        self._check()
        if self.group.size() == 1:
            return F.embedding(input_.long(), self.weight)
        assert self.rank_util is not None, "the stand-in traces one graph for all ranks"
        count = self.num_embeddings_per_partition
        first = self.rank_util.get_rank() * count
        here = (input_ >= first) & (input_ < first + count)
        own = (input_ - first) * here.long()
        x = F.embedding(own.long(), self.weight)
        x = x * here.unsqueeze(-1).to(x.dtype)
        return reduce_from_tensor_model_parallel_region(x, process_group=self.group)

    def preshard_hook(self, model_state_dict: dict[str, Any], prefix: str) -> None:
        """Pads a checkpoint's weight."""
        if self.pad and self.pad_size:
            model_state_dict[prefix] = F.pad(model_state_dict[prefix], (0, 0, 0, self.pad_size))


class ColumnParallelLinear(_Layer):
    """A projection split by its outputs."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        stride: int = 1,
        init_method: Any = None,
        sequence_parallel_enabled: bool = False,
        sequence_dimension: int | None = None,
        keep_master_weight: bool = False,
        skip_bias_add: bool = False,
        pad: bool = False,
        pad_alignment_size_per_rank: int = 1,
        keep_padded_output: bool = False,
        tensor_model_parallel_group: Any = None,
        reduce_dtype: torch.dtype = torch.float32,
        rank_ordering: list | None = None,
    ):
        self._begin(tensor_model_parallel_group, device)
        self.output_size, self.gather_output, self.add_bias = output_size, gather_output, bias
        mine = self._part(output_size, pad)
        self.weight = self._split((mine, input_size), 0, dtype, device)
        self.bias = None
        if bias and gather_output:
            size = output_size + self.pad_size
            self.bias = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        elif bias:
            self.bias = self._split((mine,), 0, dtype, device)

    def forward(self, input: Tensor, slice_indices: Any = None) -> Any:
        self._check()
        y = F.linear(input, self.weight)
        if self.gather_output:
            y = gather_from_tensor_model_parallel_region(y, process_group=self.group)
            y = y[..., : self.output_size]
        return y if self.bias is None else y + self.bias

    def preshard_hook(self, model_state_dict: dict[str, Any], prefix: str) -> None:
        """Pads a checkpoint's weight with zeros and its bias with the smallest number."""
        if not (self.pad and self.pad_size):
            return
        whole = model_state_dict[prefix]
        if self.output_size != whole.shape[0]:
            raise RuntimeError(f"State dict {prefix} is of an unexpected size {whole.shape[0]}")
        if prefix.endswith("bias"):
            least = torch.finfo(whole.dtype).min
            model_state_dict[prefix] = F.pad(whole, (0, self.pad_size), value=least)
        else:
            model_state_dict[prefix] = F.pad(whole, (0, 0, 0, self.pad_size))


class RowParallelLinear(_Layer):
    """A projection split by its inputs."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        stride: int = 1,
        init_method: Any = None,
        sequence_parallel_enabled: bool = False,
        sequence_dimension: int | None = None,
        keep_master_weight: bool = False,
        skip_bias_add: bool = False,
        pad: bool = False,
        reduce_output: bool = True,
        tensor_model_parallel_group: Any = None,
        reduce_dtype: torch.dtype = torch.float32,
        tile_cc: bool = False,
        rank_ordering: list | None = None,
    ):
        self._begin(tensor_model_parallel_group, device)
        self.input_size, self.input_is_parallel = input_size, input_is_parallel
        self.reduce_output, self.reduce_dtype, self.add_bias = reduce_output, reduce_dtype, bias
        mine = self._part(input_size, pad)
        self.weight = self._split((output_size, mine), 1, dtype, device)
        zeros = torch.zeros(output_size, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else None

    def forward(self, input_: Tensor, slice_indices: Any = None) -> Any:
        self._check()
        if not self.input_is_parallel:
            input_ = scatter_to_tensor_model_parallel_region(input_, process_group=self.group)
        y = F.linear(input_, self.weight)
        if self.reduce_output:
            wide = y.to(self.reduce_dtype)
            wide = reduce_from_tensor_model_parallel_region(wide, process_group=self.group)
            y = wide.to(y.dtype)
        return y if self.bias is None else y + self.bias

    def preshard_hook(self, model_state_dict: dict, prefix: str) -> None:
        """Pads a checkpoint's weight."""
        if self.pad and self.pad_size and not prefix.endswith("bias"):
            model_state_dict[prefix] = F.pad(model_state_dict[prefix], (0, self.pad_size))


class SPMDRank(nn.Module):
    """The rank as a parameter."""

    def __init__(self, world_size: int, tensor_model_parallel_size: int | None = None):
        super().__init__()
        self.world_size = world_size
        self.rank = nn.Parameter(torch.zeros(1, dtype=torch.int32), requires_grad=False)
        mark(self.rank, 0, world_size)

    def get_rank(self) -> Tensor:
        """i32[1]."""
        return self.rank
