"""What must come before what: the dependencies between the recorded instructions of a launch.

Program order is the meaning of a kernel. An instruction needs only those earlier ones whose memory
it shares (a read after a write, a write after a read, a write after a write), whose engine state it
continues (accumulators, random numbers, registers), or which an explicit order puts before it
(barriers, ``depends_on``, ``no_reorder``). ``replay`` shows by execution that nothing is missing.

What is left out is what follows from the rest: an access that a later write covers is forgotten,
because whoever comes after that write comes after the access too. So the transitive closure of the
edges is exact, the list of one instruction is short, and a long record stays cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nki_sim.errors import SimulatorError
from nki_sim.footprint import Footprint, Geometry, geometry_of, inside, overlap
from nki_sim.live import Live, Touch
from nki_sim.memory import Allocation
from nki_sim.trace import Access, Instruction, Trace

TRUE, ANTI, OUTPUT, EXPLICIT, BARRIER = "true", "anti", "output", "explicit", "barrier"
KINDS = (TRUE, ANTI, OUTPUT, EXPLICIT, BARRIER)

_Found = dict[int, str]


class Dependency(NamedTuple):
    """One reason to wait: the index of the earlier instruction, and why.

    ``kind`` is "true" (reads what it wrote), "output" (overwrites what it wrote), "anti"
    (overwrites what it read), "explicit" (``depends_on``, ``no_reorder``) or "barrier" (a meeting
    of two cores stands between).
    """

    producer: int
    kind: str


class Dependencies(Mapping[int, tuple[Dependency, ...]]):
    """The dependencies of one launch; also a mapping from instruction index to its entry.

    Attributes:
        before: for each instruction, in the order of the record, what it must follow: (index,
            kind) pairs by ascending index, each index once and smaller than the instruction's own,
            with one reason (the memory's before the others, a true one before all).
    """

    __slots__ = ("before",)

    def __init__(self, before: list[tuple[Dependency, ...]]) -> None:
        self.before = before

    def __getitem__(self, index: int) -> tuple[Dependency, ...]:
        if not 0 <= index < len(self.before):
            raise KeyError(index)
        return self.before[index]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.before)))

    def __len__(self) -> int:
        return len(self.before)

    @property
    def edges(self) -> int:
        """Pairs of instructions that are ordered directly."""
        return sum(map(len, self.before))


def dependencies(trace: Trace) -> Dependencies:
    """The dependencies between all instructions of a finished launch.

    Overlap is decided on exact bytes: disjoint blocks, columns or interleaved strides of one
    tensor are independent. An access at a run-time address stands for its whole tensor. Tensors
    placed with ``address=`` meet where their addresses do, and those that a dynamic loop's body
    declares are one tensor in all its iterations, as on the device.

    Raises:
        SimulatorError: where the trace holds more than one launch.
    """
    finder = _Finder(trace)
    return Dependencies([finder.visit(position, i) for position, i in enumerate(trace)])


class _Memory:
    """What still matters of the accesses to bytes that some allocations share."""

    __slots__ = ("geometry", "last_touch", "last_write", "reads", "writes")

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.writes = Live()
        self.reads = Live()
        self.last_write = -1
        self.last_touch = -1


class _State:
    """The last writer of a piece of engine state and its readers since."""

    __slots__ = ("readers", "writer")

    def __init__(self) -> None:
        self.writer = -1
        self.readers: list[int] = []


class _Finder:
    def __init__(self, trace: Trace) -> None:
        self._memories: dict[object, _Memory] = {}
        self._by_allocation: dict[int, _Memory] = {}
        self._states: dict[object, _State] = {}
        self._ordered: dict[int, int] = {}
        self._half: dict[object, list[Instruction]] = {}
        self._piped: dict[object, int] = {}
        self._barriers: set[int] = set()
        self._allocations = {a.id: a for a in trace.allocations}
        for record in trace:  # reads after the last write, and writes nobody meets, need no memory
            for _, access in record.reads:
                self._memory(access.allocation).last_touch = record.index
            for _, access in record.writes:
                memory = self._memory(access.allocation)
                memory.last_touch = memory.last_write = record.index
            if record.opcode == "core_barrier":
                memory = self._memory(self._allocations[record.attrs["data"]])
                memory.last_touch = memory.last_write = record.index

    def visit(self, position: int, record: Instruction) -> tuple[Dependency, ...]:
        index = record.index
        if index != position:
            raise SimulatorError(
                f"instruction {position} has index {index}: the trace holds more than one launch"
            )
        found: _Found = {}
        attrs = record.attrs
        for _, access in record.reads:
            self._read(index, access, found)
        keeps = attrs.get("accumulate", False) is not False or "keeps_dst" in attrs
        for _, access in record.writes:
            self._write(index, access, found, TRUE if keeps else OUTPUT)
        for key, reads, writes in _engine_state(record):
            self._use(index, key, reads, writes, found)
        if record.loop:  # its bounds, or its condition, come from registers
            registers = self._states.get(("registers", record.core))
            if registers is not None and registers.writer >= 0:
                found.setdefault(registers.writer, TRUE)
        for producer in record.after:
            found.setdefault(producer, EXPLICIT)
        if attrs.get("no_reorder"):
            if record.core in self._ordered:
                found.setdefault(self._ordered[record.core], EXPLICIT)
            self._ordered[record.core] = index
        if record.opcode == "core_barrier":
            self._barrier(record, found)
        elif record.opcode == "sendrecv":
            self._exchange(record, found)
        found.pop(index, None)
        if not found:
            return ()
        for barrier in self._barriers.intersection(found) if self._barriers else ():
            found[barrier] = BARRIER
        return tuple([Dependency(p, k) for p, k in sorted(found.items())])

    # ------------------------------------------------------------------ memory

    def _memory(self, a: Allocation) -> _Memory:
        memory = self._by_allocation.get(a.id)
        if memory is None:
            key: object = a.id
            if a.byte0 is not None:
                key = (a.space, a.core)
            elif a.slot is not None:
                key = (a.space, a.core, a.slot, a.shape, a.dtype)
            memory = self._memories.get(key)
            if memory is None:
                memory = self._memories[key] = _Memory(geometry_of(a))
            self._by_allocation[a.id] = memory
        return memory

    def _read(self, index: int, access: Access, found: _Found) -> None:
        memory = self._by_allocation[access.allocation.id]
        if not memory.writes.count and memory.last_write < index:
            return
        print_ = memory.geometry.footprint(access)
        for write in memory.writes.meeting(print_):
            if overlap(write.footprint, print_):
                found[write.index] = TRUE
        if memory.last_write >= index:
            memory.reads.add(Touch(index, print_))

    def _write(self, index: int, access: Access, found: _Found, kind: str) -> None:
        memory = self._by_allocation[access.allocation.id]
        self._overwrite(index, memory, memory.geometry.footprint(access), found, kind)

    def _overwrite(
        self, index: int, memory: _Memory, print_: Footprint, found: _Found, kind: str
    ) -> None:
        """Order after all that meet ``print_``; what it covers follows through it from then on."""
        for live, reason in ((memory.writes, kind), (memory.reads, ANTI)):
            if not live.count:
                continue
            covered = []
            for touch in live.meeting(print_):
                if overlap(touch.footprint, print_):
                    if touch.index != index:
                        found.setdefault(touch.index, reason)
                    if inside(touch.footprint, print_):
                        covered.append(touch)
            live.drop(covered)
        if memory.last_touch > index:
            memory.writes.add(Touch(index, print_))

    # ------------------------------------------------------------------ engines and cores

    def _use(self, index: int, key: object, reads: bool, writes: bool, found: _Found) -> None:
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = _State()
        if state.writer >= 0:
            found.setdefault(state.writer, TRUE if reads else OUTPUT)
        if writes:
            for reader in state.readers:
                found.setdefault(reader, ANTI)
            state.writer, state.readers = index, []
        else:
            state.readers.append(index)

    def _barrier(self, record: Instruction, found: _Found) -> None:
        """Put a barrier between all accesses to its data before it and after it, by both cores.

        The second core to arrive follows the first one's barrier, and later accesses follow it.
        """
        memory = self._memory(self._allocations[record.attrs["data"]])
        met: _Found = {}
        self._overwrite(record.index, memory, memory.geometry.everything, met, BARRIER)
        for producer in met:
            found.setdefault(producer, BARRIER)
        self._barriers.add(record.index)

    def _exchange(self, record: Instruction, found: _Found) -> None:
        """Let the second half of an exchange complete both.

        It follows the first, and fills the first one's destination as well as its own. A core's
        exchanges on one pipe keep their order.
        """
        pipe = record.attrs["pipe_id"]
        before = self._piped.get((pipe, record.core))
        if before is not None:
            found.setdefault(before, BARRIER)
        self._piped[(pipe, record.core)] = record.index
        waiting = self._half.setdefault((pipe, 1 - record.core), [])
        if not waiting:
            self._half.setdefault((pipe, record.core), []).append(record)
            return
        first = waiting.pop(0)
        for _, access in first.writes:
            self._write(record.index, access, found, BARRIER)
        found[first.index] = BARRIER


def _engine_state(record: Instruction) -> list[tuple[object, bool, bool]]:
    """What an instruction reads and writes besides memory: (name, reads, writes)."""
    uses: list[tuple[object, bool, bool]] = []
    command = record.attrs.get("reduce_cmd")
    core, opcode = record.core, record.opcode
    if command is not None:
        # an idle ScalarE reads its registers out; an idle VectorE may clobber its own
        idle, vector = command == "idle", record.engine == "vector"
        reads, writes = command == "reduce" or (idle and not vector), vector or not idle
        uses.append((("accumulator", record.engine, core), reads, writes))
    if opcode in ("rng", "dropout"):
        uses.append((("random", record.engine, core), True, True))
    elif opcode in ("set_rng_seed", "rand_set_state"):
        uses.append((("random", record.engine, core), False, True))
    elif opcode == "rand_get_state":
        uses.append((("random", record.engine, core), True, False))
    if record.engine == "sync":  # which register is not recorded: they count as one
        if opcode in ("register_load", "register_move"):
            uses.append((("registers", core), True, True))
        elif opcode == "register_store":
            uses.append((("registers", core), True, False))
    else:
        operands = (*record.reads, *record.writes)
        indirect = sum(a.indirect is not None for _, a in operands)
        if indirect and indirect > sum(name == "index" for name, _ in record.reads):
            uses.append((("registers", core), True, False))
    return uses
