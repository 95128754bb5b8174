# ruff: noqa: F401 - the imports are the module
"""The ``nki.isa`` module (NKI 0.6): the instructions, each defined in the module of its engine."""

from __future__ import annotations

from nki_sim.engines.dma import dma_copy
from nki_sim.engines.gpsimd import affine_select, iota
from nki_sim.engines.scalar import activation, activation_reduce
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


__all__ = [name for name in globals() if not name.startswith("_") and name != "annotations"]
