"""The state of tensor parallelism, as a value that is handed to who needs it.

A network makes its layers through it, so that the same network runs on torch.distributed and on
neuronx-distributed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from models.parallel import layers, mappings
from models.parallel.group import Group, Ranks
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Library:
    """Where layers and collectives come from: modules with neuronx-distributed's names.

    Attributes:
        name: in words.
        layers: has ColumnParallelLinear, RowParallelLinear and ParallelEmbedding.
        mappings: has the collectives of `models.parallel.mappings`.
        subgroup: makes the group of consecutive ranks, of a given count, that this rank is in.
    """

    name: str
    layers: Any
    mappings: Any
    subgroup: Callable[[Group, int], Group]


def consecutive(group: Group, count: int) -> Group:
    """The `count` consecutive ranks of `group` that this rank is in."""
    if not isinstance(group, ProcessGroup):
        return Ranks(group.rank() % count, count)
    first = group.rank() // count * count
    ranks = dist.get_process_group_ranks(group)[first : first + count]
    made = dist.new_group(ranks, use_local_synchronization=True)
    assert isinstance(made, ProcessGroup)
    return made


TORCH = Library("torch.distributed", layers, mappings, consecutive)


@dataclass(frozen=True)
class TensorParallel:
    """The ranks that share a network, and the layers it is made of.

    Attributes:
        group: a process group; or `Ranks`, which describes a rank without running it.
        library: of layers and collectives.
    """

    group: Group = field(default_factory=Ranks)
    library: Library = TORCH
    _subgroups: dict[int, Group] = field(default_factory=dict, compare=False, repr=False)

    @property
    def rank(self) -> int:
        """Which of the ranks this is."""
        return self.group.rank()

    @property
    def size(self) -> int:
        """The tensor-parallel degree, tp."""
        return self.group.size()

    def subgroup(self, count: int) -> TensorParallel:
        """The `count` consecutive ranks that this one is among.

        Raises:
            InputError: `count` does not divide tp.
        """
        if self.size % count:
            raise InputError(f"tp is {self.size}, which groups of {count} ranks do not divide")
        if count not in self._subgroups:
            self._subgroups[count] = self.library.subgroup(self.group, count)
        return TensorParallel(self._subgroups[count], self.library)

    def column(
        self, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> nn.Module:
        """A projection with its outputs split, each rank keeping its own; padded where needed."""
        with device:
            return self.library.layers.ColumnParallelLinear(
                inputs,
                outputs,
                bias=bias,
                gather_output=False,
                dtype=dtype,
                device=device,
                pad=True,
                tensor_model_parallel_group=self.group,
            )

    def row(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        reduce_output: bool = True,
    ) -> nn.Module:
        """A projection of inputs that are split already; its outputs are summed over the ranks."""
        with device:
            return self.library.layers.RowParallelLinear(
                inputs,
                outputs,
                bias=bias,
                input_is_parallel=True,
                dtype=dtype,
                device=device,
                pad=True,
                reduce_output=reduce_output,
                tensor_model_parallel_group=self.group,
            )

    def embedding(
        self, tokens: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> nn.Module:
        """An embedding with its vocabulary split; at tp > 1 it has the rank as a tensor."""
        with device:
            return self.library.layers.ParallelEmbedding(
                tokens,
                size,
                dtype=dtype,
                device=device,
                pad=True,
                tensor_model_parallel_group=self.group,
                use_spmd_rank=self.size > 1,
            )

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks, taken in fp32, in x's dtype."""
        if self.size == 1:
            return x
        region = self.library.mappings.reduce_from_tensor_model_parallel_region
        wide: Tensor = region(x.float(), process_group=self.group)
        return wide.to(x.dtype)

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All ranks' `x`, one behind the other along dimension `dim` >= 0."""
        region = self.library.mappings.gather_from_tensor_model_parallel_region_with_dim
        gathered: Tensor = region(x, dim, process_group=self.group)
        return gathered

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorParallel:
        """The same: a group of processes is not copied with a network."""
        return self


SINGLE = TensorParallel()
"""One rank, which needs no process group."""
