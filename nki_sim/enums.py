"""The enumerations of ``nki.isa``, with the values of the published NKI 0.6 stubs."""

from __future__ import annotations

from enum import Enum


class engine(Enum):
    """Engines of a NeuronCore."""

    tensor = 1
    vector = 5
    scalar = 2
    gpsimd = 3
    dma = 4
    sync = 6
    unknown = 0


class reduce_cmd(Enum):
    """What an instruction does with the accumulator registers of its engine."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):
    """Who writes a DMA's descriptors: the compiler's choice, GpSimd, hardware, or the host."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What a dynamic access outside the tensor does: stop with an error, or move nothing."""

    error = 0
    skip = 1


class matmul_perf_mode(Enum):
    """Performance modes of the tensor engine."""

    none = "none"
    double_row = "double_row"


class nc_version(Enum):
    """NeuronCore generations."""

    gen2 = 2
    gen3 = 3
    gen4 = 4

    def __lt__(self, other: nc_version) -> bool:
        return self.value < other.value

    def __le__(self, other: nc_version) -> bool:
        return self.value <= other.value


class dma_engine(Enum):
    """Who moves the bytes of a ``sendrecv``."""

    dma = 1
    gpsimd_dma = 2
