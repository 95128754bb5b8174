"""Tensor parallelism: who holds what, layers that hold a part of a weight, and collectives.

`start(tp)` joins the processes that `torchrun` started; `TensorParallel` is what a network is given
of it, and it is handed on, never global. Names and arguments of the layers and mappings are those
of neuronx-distributed, whose own are used where it runs the devices.
"""

from __future__ import annotations

from models.parallel.group import Group, Ranks
from models.parallel.launch import described, start, started
from models.parallel.state import SINGLE, TensorParallel

__all__ = ["SINGLE", "Group", "Ranks", "TensorParallel", "described", "start", "started"]
