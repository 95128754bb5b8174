"""Stand-in for neuronx-distributed: its signatures, its rules, and a CPU in the place of devices.

Signatures (names, order, kinds, defaults) are those of
https://github.com/aws-neuron/neuronx-distributed, release 2.29 (fbac349), in the files of the same
names; `tests/compile/test_stand_ins.py` compares them with a checkout. Bodies are our own: they
check what the real ones check and run what was traced on the CPU.
"""

from __future__ import annotations

from neuronx_distributed import parallel_layers, trace, utils
from neuronx_distributed.trace.functions import shard_checkpoint
from neuronx_distributed.trace.model_builder_v2 import ModelBuilder
from neuronx_distributed.trace.nxd_model import NxDModel
from neuronx_distributed.trace.parallel_context import NxDParallelState

__all__ = [
    "ModelBuilder",
    "NxDModel",
    "NxDParallelState",
    "parallel_layers",
    "shard_checkpoint",
    "trace",
    "utils",
]
