"""The ``nki.isa`` module (NKI 0.6): the instructions, each defined in the module of its engine."""

from __future__ import annotations

from typing import Any

from nki_sim.engines.cores import core_barrier, sendrecv
from nki_sim.engines.dma import dma_copy
from nki_sim.engines.dma_compute import dma_compute, dma_transpose
from nki_sim.engines.gen4 import activate2, exponential, nc_matmul_mx, quantize_mx, rand2
from nki_sim.engines.gpsimd import affine_select, iota
from nki_sim.engines.gpsimd_move import (
    local_gather,
    nc_n_gather,
    nonzero_with_count,
    sequence_bounds,
    tensor_partition_reduce,
    topk,
)
from nki_sim.engines.random import dropout, rand_get_state, rand_set_state, rng, set_rng_seed
from nki_sim.engines.scalar import activation, activation_reduce
from nki_sim.engines.sequencer import (
    register_alloc,
    register_load,
    register_move,
    register_store,
)
from nki_sim.engines.tensor import nc_matmul, nc_transpose
from nki_sim.engines.vector import (
    memset,
    reciprocal,
    scalar_tensor_tensor,
    tensor_copy,
    tensor_scalar,
    tensor_tensor,
)
from nki_sim.engines.vector_reduce import tensor_reduce, tensor_scalar_reduce
from nki_sim.engines.vector_select import range_select, select_reduce, tensor_copy_predicated
from nki_sim.engines.vector_special import (
    bn_aggr,
    bn_stats,
    max8,
    nc_find_index8,
    nc_match_replace8,
    nc_stream_shuffle,
    tensor_scalar_cumulative,
    tensor_tensor_scan,
)
from nki_sim.enums import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from nki_sim.errors import NkiValidationError
from nki_sim.machine import current_or_none
from nki_sim.objects import NKIObject
from nki_sim.registers import VirtualRegister
from nki_sim.targets import get_target
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

tensor_engine = engine.tensor
vector_engine = engine.vector
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
unknown_engine = engine.unknown


def get_nc_version() -> nc_version:
    """The NeuronCore generation of the current target."""
    core = current_or_none()
    return nc_version((core.target if core is not None else get_target()).version)


def get_nc_sub_version() -> int:
    """The silicon revision of the current target; simulated cores are the first one."""
    return 0


_FROM_0_7 = ("NkiScalar", "scalar_load", "scalar_store")


def __getattr__(name: str) -> Any:
    if name in _FROM_0_7:
        raise NotImplementedError(f"nki.isa.{name} (new in NKI 0.7)")
    raise AttributeError(f"nki.isa has no {name!r}")


__all__ = [
    "NKIObject",
    "NkiInstruction",
    "NkiTensor",
    "NkiValidationError",
    "VirtualRegister",
    "activate2",
    "activation",
    "activation_reduce",
    "affine_select",
    "bn_aggr",
    "bn_stats",
    "core_barrier",
    "current_or_none",
    "dge_mode",
    "dma_compute",
    "dma_copy",
    "dma_engine",
    "dma_transpose",
    "dropout",
    "engine",
    "exponential",
    "get_nc_sub_version",
    "get_nc_version",
    "get_target",
    "gpsimd_engine",
    "iota",
    "local_gather",
    "matmul_perf_mode",
    "max8",
    "memset",
    "nc_find_index8",
    "nc_match_replace8",
    "nc_matmul",
    "nc_matmul_mx",
    "nc_n_gather",
    "nc_stream_shuffle",
    "nc_transpose",
    "nc_version",
    "nonzero_with_count",
    "oob_mode",
    "quantize_mx",
    "rand2",
    "rand_get_state",
    "rand_set_state",
    "range_select",
    "reciprocal",
    "reduce_cmd",
    "register_alloc",
    "register_load",
    "register_move",
    "register_store",
    "rng",
    "scalar_engine",
    "scalar_tensor_tensor",
    "select_reduce",
    "sendrecv",
    "sequence_bounds",
    "set_rng_seed",
    "tensor_copy",
    "tensor_copy_predicated",
    "tensor_engine",
    "tensor_partition_reduce",
    "tensor_reduce",
    "tensor_scalar",
    "tensor_scalar_cumulative",
    "tensor_scalar_reduce",
    "tensor_tensor",
    "tensor_tensor_scan",
    "topk",
    "unknown_engine",
    "vector_engine",
]
