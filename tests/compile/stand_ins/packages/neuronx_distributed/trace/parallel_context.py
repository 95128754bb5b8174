"""Stand-in of neuronx_distributed/trace/parallel_context.py."""

from __future__ import annotations

from typing import Any

from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.utils.model_utils import get_platform_lnc


class NxDParallelState:
    """A parallel state of which only rank 0 is there."""

    def __init__(
        self,
        world_size=1,
        rank=0,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        context_parallel_size=1,
        expert_model_parallel_size=1,
        lnc_size=None,
    ):
        self.world_size, self.rank = world_size, rank
        self.tensor_model_parallel_size = tensor_model_parallel_size
        self.pipeline_model_parallel_size = pipeline_model_parallel_size
        self.context_parallel_size = context_parallel_size
        self.expert_model_parallel_size = expert_model_parallel_size
        self.lnc_size = lnc_size if lnc_size is not None else int(get_platform_lnc())

    def __enter__(self):
        parallel_state._state["world"] = self.world_size
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.tensor_model_parallel_size,
            pipeline_model_parallel_size=self.pipeline_model_parallel_size,
            context_parallel_size=self.context_parallel_size,
            expert_model_parallel_size=self.expert_model_parallel_size,
            skip_collective_init=True,
            lnc_size=self.lnc_size,
        )
        parallel_state.set_aot_mode(True)
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any):
        parallel_state.set_aot_mode(False)
        parallel_state.destroy_model_parallel()
        parallel_state._state["world"] = 1
