# ruff: noqa: F401 - the imports are the module
"""The ``nki.language`` module (NKI 0.6): dtypes, memories, tensors, loops and tile-level
functions."""

from __future__ import annotations

from nki_sim.dtypes import (
    DType,
    bfloat16,
    bool_,
    float4_e2m1fn_x4,
    float8_e4m3,
    float8_e4m3fn,
    float8_e4m3fn_x4,
    float8_e5m2,
    float8_e5m2_x4,
    float8_e8m0fnu,
    float16,
    float32,
    int8,
    int16,
    int32,
    tfloat32,
    uint8,
    uint16,
    uint32,
)
from nki_sim.language.composite import (
    all,
    broadcast_to,
    expand_dims,
    matmul,
    max,
    mean,
    min,
    prod,
    rms_norm,
    softmax,
    sum,
    transpose,
    var,
    where,
)
from nki_sim.language.control import (
    affine_range,
    device_print,
    ds,
    is_hbm,
    is_on_chip,
    is_psum,
    is_sbuf,
    no_reorder,
    num_programs,
    program_id,
    program_ndim,
    sequential_range,
    static_range,
)
from nki_sim.language.memory import (
    empty_like,
    full,
    load,
    ndarray,
    ones,
    shared_constant,
    shared_identity_matrix,
    store,
    zeros,
    zeros_like,
)
from nki_sim.language.tile_size import tile_size
from nki_sim.memory import MemoryRegion
from nki_sim.objects import NKIObject
from nki_sim.ops import (
    abs,
    abs_max,
    abs_min,
    add,
    arctan,
    average,
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    bypass,
    ceil,
    copy,
    cos,
    divide,
    equal,
    erf,
    erf_dx,
    exp,
    floor,
    fmod,
    gelu,
    gelu_apprx_sigmoid,
    gelu_apprx_sigmoid_dx,
    gelu_apprx_tanh,
    gelu_dx,
    greater,
    greater_equal,
    invert,
    left_shift,
    less,
    less_equal,
    log,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    mish,
    mod,
    multiply,
    negative,
    not_equal,
    power,
    prelu,
    reciprocal,
    relu,
    right_shift,
    rsqrt,
    sigmoid,
    sign,
    silu,
    silu_dx,
    sin,
    softplus,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
)
from nki_sim.tensor import NkiTensor

sbuf = MemoryRegion.sbuf
psum = MemoryRegion.psum
private_hbm = MemoryRegion.private_hbm
hbm = MemoryRegion.private_hbm
shared_hbm = MemoryRegion.shared_hbm

# Names that kernels use beyond the published stubs.
range = range
bool = bool_

__all__ = [name for name in globals() if not name.startswith("_") and name != "annotations"]
