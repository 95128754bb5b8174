"""Making tensors, and moving them between HBM and SBUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nki_sim import rules
from nki_sim.dtypes import as_dtype, uint8, uint16
from nki_sim.machine import current
from nki_sim.memory import HBM, PSUM, SBUF, SHARED_HBM, WRITTEN, MemoryRegion, Storage
from nki_sim.ops import copy, new_tile, result_dtype
from nki_sim.tensor import NkiTensor


def ndarray(
    shape: Any, dtype: Any, buffer: MemoryRegion = SBUF, name: str = "", address: Any = None
) -> NkiTensor:
    """A new tensor, not initialised: floats read NaN, integers 4, until something is written.

    ``address=(partition, byte)`` places an on-chip tensor itself instead of leaving it to the
    compiler.
    """
    if buffer.__class__ is not MemoryRegion:
        rules.broken(rules.TENSOR_BUFFER, "buffer", repr(buffer))
    try:
        sizes = tuple([int(n.__index__()) for n in shape])
    except (TypeError, AttributeError):
        rules.broken(rules.TENSOR_SHAPE, "shape", repr(shape))
    if not sizes or min(sizes) < 1:
        rules.broken(rules.TENSOR_SHAPE, "shape", sizes)
    element = as_dtype(dtype)
    storage = current().allocate(sizes, element, buffer, name or "", _address(address))
    return NkiTensor(sizes, element, storage, buffer, name or "")


def _address(address: Any) -> tuple[int, int] | None:
    if address is None:
        return None
    try:
        partition, byte = (int(a) for a in address)
    except (TypeError, ValueError):
        rules.broken(rules.TENSOR_ADDRESS, "address", address)
    return partition, byte


def full(
    shape: Any, fill_value: Any, dtype: Any, buffer: MemoryRegion = SBUF, name: str = ""
) -> NkiTensor:
    """A new tensor filled with one value: a memset on chip, initialised memory in HBM."""
    t = ndarray(shape, dtype, buffer, name)
    assign(t, fill_value)
    return t


def zeros(shape: Any, dtype: Any, buffer: MemoryRegion = SBUF, name: str = "") -> NkiTensor:
    """A new tensor of zeros."""
    return full(shape, 0, dtype, buffer, name)


def ones(shape: Any, dtype: Any, buffer: MemoryRegion = SBUF, name: str = "") -> NkiTensor:
    """A new tensor of ones."""
    return full(shape, 1, dtype, buffer, name)


def zeros_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """Zeros with the shape of x, and its dtype and memory unless given."""
    return zeros(
        x.shape, x.dtype if dtype is None else dtype, x.buffer if buffer is None else buffer, name
    )


def empty_like(x: NkiTensor, dtype: Any = None, buffer: Any = None, name: str = "") -> NkiTensor:
    """An uninitialised tensor with the shape of x, and its dtype and memory unless given."""
    return ndarray(
        x.shape, x.dtype if dtype is None else dtype, x.buffer if buffer is None else buffer, name
    )


def assign(dst: NkiTensor, value: Any) -> None:
    """What ``dst[...] = value`` does: copy a tile, or fill with a number."""
    from nki_sim.engines import dma, vector

    if isinstance(value, NkiTensor):
        if dst.buffer in HBM or value.buffer in HBM:
            dma.dma_copy(dst, value)
        else:
            vector.tensor_copy(dst, value)
    elif dst.buffer in HBM:
        # The compiler embeds HBM constants; a DMA from a constant fills them.
        constant = Storage(
            current().launch.allocation(SHARED_HBM, dst.shape, dst.dtype, "constant"), state=WRITTEN
        )
        constant.carrier = current().launch.carrier(dst.dtype)
        source = NkiTensor(dst.shape, dst.dtype, constant, SHARED_HBM, "constant")
        source.values[...] = value
        launch = current().launch
        if launch.calls is not None:
            constant.initial = constant.data.copy()
            launch.storages.append(constant)
        dma.dma_copy(dst, source)
    else:
        vector.memset(dst, value)


def load(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the elements of an HBM tensor."""
    from nki_sim.engines import dma

    dst = new_tile(src.shape, result_dtype(dtype, src))
    dma.dma_copy(dst, src)
    return dst


def store(dst: NkiTensor, value: NkiTensor) -> None:
    """Write an SBUF tile to an HBM tensor."""
    from nki_sim.engines import dma

    if isinstance(value, NkiTensor) and value.buffer is PSUM:
        rules.broken(rules.DMA_SPACE, "value", "psum", "copy it to SBUF first")
    if not isinstance(value, NkiTensor):
        assign(dst, value)
    else:
        dma.dma_copy(dst, value)


def shared_constant(constant: Any) -> NkiTensor:
    """An HBM tensor that holds compile-time data: a NumPy array, or the name of a ``.npy`` file."""
    if isinstance(constant, (str, Path)):
        constant = np.load(constant, allow_pickle=False)
    array = np.asarray(constant)
    core = current()
    dtype = as_dtype(array.dtype)
    storage = core.allocate(tuple(array.shape), dtype, SHARED_HBM, "constant")
    t = NkiTensor(tuple(array.shape), dtype, storage, SHARED_HBM, "constant")
    t.values[...] = array
    storage.state = WRITTEN
    if core.launch.calls is not None:
        storage.initial = storage.data.copy()
    return t


def shared_identity_matrix(n: int, dtype: Any = uint8, dst: NkiTensor | None = None) -> NkiTensor:
    """An [n, n] identity matrix in SBUF, loaded from a constant."""
    from nki_sim.engines import dma

    element = as_dtype(dtype)
    source = shared_constant(np.eye(n, dtype=element.numpy))
    tile = new_tile((n, n), element) if dst is None else dst
    dma.dma_copy(tile, source)
    return tile


def load_transpose2d(src: NkiTensor, dtype: Any = None) -> NkiTensor:
    """A new SBUF tile with the transpose of a 2-D HBM tensor, by DMA."""
    from nki_sim.engines import dma_compute

    tile = new_tile((src.shape[1], src.shape[0]), src.dtype)
    dma_compute.dma_transpose(tile, src)
    return tile if dtype is None or as_dtype(dtype) is src.dtype else copy(tile, dtype=dtype)


def gather_flattened(
    data: NkiTensor, indices: NkiTensor, axis: int = 0, dtype: Any = None
) -> NkiTensor:
    """Elements of each partition of ``data`` (free dimensions flattened) at ``indices``.

    Raises:
        NotImplementedError: for another ``axis`` than the default.
    """
    from nki_sim.engines import gpsimd_move

    if axis != 0:
        raise NotImplementedError(f"nki.language.gather_flattened with axis={axis}")
    dst = new_tile(indices.shape, data.dtype)
    gpsimd_move.nc_n_gather(dst, data, indices)
    return dst if dtype is None or as_dtype(dtype) is data.dtype else copy(dst, dtype=dtype)


def random_seed(seed: NkiTensor) -> None:
    """Seed VectorE's random numbers with a [1, 1] tile of 32 bits."""
    from nki_sim.engines import random

    random.set_rng_seed(seed)


def rand(shape: Any, dtype: Any, buffer: MemoryRegion = SBUF, name: str = "") -> NkiTensor:
    """A new tensor of uniform random numbers in [0, 1): 16 random bits an element, scaled."""
    from nki_sim.engines import random, vector
    from nki_sim.ops import multiply

    bits = ndarray(shape, uint16, SBUF)
    random.rng(bits)
    if buffer in HBM:
        tile = ndarray(shape, dtype, SBUF)
        vector.tensor_scalar(tile, bits, multiply, 2.0**-16)
        t = ndarray(shape, dtype, buffer, name)
        assign(t, tile)
        return t
    t = ndarray(shape, dtype, buffer, name)
    vector.tensor_scalar(t, bits, multiply, 2.0**-16)
    return t
