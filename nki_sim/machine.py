"""The running simulation: a ``Launch`` for each kernel call, with a ``Core`` for each NeuronCore.

Which core executes is a context variable, so that simulations in different threads never mix and
nothing global changes. A core keeps the little state that crosses instructions (accumulators,
random state) and writes the record.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from nki_sim import races, rules
from nki_sim.allocation import new_storage
from nki_sim.dtypes import LOW_PRECISION, DType, float32
from nki_sim.errors import AdviceWarning, RuleError, SimulatorError, UnwrittenReadWarning
from nki_sim.memory import (
    HBM,
    MATMUL,
    NEVER,
    PSUM,
    READ_ONLY,
    SHARED_HBM,
    WRITTEN,
    Allocation,
    MemoryRegion,
    Storage,
)
from nki_sim.targets import PARTITIONS, Target
from nki_sim.trace import Finding, Instruction, NkiInstruction, Trace, kernel_frame, kernel_line
from nki_sim.wide import Overlay, settle

if TYPE_CHECKING:
    from nki_sim.tensor import NkiTensor

_CORE: ContextVar[Core] = ContextVar("nki_sim_core")

Operands = tuple[tuple[str, "NkiTensor"], ...]


def current() -> Core:
    """The core that is executing.

    Raises:
        SimulatorError: outside a kernel that is being simulated.
    """
    try:
        return _CORE.get()
    except LookupError:
        raise SimulatorError(
            "no kernel is running: nki.isa and nki.language work inside a kernel called through "
            "nki.simulate(kernel)(...) or nki_sim.simulate(kernel)(...)"
        ) from None


def current_or_none() -> Core | None:
    """The core that is executing, or None outside a simulation."""
    return _CORE.get(None)


class _RecordedError(Exception):
    """Leaves an instruction after it was recorded, where a launch records shapes only."""

    def __init__(self, made: NkiInstruction) -> None:
        self.made = made


_P = ParamSpec("_P")
_R = TypeVar("_R")


def instruction(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """An instruction whose arithmetic, all that follows its ``issue``, a launch may leave out."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        core = _CORE.get(None)
        if core is None or not core.launch.shapes_only:
            if core is not None and core.launch.calls is not None:
                return _kept(core, function, args, kwargs)
            return function(*args, **kwargs)
        core.stop_at_issue = True
        try:
            return function(*args, **kwargs)
        except _RecordedError as recorded:
            return recorded.made  # type: ignore[return-value]
        finally:
            core.stop_at_issue = False

    return call


def sequenced(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """An instruction that a launch always executes: what the kernel does next depends on it."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        core = _CORE.get(None)
        if core is None or core.launch.calls is None:
            return function(*args, **kwargs)
        return _kept(core, function, args, kwargs)

    return call


def _kept(core: Core, function: Callable[..., _R], args: Any, kwargs: Any) -> _R:
    """Execute an instruction and keep it, so that ``replay`` can execute it again."""
    made: Any = function(*args, **kwargs)
    assert core.launch.calls is not None
    core.launch.calls[made.handle.index] = (core.id, function, args, kwargs)
    return made


class Launch:
    """One kernel call: its target, its record, and what its cores share.

    Attributes:
        target: the generation simulated.
        trace: the record being written.
        lnc: physical cores in the launch.
        exact_matmul: sum matmuls in a fixed order, so that a result never depends on the tile's
            shape.
        shapes_only: check and record instructions but compute nothing.
        precise: round low-precision floats; where False they are kept as float32
            (``NKI_PRECISE_FP=0``).
        calls: where not None, every executed instruction is kept here by its index, with its core,
            for ``replay``.
        baton: what makes two cores take turns; None with one core, and in a replay.
        storages: with ``calls``, every storage of the launch.
        overlays: with ``NKI_PRECISE_FP=0``, views of other dtypes that the running instruction has.
    """

    def __init__(
        self,
        target: Target,
        trace: Trace,
        lnc: int,
        exact_matmul: bool = False,
        shapes_only: bool = False,
    ) -> None:
        self.target = target
        self.trace = trace
        self.lnc = lnc
        self.exact_matmul = exact_matmul
        self.shapes_only = shapes_only
        self.precise = os.environ.get("NKI_PRECISE_FP", "1") != "0"
        self.calls: dict[int, tuple[int, Callable[..., Any], Any, Any]] | None = None
        self.storages: list[Storage] = []
        self.lock = threading.Lock()
        self.indices = itertools.count()
        self.shared: list[Storage] = []
        self.placed: dict[object, np.ndarray] = {}
        self.overlays: list[Overlay] = []
        self.warned: set[tuple[str, str]] = set()
        self.baton: Any = None
        self.mailbox: dict[Any, Any] = {}
        self.visits: dict[Any, int] = {}
        self.epochs = [0] * lnc
        self.neighbours: dict[tuple[int, MemoryRegion], list[Any]] = {}
        self.footprints: dict[int, Any] = {}
        trace.target = target.generation
        trace.cores = lnc

    def carrier(self, dtype: DType) -> np.dtype[Any] | None:
        """The dtype that holds elements of ``dtype``, where it is not its own."""
        return None if self.precise or dtype not in LOW_PRECISION else float32.numpy

    def epoch(self, core: int) -> None:
        """Count a meeting of the cores: accesses on both sides of it are ordered."""
        self.epochs[core] += 1

    def allocation(self, *args: Any, **kwargs: Any) -> Allocation:
        """Register an allocation under the next free number."""
        with self.lock:
            made = Allocation(len(self.trace.allocations), *args, **kwargs)
            self.trace.allocations.append(made)
        return made


class Core:
    """One NeuronCore of a launch.

    Attributes:
        id: its number in the launch, what ``nl.program_id(0)`` returns.
        scalar_accumulator: ScalarE's reduce registers, float32 [128].
        vector_accumulator: VectorE's accumulator, float32 [128], or None while it is undefined.
        loops: identifiers of the dynamic loops being executed, outermost first.
        ordered: how many ``nl.no_reorder`` blocks are open.
        constants: rows of ones that ``nl`` functions made, by length.
        affine: (loop, iteration) of the ``nl.affine_range`` loops being executed.
        slot: tensors and loops met so far by the kernel and by each body of the open dynamic loops:
            the same in every iteration, so that it names a declaration in a body.
        shared_seen: shared HBM tensors declared so far; both cores declare the same ones.
    """

    def __init__(self, launch: Launch, id: int = 0) -> None:
        self.launch = launch
        self.id = id
        self.target = launch.target
        self.version = launch.target.version
        self.trace = launch.trace
        self.scalar_accumulator = np.zeros(PARTITIONS, np.float32)
        self.vector_accumulator: np.ndarray | None = None
        self.random: dict[str, Any] = {}
        self.loops: tuple[int, ...] = ()
        self.loop_count = 0
        self.slot: list[int] = [0]
        self.affine: tuple[tuple[int, int], ...] = ()
        self.ordered = 0
        self.issued = 0
        self.stop_at_issue = False
        self.constants: dict[int, NkiTensor] = {}
        self.shared_seen = 0

    @contextmanager
    def executing(self) -> Iterator[None]:
        """Make this the core that executes."""
        token = _CORE.set(self)
        try:
            yield
        finally:
            _CORE.reset(token)

    # ------------------------------------------------------------------ memory

    def allocate(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        space: MemoryRegion,
        name: str = "",
        address: tuple[int, int] | None = None,
    ) -> Storage:
        """A fresh tensor's storage; a shared HBM tensor is the same one on both cores."""
        storage = new_storage(self, shape, dtype, space, name, address)
        frame = kernel_frame()
        if frame is not None:
            storage.info.site = (frame.f_code, frame.f_lasti)
        if self.loops and address is None:
            storage.info.slot = tuple(self.slot)
            self.slot[-1] += 1
        storage.carrier = self.launch.carrier(dtype)
        if self.launch.calls is not None:
            self.launch.storages.append(storage)
        return storage

    # ------------------------------------------------------------------ record

    def issue(
        self,
        engine: str,
        opcode: str,
        writes: Operands,
        reads: Operands,
        free: int,
        name: str | None = None,
        attrs: dict[str, Any] | None = None,
        state: int = WRITTEN,
    ) -> NkiInstruction:
        """Record one instruction and what it makes of its memories' state."""
        if self.launch.overlays:
            settle(self.launch.overlays)
        frame = kernel_frame()
        index = next(self.launch.indices)
        self.issued = index + 1
        for _, t in (*writes, *reads):
            if t.index is not None and t.index.index.__class__ is t.__class__:
                reads = (*reads, ("index", t.index.index))  # where a run-time address comes from
        for label, t in reads:
            storage = t.storage
            seen = storage.state
            if seen.__class__ is not int or seen == NEVER:
                self._note_unwritten(opcode, label, t, index)
            info = storage.info
            if info.first is None:
                info.first = index
            info.last = index
            if storage.placed is not None:
                self._check_placed(label, t)
        for _, t in writes:
            info = t.storage.info
            if info.first is None:
                info.first = index
            info.last = index
        if self.launch.baton is not None:
            self._check_races(writes, reads)
        record = Instruction(
            index,
            self.id,
            engine,
            opcode,
            tuple([(label, t.access) for label, t in writes]),
            tuple([(label, t.access) for label, t in reads]),
            free,
            attrs if attrs is not None else {},
            name,
            None if frame is None else frame.f_code,
            0 if frame is None else frame.f_lasti,
            self.loops,
        )
        if self.ordered:
            record.attrs["no_reorder"] = True
        if self.affine:
            record.attrs["affine"] = self.affine
        self.trace.instructions.append(record)
        for label, t in writes:
            if t.storage.state.__class__ is not int or t.storage.state != state:
                self._mark(t, state, label, engine)
            if t.storage.placed is not None:
                t.storage.placed.wrote(self._located(t).access, index)
        handle = object.__new__(NkiInstruction)
        handle.handle = record
        if self.stop_at_issue:
            raise _RecordedError(handle)
        return handle

    def _check_placed(self, label: str, t: NkiTensor) -> None:
        spoiled = t.storage.placed.spoiled(self._located(t).access)
        if spoiled is not None:
            by, index = spoiled
            file, line = self.trace.instructions[index].source
            rules.broken(
                rules.MEMORY_OVERLAP, label, t.access, f"{by!r} was written there at {file}:{line}"
            )

    def _check_races(self, writes: Operands, reads: Operands) -> None:
        for label, t in reads:
            if t.buffer is SHARED_HBM:
                races.check(self, t, label, writes=False)
        for label, t in writes:
            if t.buffer is SHARED_HBM:
                races.check(self, t, label, writes=True)

    def _unknown(self, t: NkiTensor) -> bool:
        """Whether a run-time address is data that this launch does not compute."""
        index = t.index
        return (
            index is not None and self.launch.shapes_only and index.index.__class__ is t.__class__
        )

    def _located(self, t: NkiTensor) -> NkiTensor:
        """The view at its run-time address, where that is known and inside its tensor."""
        if t.index is None or self._unknown(t):
            return t
        try:
            return t.resolved()
        except RuleError:  # the instruction itself says what is wrong, or skips it
            return t

    def _mark(self, t: NkiTensor, state: int, label: str, engine: str) -> None:
        storage = t.storage
        if isinstance(storage.state, int) and storage.state == READ_ONLY:
            raise SimulatorError(
                f"{kernel_line()}: {label} writes to argument {storage.info.name!r}, whose array "
                "is read-only"
            )
        if t.index is not None:
            if engine == "dma" or t.index.kind != "scalar":
                return  # the DMA engine marks the rows it reaches
            if self._unknown(t):
                storage.state = state  # somewhere in it
                return
            t = t.resolved()
        if t.covers_storage():
            storage.state = state
            return
        storage.ensure_state_array()
        storage.states(t.offset, t.shape, t.strides, t.dtype.itemsize)[...] = state

    def _note_unwritten(self, opcode: str, label: str, t: NkiTensor, index: int) -> None:
        storage = t.storage
        if storage.placed is not None and storage.placed.is_second_name(t.access):
            return
        if t.index is not None:
            where = None if self._unknown(t) else races.elements(t)
            if where is None or not where.size:
                return
            if not isinstance(storage.state, int) and storage.state[where].all():
                return
        elif not isinstance(storage.state, int) and (
            storage.states(t.offset, t.shape, t.strides, t.dtype.itemsize).all()
        ):
            if storage.info.space is not PSUM and t.covers_storage():
                storage.state = WRITTEN
            return
        self.note(
            "unwritten-read",
            f"{opcode} reads {label} = {t.access!r}, of which some or all elements were never "
            "written",
            index,
            UnwrittenReadWarning,
        )

    def note(
        self,
        kind: str,
        text: str,
        index: int | None = None,
        category: type[Warning] = AdviceWarning,
    ) -> None:
        """Keep a finding in the trace and warn, once per kind and line."""
        line = kernel_line()
        if (kind, line) in self.launch.warned:
            return
        self.launch.warned.add((kind, line))
        self.trace.findings.append(
            Finding(kind, text, self.issued if index is None else index, line)
        )
        warnings.warn(f"{line}: {text}", category, stacklevel=2)

    def states_of(self, t: NkiTensor) -> int | np.ndarray:
        """State of the elements of a view: one number where all agree, else an array."""
        state = t.storage.state
        if isinstance(state, int):
            return state
        if t.index is not None and not self._unknown(t):
            t = t.resolved()
        return np.asarray(t.storage.states(t.offset, t.shape, t.strides, t.dtype.itemsize))


__all__ = ["HBM", "MATMUL", "Core", "Launch", "current", "current_or_none"]
