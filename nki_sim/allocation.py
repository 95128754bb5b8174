"""Where a new tensor's bytes come from: its own, those both cores share, or an explicit address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nki_sim import rules
from nki_sim.dtypes import DType
from nki_sim.errors import SimulatorError
from nki_sim.memory import PSUM, SBUF, SHARED_HBM, MemoryRegion, Storage
from nki_sim.placement import place
from nki_sim.targets import PARTITIONS, PSUM_BANK_BYTES, PSUM_PARTITION_BYTES
from nki_sim.trace import kernel_line

if TYPE_CHECKING:
    from nki_sim.machine import Core


def new_storage(
    core: Core,
    shape: tuple[int, ...],
    dtype: DType,
    space: MemoryRegion,
    name: str,
    address: tuple[int, int] | None,
) -> Storage:
    """The storage of a tensor that a kernel declares on ``core``.

    Raises:
        RuleError: where the tensor, or its address, does not fit the memory.
        SimulatorError: where the cores of one launch declare different shared tensors.
    """
    if space is SHARED_HBM and core.launch.lnc > 1:
        return _shared(core, shape, dtype, name)
    if space is SBUF or space is PSUM:
        _check_on_chip(core, shape, dtype, space)
        if address is not None:
            return _placed(core, shape, dtype, space, name, address)
    elif address is not None:
        rules.broken(rules.TENSOR_ADDRESS, "address", address, f"{space.value} tensors take none")
    return Storage(
        core.launch.allocation(space, shape, dtype, name, core=core.id, born=core.issued)
    )


def _check_on_chip(core: Core, shape: tuple[int, ...], dtype: DType, space: MemoryRegion) -> None:
    if shape[0] > PARTITIONS:
        rules.broken(rules.TENSOR_PARTITIONS, "shape", shape)
    nbytes = dtype.itemsize
    for n in shape[1:]:
        nbytes *= n
    limit = PSUM_PARTITION_BYTES if space is PSUM else core.target.sbuf_usable_bytes_per_partition
    if nbytes > limit:
        rules.broken(
            rules.TENSOR_CAPACITY,
            "shape",
            shape,
            f"{nbytes} bytes per partition of {limit} in {space.value} of {core.target.generation}",
        )


def _shared(core: Core, shape: tuple[int, ...], dtype: DType, name: str) -> Storage:
    """The k-th shared allocation of one core is the other's k-th: both run the same program."""
    launch, k = core.launch, core.shared_seen
    core.shared_seen += 1
    if k < len(launch.shared):
        storage = launch.shared[k]
        if storage.info.shape != shape or storage.info.dtype is not dtype:
            raise SimulatorError(
                f"{kernel_line()}: core {core.id} declares shared_hbm tensor {k} as {shape} "
                f"{dtype}, another core as {storage.info.shape} {storage.info.dtype}; the "
                "cores of one launch run the same control flow (nki/get-started/about/lnc.rst)"
            )
        return storage
    storage = Storage(
        launch.allocation(SHARED_HBM, shape, dtype, name, core=core.id, born=core.issued)
    )
    launch.shared.append(storage)
    return storage


def _placed(
    core: Core,
    shape: tuple[int, ...],
    dtype: DType,
    space: MemoryRegion,
    name: str,
    address: tuple[int, int],
) -> Storage:
    """A tensor at an explicit (partition, byte): its bytes are those of the memory itself."""
    size = PSUM_PARTITION_BYTES if space is PSUM else core.target.sbuf_usable_bytes_per_partition
    info = core.launch.allocation(
        space, shape, dtype, name, core=core.id, born=core.issued, address=address
    )
    partition, byte = address
    if not (partition >= 0 and partition + shape[0] <= PARTITIONS):
        rules.broken(rules.TENSOR_ADDRESS, "address", address, f"{shape[0]} partitions")
    if not (byte >= 0 and byte + info.partition_bytes <= size):
        rules.broken(
            rules.TENSOR_ADDRESS, "address", address, f"{info.partition_bytes} of {size} bytes"
        )
    if space is PSUM and byte % PSUM_BANK_BYTES:
        rules.broken(rules.TENSOR_ADDRESS, "address", address)
    # With NKI_PRECISE_FP=0 each low-precision dtype has a memory of its own, of float32.
    wide = core.launch.carrier(dtype) is not None
    unit, held = (dtype.itemsize, 4) if wide else (1, 1)
    key = (core.id, space)
    name_of_memory = (*key, dtype, byte % unit) if wide else key
    memory = core.launch.placed.get(name_of_memory)
    if memory is None:
        memory = np.full(PARTITIONS * size // unit * held, 0xFF, np.uint8)
        core.launch.placed[name_of_memory] = memory
    storage = Storage(info, memory)
    storage.pitch = size // unit * held
    storage.base = partition * storage.pitch + byte // unit * held
    storage.placed = place(info, core.launch.neighbours.setdefault(key, []), name_of_memory)
    return storage
