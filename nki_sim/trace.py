"""The record of a simulated launch: every instruction, in order, with what it read and wrote.

The record stands on its own: without the simulator's memory it is enough to rebuild the
dependencies between instructions, the cycles of each engine, and the rows and bytes of each DMA.
Recording must cost little, so objects have slots and nothing is formatted until somebody asks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from nki_sim.dtypes import DType
from nki_sim.memory import Allocation, MemoryRegion
from nki_sim.objects import NKIObject
from nki_sim.source import source_line

_HERE = str(Path(__file__).parent) + "/"
_KERNELS = _HERE + "timeline/benchmarks.py"  # kernels that happen to live in the simulator


def kernel_frame() -> FrameType | None:
    """The innermost Python frame outside the simulator, that is the statement of the kernel."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_HERE) or file == _KERNELS:
            break
        frame = frame.f_back
    return frame


def kernel_line() -> str:
    """``file:line`` of the statement of the kernel that is being executed."""
    frame = kernel_frame()
    return "<unknown>" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


class Access:
    """One operand of an instruction: a strided view of an allocation.

    Attributes:
        allocation: the ``Allocation`` behind it.
        dtype: dtype the operand is read or written as.
        offset: first element, in elements of ``dtype`` from the start of the allocation.
        shape, strides: sizes and strides in elements; on chip, dimension 0 is the partition
            dimension.
        indirect: None, or for a dynamic access what decides the address ("scalar", "vector");
            offset and strides then describe the access at offset zero, and ``allocation`` as a
            whole may be touched.
    """

    __slots__ = ("allocation", "dtype", "indirect", "offset", "shape", "strides")

    def __init__(
        self,
        allocation: Allocation,
        dtype: DType,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        indirect: str | None = None,
    ) -> None:
        self.allocation = allocation
        self.dtype = dtype
        self.offset = offset
        self.shape = shape
        self.strides = strides
        self.indirect = indirect

    @property
    def space(self) -> MemoryRegion:
        return self.allocation.space

    @property
    def size(self) -> int:
        """Elements touched."""
        n = 1
        for s in self.shape:
            n *= s
        return n

    @property
    def nbytes(self) -> int:
        """Bytes touched."""
        return self.size * self.dtype.itemsize

    @property
    def free_size(self) -> int:
        """Elements per partition (all elements of an HBM access)."""
        return self.size // self.shape[0] if self.allocation.partitions else self.size

    @property
    def start_partition(self) -> int:
        """First partition touched, counted from the allocation's own first one (0 in HBM)."""
        a = self.allocation
        return self.offset * self.dtype.itemsize // a.partition_bytes if a.partitions else 0

    def rows(self) -> tuple[int, int]:
        """(rows, bytes per row): maximal contiguous runs, as a DMA engine sees the access.

        On chip each partition is its own memory, so a run never crosses partitions.
        """
        run, expected = self.dtype.itemsize, 1
        first_free = 1 if self.allocation.partitions else 0
        for n, stride in zip(
            reversed(self.shape[first_free:]), reversed(self.strides[first_free:]), strict=True
        ):
            if n == 1:
                continue
            if stride != expected:
                break
            run *= n
            expected *= n
        return self.nbytes // run, run

    def extent(self) -> tuple[int, int, int, int]:
        """Bounding box: (first partition, last + 1, first byte, last + 1) inside the allocation.

        HBM accesses have partitions 0 to 1. An indirect access covers its whole allocation.
        """
        a = self.allocation
        if self.indirect is not None:
            return 0, max(1, a.partitions), 0, a.partition_bytes
        item = self.dtype.itemsize
        if not a.partitions:
            low = high = self.offset
            for n, s in zip(self.shape, self.strides, strict=True):
                low, high = low + min(0, (n - 1) * s), high + max(0, (n - 1) * s)
            return 0, 1, low * item, (high + 1) * item
        pitch = a.partition_bytes // item
        p0, low = divmod(self.offset, pitch)
        high = low
        for n, s in zip(self.shape[1:], self.strides[1:], strict=True):
            low, high = low + min(0, (n - 1) * s), high + max(0, (n - 1) * s)
        return p0, p0 + self.shape[0], low * item, (high + 1) * item

    def __repr__(self) -> str:
        pattern = [[s, n] for s, n in zip(self.strides, self.shape, strict=True)]
        dynamic = f" {self.indirect}-indirect" if self.indirect else ""
        return f"{self.allocation!r}@{self.offset}{pattern}:{self.dtype}{dynamic}"


class NkiInstruction(NKIObject):
    """Handle of an issued instruction, as ``nki.isa`` functions return it."""

    _nki_native_ = True
    __slots__ = ("handle",)

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def depends_on(self, *producers: NkiInstruction) -> NkiInstruction:
        """Let this instruction run after each producer; returns itself, so that calls chain.

        Program order already satisfies it in simulation; the record keeps the edges for the
        timeline.
        """
        mine = self.handle
        for producer in producers:
            if not isinstance(producer, NkiInstruction):
                raise TypeError(f"producers = {producer!r} is not an NkiInstruction")
            mine.check_follows(producer.handle)
            mine.after = (*mine.after, producer.handle.index)
        return self


class Instruction:
    """One executed instruction.

    Attributes:
        index: position in the trace of the launch.
        core: core that executed it.
        engine: "tensor", "vector", "scalar", "gpsimd", "dma" or "sync".
        opcode: name of the ``nki.isa`` function.
        writes, reads: named operands, ``((name, Access), ...)``.
        attrs: what else decides meaning and cost: operators, modes, flags, scalar operands.
        free: elements per partition that the engine streams (DMA: elements in all).
        name: the ``name=`` argument.
        after: indices of instructions it was told to follow (``depends_on``).
        loop: identifiers of the dynamic loops around it, outermost first.
    """

    __slots__ = (
        "_code", "_lasti", "after", "attrs", "core", "engine", "free", "index", "loop", "name",
        "opcode", "reads", "writes",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        core: int,
        engine: str,
        opcode: str,
        writes: tuple[tuple[str, Access], ...],
        reads: tuple[tuple[str, Access], ...],
        free: int,
        attrs: dict[str, Any],
        name: str | None,
        code: CodeType | None,
        lasti: int,
        loop: tuple[int, ...] = (),
    ) -> None:
        self.index = index
        self.core = core
        self.engine = engine
        self.opcode = opcode
        self.writes = writes
        self.reads = reads
        self.free = free
        self.attrs = attrs
        self.name = name
        self.after: tuple[int, ...] = ()
        self.loop = loop
        self._code = code
        self._lasti = lasti

    @property
    def source(self) -> tuple[str, int]:
        """(file, line) of the kernel statement that issued it."""
        return source_line(self._code, self._lasti)

    @property
    def dma_bytes(self) -> int:
        """Bytes a DMA instruction writes (0 for the others)."""
        return sum(a.nbytes for _, a in self.writes) if self.engine == "dma" else 0

    def check_follows(self, producer: Instruction) -> None:
        """Refuse a declared dependency that leads out of a dynamic loop.

        Raises:
            RuleError: naming both instructions.
        """
        if self.loop[: len(producer.loop)] != producer.loop:
            from nki_sim import rules  # which needs this module for the line of an error

            rules.broken(rules.LOOP_DEPENDS, "producers", producer, f"consumer is {self!r}")

    def operand(self, name: str) -> Access:
        """The access of the operand called ``name``.

        Raises:
            KeyError: where the instruction has none.
        """
        for label, access in (*self.writes, *self.reads):
            if label == name:
                return access
        raise KeyError(name)

    def __repr__(self) -> str:
        file, line = self.source
        outs = ", ".join(f"{n}={a!r}" for n, a in self.writes)
        ins = ", ".join(f"{n}={a!r}" for n, a in self.reads)
        attrs = ", ".join(f"{k}={v!r}" for k, v in self.attrs.items())
        return (
            f"{self.index}: {self.engine}.{self.opcode}({outs} <- {ins}; {attrs}) "
            f"[{Path(file).name}:{line}]"
        )


class Finding:
    """Something worth telling about one instruction that is not an error."""

    __slots__ = ("index", "kind", "line", "text")

    def __init__(self, kind: str, text: str, index: int, line: str) -> None:
        self.kind = kind
        self.text = text
        self.index = index
        self.line = line

    def __repr__(self) -> str:
        return f"{self.kind} at {self.line}: {self.text}"


class Trace:
    """The instructions and allocations of one launch, in program order per core.

    Pass one to ``nki_sim.simulate(kernel, trace=Trace())`` to have it filled.

    Attributes:
        instructions: executed instructions (two cores: as they interleaved).
        allocations: allocated tensors, arguments first.
        findings: reads of unwritten memory and other advice.
        target: generation simulated, set when the launch starts.
    """

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.allocations: list[Allocation] = []
        self.findings: list[Finding] = []
        self.target: str | None = None
        self.cores = 0

    def __len__(self) -> int:
        return len(self.instructions)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    def count(self, opcode: str) -> int:
        """Executed instructions of one opcode."""
        return sum(i.opcode == opcode for i in self.instructions)

    @property
    def dma_bytes(self) -> int:
        """Bytes written by DMA."""
        return sum(i.dma_bytes for i in self.instructions)
