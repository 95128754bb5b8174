"""What a layer must know of its group: how many ranks it has, and which of them this one is.

`torch.distributed.ProcessGroup` is such a group. `Ranks` is one that cannot communicate: enough to
say what each rank holds, for planning, accounting and sharding in a single process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nki_kernels.errors import InputError


class Group(Protocol):
    """The part of `torch.distributed.ProcessGroup` that is used here."""

    def rank(self) -> int:
        """Which of the group's ranks this process is."""

    def size(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class Ranks:
    """A group without communication; of one rank, it needs none."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuses a rank outside its group."""
        if not 0 <= self.index < self.count:
            raise InputError(f"rank is {self.index}; it must be in 0..{self.count - 1}")

    def rank(self) -> int:
        """Which rank this is."""
        return self.index

    def size(self) -> int:
        """How many there are."""
        return self.count


@dataclass(frozen=True)
class TracedRanks(Ranks):
    """The ranks of one PyTorch/XLA graph that is traced once for all of them.

    Attributes:
        mesh: the ranks of each group, of which this one's is the first.
    """

    mesh: tuple[tuple[int, ...], ...] = ((0,),)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over each group, as a node of the graph."""
        import torch_xla.core.xla_model as xm

        summed: Tensor = xm.all_reduce("sum", x, groups=[list(ranks) for ranks in self.mesh])
        return summed

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """What each group's ranks have, one behind the other along `dim`."""
        import torch_xla.core.xla_model as xm

        groups = [list(ranks) for ranks in self.mesh]
        gathered: Tensor = xm.all_gather(x, dim=dim, groups=groups, pin_layout=False)
        return gathered
