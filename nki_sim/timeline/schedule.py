"""When every instruction of a record runs: an event-driven simulation of engines, queues and DMA.

Four compute engines and a sequencer a core work through queues of their own. An engine's queue has
the order of the program, but for what the compiler's scheduler does: of the next few instructions
the first that is ready goes first ("without [no_reorder], the compiler scheduler is free to reorder
independent instructions", nki.language.no_reorder, NKI 0.6). DMA queues (loads, stores, moves,
copies) start their transfers in program order; a transfer's bytes then pass through the 16 DMA
engines, which serve their queues in turn. An instruction starts when its engine is free, its
producers have finished (and their semaphore has arrived), its SBUF and PSUM tiles have room, and
the memory ports it needs are free.

Tiles get their room in program order, and give it back with their last access: loads run ahead of
compute exactly as far as free SBUF allows, as they would with the rotating buffers that a compiler
assigns.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from nki_sim.memory import PSUM, SBUF
from nki_sim.targets import PSUM_PARTITION_BYTES, get_target
from nki_sim.timeline.constants import Timing
from nki_sim.timeline.costs import PSUM_PORT, RESIDENT_FUNCTIONS, SBUF_PORT, cost
from nki_sim.timeline.dma import Transfer, transfer
from nki_sim.timeline.queues import Engines, Lane, Room
from nki_sim.timeline.repeats import repeats
from nki_sim.trace import Instruction, Trace

QUANTUM_NS = 1000.0
"""Longest turn of one queue on a DMA engine while others wait (queues take turns a descriptor)."""

FINISH, TURN, ARRIVE, START = range(4)  # kinds of events, in the order of one moment


class Schedule:
    """Times of one record at one set of constants; all lists are by instruction, times in ns.

    Attributes:
        start, end: when an engine (DMA: its queue) took the instruction up, and when it was done
            with it (DMA: last byte and semaphore).
        busy: ns that it kept its engine (DMA: the longest work of one DMA engine).
        lane: what ran it, such as "vector" or "dma load" ("1 vector" on the second core).
        cause: what its lane waited for last before it started ("" where it did not wait).
        blocker: the instruction whose end let it start, or -1.
        total: when the last instruction was done.
        moves: DMA only, when its first byte left, when its last byte arrived.
        turn: DMA only, the transfer that a DMA engine served right before, or -1.
        descriptors: (core, maker, start, end, instruction) of descriptors made on the device.
        peak: bytes a partition alive at once in program order, by (core, "sbuf" or "psum").
        dma_busy: ns that at least one DMA engine of a core moved data, by core.
        engine_busy: ns of work of each DMA engine, by core.
        transfers: the transfer of each DMA instruction, None for the others.
    """

    def __init__(self, count: int, cores: int, engines: int) -> None:
        self.start = [0.0] * count
        self.end = [0.0] * count
        self.busy = [0.0] * count
        self.lane = [""] * count
        self.cause = [""] * count
        self.blocker = [-1] * count
        self.total = 0.0
        self.moves = [(0.0, 0.0)] * count
        self.turn = [-1] * count
        self.descriptors: list[tuple[int, str, float, float, int]] = []
        self.peak: dict[tuple[int, str], int] = {}
        self.dma_busy = [0.0] * cores
        self.engine_busy = [[0.0] * engines for _ in range(cores)]
        self.transfers: list[Transfer | None] = [None] * count


def schedule(trace: Trace, before: Sequence[Sequence[int]], t: Timing) -> Schedule:
    """Run the record.

    Args:
        trace: a finished record; must hold at least one instruction.
        before: for each instruction, the ones that must finish before it starts.
        t: the constants.

    Raises:
        NotImplementedError: for an instruction without a cost model.
    """
    return _Run(trace, before, t).run()


class _Run:
    def __init__(self, trace: Trace, before: Sequence[Sequence[int]], t: Timing) -> None:
        self.t = t
        self.items: list[Instruction] = trace.instructions
        count = len(self.items)
        self.s = Schedule(count, trace.cores, int(t.dma_engines))
        self.events: list[tuple[float, int, int, int]] = []
        self.serial = 0
        self.lanes: dict[tuple[int, str], Lane] = {}
        self.lane_of: list[Lane] = []
        self.same = [0.0] * count
        self.other = [0.0] * count
        self.ports = [0] * count
        self.ready = [0.0] * count
        self.ready_cause = [""] * count
        self.ready_by = [-1] * count
        self.waiting = [0] * count
        self.queued = [False] * count
        self.after: list[list[int]] = [[] for _ in range(count)]
        self.port_free: dict[tuple[int, int], tuple[float, int]] = {}
        self.descriptors: dict[tuple[int, str], tuple[float, int]] = {}
        self.repeats = repeats(self.items) if t.repeat_cost < 1 else {}
        self._costs()
        self._edges(before)
        self._classes()
        self._rooms(trace)

    # ------------------------------------------------------------------ preparation

    def _costs(self) -> None:
        t, s = self.t, self.s
        for k, i in enumerate(self.items):
            if i.engine == "dma":
                moved = transfer(i, t)
                s.transfers[k] = moved
                s.busy[k] = max(moved.work)
                name = f"dma {moved.queue}"
            else:
                c = cost(i, t)
                s.busy[k], self.same[k], self.other[k], self.ports[k] = c
                if k in self.repeats:
                    s.busy[k] *= t.repeat_cost
                    self.ports[k] = 0
                name = i.engine
            key = (i.core, name)
            lane = self.lanes.get(key)
            if lane is None:
                label = name if i.core == 0 else f"{i.core} {name}"
                window = 1 if i.engine == "dma" else int(t.reorder_window)
                lane = self.lanes[key] = Lane(label, i.core, window)
            lane.items.append(k)
            self.lane_of.append(lane)
            s.lane[k] = lane.name

    def _edges(self, before: Sequence[Sequence[int]]) -> None:
        for k in range(len(self.items)):
            producers = before[k]
            first = self.repeats.get(k)
            if first is not None and first not in producers:
                producers = [*producers, first]
            self.waiting[k] = len(producers)
            for p in producers:
                self.after[p].append(k)

    def _classes(self) -> None:
        """Group the DMA engines of a core that get the same work from every transfer."""
        t = self.t
        self.classes: list[list[Engines]] = []
        self.class_work: list[tuple[tuple[int, float], ...]] = [()] * len(self.items)
        self.class_members: list[list[list[int]]] = []
        cores = len(self.s.dma_busy)
        for core in range(cores):
            patterns: dict[tuple[float, ...], int] = {}
            mine = []
            for k, moved in enumerate(self.s.transfers):
                if moved is not None and self.items[k].core == core:
                    mine.append((k, patterns.setdefault(moved.work, len(patterns))))
            shapes = list(patterns)
            groups: dict[tuple[float, ...], list[int]] = {}
            for e in range(int(t.dma_engines)):
                groups.setdefault(tuple([w[e] for w in shapes]), []).append(e)
            members = list(groups.values())
            self.class_members.append(members)
            self.classes.append([Engines() for _ in members])
            per_pattern = [
                tuple([(c, w[m[0]]) for c, m in enumerate(members) if w[m[0]] > 0]) for w in shapes
            ]
            for k, pattern in mine:
                self.class_work[k] = per_pattern[pattern]
                for c, work in per_pattern[pattern]:
                    for e in members[c]:
                        self.s.engine_busy[core][e] += work
        self.pending = [len(w) for w in self.class_work]
        self.active = [0] * cores
        self.active_since = [0.0] * cores

    def _rooms(self, trace: Trace) -> None:
        """First and last use of every tile; capacities (raised where the record itself exceeds)."""
        t = self.t
        usable = get_target(t.generation).sbuf_usable_bytes_per_partition
        count = len(self.items)
        first: dict[int, int] = {}
        uses: dict[int, int] = {}
        last: dict[int, int] = {}
        tiles: dict[int, tuple[tuple[int, str], int]] = {}
        self.holds: list[list[int]] = [[] for _ in range(count)]
        for k, i in enumerate(self.items):
            for _, a in (*i.writes, *i.reads):
                allocation = a.allocation
                if allocation.space is not SBUF and allocation.space is not PSUM:
                    continue
                if allocation.partition0 is not None:
                    continue  # placed by hand: its address is in the dependencies
                n = allocation.id
                if n not in first:
                    first[n] = k
                    key = (i.core, allocation.space.value)
                    tiles[n] = (key, allocation.partition_bytes)
                    uses[n] = 0
                if last.get(n) != k or not uses[n]:
                    uses[n] += 1
                    self.holds[k].append(n)
                last[n] = k
        self.uses, self.tiles = uses, tiles
        self.rooms: dict[tuple[int, str], Room] = {}
        self.tickets: list[list[tuple[Room, int]]] = [[] for _ in range(count)]
        live: dict[tuple[int, str], int] = {}
        peak: dict[tuple[int, str], int] = {}
        ends: list[list[int]] = [[] for _ in range(count)]
        for n, k in last.items():
            ends[k].append(n)
        starts: list[list[int]] = [[] for _ in range(count)]
        for n, k in first.items():
            starts[k].append(n)
        for k in range(count):
            for n in starts[k]:
                key, size = tiles[n]
                live[key] = live.get(key, 0) + size
                peak[key] = max(peak.get(key, 0), live[key])
            for n in ends[k]:
                key, size = tiles[n]
                live[key] -= size
        self.s.peak = peak
        for key, most in peak.items():
            capacity = PSUM_PARTITION_BYTES if key[1] == "psum" else usable
            self.rooms[key] = Room(max(capacity, most))
        for k in range(count):
            for n in starts[k]:
                key, size = tiles[n]
                room = self.rooms[key]
                room.order.append(k)
                room.sizes.append(size)
                self.tickets[k].append((room, len(room.order)))
                self.waiting[k] += 1

    # ------------------------------------------------------------------ simulation

    def run(self) -> Schedule:
        s = self.s
        for room in self.rooms.values():
            self._grant(room, 0.0, -1)
        for lane in self.lanes.values():
            self._offer(lane, 0.0)
        events = self.events
        pop = heapq.heappop
        handlers = (self._finish, self._turn, self._arrive, self._start)
        while events:
            now, kind, _, k = pop(events)
            handlers[kind](k, now)
        stuck = [lane.name for lane in self.lanes.values() if lane.position < len(lane.items)]
        if stuck:
            raise RuntimeError(f"the record's dependencies block {', '.join(stuck)} for ever")
        s.total = max(s.end)
        return s

    def _push(self, time: float, kind: int, k: int) -> None:
        self.serial += 1
        heapq.heappush(self.events, (time, kind, self.serial, k))

    def _offer(self, lane: Lane, now: float) -> None:
        """Let the head of a lane start once nothing it waits for is left."""
        if lane.position >= len(lane.items):
            return
        if lane.window > 1:
            self._choose(lane, now)
        k = lane.items[lane.position]
        if self.waiting[k] or self.queued[k]:
            return
        at = self.ready[k]
        if lane.free > at:
            at = lane.free
        if now > at:
            at = now
        self.queued[k] = True
        self._push(at, START, k)

    def _choose(self, lane: Lane, now: float) -> None:
        """Bring the instruction of the window that can start first to the head of the lane."""
        items, head = lane.items, lane.position
        if self.queued[items[head]]:
            return
        earliest = lane.free if lane.free > now else now
        best, best_at = head, float("inf")
        for n in range(head, min(head + lane.window, len(items))):
            k = items[n]
            if not self.waiting[k] and self.ready[k] < best_at:
                best, best_at = n, self.ready[k]
                if best_at <= earliest:
                    break
        if best > head:
            items.insert(head, items.pop(best))

    def _start(self, k: int, now: float) -> None:
        lane = self.lane_of[k]
        i = self.items[k]
        s = self.s
        if i.engine == "dma":
            self._start_dma(k, now, lane)
            return
        begin, cause, by = now, "", -1
        ports = self.ports[k]
        for port in (PSUM_PORT, SBUF_PORT):
            if ports & port:
                free, holder = self.port_free.get((i.core, port), (0.0, -1))
                if free > begin and self.lane_of[holder] is not lane:
                    begin, by = free, holder
                    cause = "PSUM port" if port == PSUM_PORT else "SBUF port"
        if i.engine == "gpsimd":
            free, holder = self.descriptors.get((i.core, "gpsimd"), (0.0, -1))
            if free > begin:
                begin, by, cause = free, holder, "descriptors"
        if begin > now:
            self.ready[k], self.ready_cause[k], self.ready_by[k] = begin, cause, by
            self._push(begin, START, k)
            return
        free = lane.free
        if self.ready[k] > free:
            s.cause[k], s.blocker[k] = self.ready_cause[k], self.ready_by[k]
        else:
            s.blocker[k] = lane.last
        busy = s.busy[k]
        if i.engine == "scalar" and "op" in i.attrs:
            busy += self._table(lane, str(i.attrs["op"]), now)
        elif i.engine == "tensor" and now > free:
            busy += self.t.load_stationary_cycles / self.t.tensor_ghz
        s.start[k] = now
        s.busy[k] = busy
        end = s.end[k] = now + busy
        for port in (PSUM_PORT, SBUF_PORT):
            if ports & port:
                self.port_free[(i.core, port)] = (end, k)
        lane.free = end
        lane.last = k
        lane.position += 1
        self._push(end, FINISH, k)
        self._offer(lane, now)

    def _table(self, lane: Lane, function: str, now: float) -> float:
        """ns of an activation-table load that shows: it starts as soon as ScalarE is free."""
        if function in RESIDENT_FUNCTIONS or function == lane.table:
            return 0.0
        lane.table = function
        return max(0.0, self.t.table_load_ns - (now - lane.free))

    def _start_dma(self, k: int, now: float, lane: Lane) -> None:
        """Make the descriptors, then let the bytes go their way; the queue goes on."""
        s, t, i = self.s, self.t, self.items[k]
        moved = s.transfers[k]
        assert moved is not None
        maker = {"swdge": "gpsimd", "hwdge": str(i.attrs.get("queue", "sync"))}.get(moved.mode, "")
        begin, cost_ns = now, t.dma_trigger_ns
        if maker:
            free, holder = self.descriptors.get((i.core, maker), (0.0, -1))
            engine = self.lanes.get((i.core, maker))
            if engine is not None and maker == "gpsimd" and engine.free > free:
                free, holder = engine.free, engine.last
            if free > begin:
                if free > self.ready[k]:
                    self.ready[k], self.ready_cause[k] = free, "descriptors"
                    self.ready_by[k] = holder
                self._push(free, START, k)
                return
            cost_ns = t.swdge_ns if moved.mode == "swdge" else t.hwdge_ns
            self.descriptors[(i.core, maker)] = (begin + cost_ns, k)
            s.descriptors.append((i.core, maker, begin, begin + cost_ns, k))
        if self.ready[k] > lane.free:
            s.cause[k], s.blocker[k] = self.ready_cause[k], self.ready_by[k]
        else:
            s.blocker[k] = lane.last
        s.start[k] = begin
        lane.free = begin + cost_ns
        lane.last = k
        lane.position += 1
        self._push(lane.free + t.dma_start_ns, ARRIVE, k)
        self._offer(lane, now)

    def _arrive(self, k: int, now: float) -> None:
        """The bytes of a transfer join its queue on each DMA engine that moves some."""
        core = self.items[k].core
        moved = self.s.transfers[k]
        assert moved is not None
        for c, work in self.class_work[k]:
            engines = self.classes[core][c]
            engines.queues.setdefault(moved.queue, deque()).append([k, work, work])
            if not engines.busy:
                self._serve(core, c, engines, now)

    def _serve(self, core: int, c: int, engines: Engines, now: float) -> None:
        names = list(engines.queues)
        for step in range(len(names)):
            name = names[(engines.turn + step) % len(names)]
            queue = engines.queues[name]
            if queue:
                break
        else:
            if engines.busy:
                engines.busy = False
                self.active[core] -= 1
                if not self.active[core]:
                    self.s.dma_busy[core] += now - self.active_since[core]
            return
        if not engines.busy:
            engines.busy = True
            if not self.active[core]:
                self.active_since[core] = now
            self.active[core] += 1
            engines.last = -1
        engines.turn = (names.index(name) + 1) % len(names)
        engines.current = name
        head = queue[0]
        k = int(head[0])
        s = self.s
        if not s.moves[k][0]:
            s.moves[k] = (now, now)
        if head[1] == head[2]:  # its first turn here
            s.turn[k] = engines.last
        left = head[1]
        turn = left if len(names) == 1 else min(left, QUANTUM_NS)
        head[1] = left - turn
        self._push(now + turn, TURN, core * 64 + c)

    def _turn(self, where: int, now: float) -> None:
        core, c = divmod(where, 64)
        engines = self.classes[core][c]
        queue = engines.queues[engines.current]
        head = queue[0]
        k = int(head[0])
        engines.last = k
        if head[1] <= 0:
            queue.popleft()
            self.pending[k] -= 1
            self.s.moves[k] = (self.s.moves[k][0], now)
            if not self.pending[k]:
                end = self.s.end[k] = now + self.t.dma_finish_ns
                self._push(end, FINISH, k)
        self._serve(core, c, engines, now)

    def _finish(self, k: int, now: float) -> None:
        """Everybody who waited for this instruction hears of it."""
        i, lane = self.items[k], self.lane_of[k]
        is_dma = i.engine == "dma"
        near = now + self.same[k]
        far = now + self.other[k] + (0.0 if is_dma else self.t.semaphore_ns)
        for n in self.after[k]:
            at = near if self.lane_of[n] is lane and not is_dma else far
            if is_dma:
                at = now
            self._met(n, at, lane.name, k, now)
        for tile in self.holds[k]:
            self.uses[tile] -= 1
            if not self.uses[tile]:
                key, size = self.tiles[tile]
                room = self.rooms[key]
                room.free += size
                self._grant(room, now, k)
        self._offer(lane, now)

    def _met(self, n: int, at: float, cause: str, by: int, now: float) -> None:
        if at > self.ready[n] or self.ready_by[n] == -1:
            self.ready[n] = max(at, self.ready[n])
            self.ready_cause[n] = cause
            self.ready_by[n] = by
        self.waiting[n] -= 1
        if not self.waiting[n]:
            self._offer(self.lane_of[n], now)

    def _grant(self, room: Room, now: float, by: int) -> None:
        while room.granted < len(room.order) and room.sizes[room.granted] <= room.free:
            room.free -= room.sizes[room.granted]
            k = room.order[room.granted]
            room.granted += 1
            self._met(k, now if by >= 0 else 0.0, "free SBUF or PSUM", by, now)
