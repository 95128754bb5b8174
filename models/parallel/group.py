"""What a layer must know of its group: how many ranks it has, and which of them this one is.

`torch.distributed.ProcessGroup` is such a group. `Ranks` is one that cannot communicate: enough to
say what each rank holds, for planning, accounting and sharding in a single process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
