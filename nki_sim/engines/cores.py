"""What the two cores of an LNC2 launch do together: barriers and exchanges of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.checks import SBUF_ONLY
from nki_sim.enums import dma_engine as DmaEngine
from nki_sim.enums import engine as Engine
from nki_sim.machine import Core, Launch, current, sequenced
from nki_sim.memory import SHARED_HBM
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

dma_engine = DmaEngine
engine = Engine

_GPSIMD_DMA_BYTES = {4: 1024, 2: 512, 1: 256}  # bytes per partition by element size


@sequenced
def core_barrier(
    data: NkiTensor, cores: Any, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Wait until both cores are here.

    What either wrote to ``data`` before is then visible to both (nki.isa.core_barrier, NKI 0.6).
    """
    core = current()
    checks.member(engine, Engine, "engine")
    _check_pair(core, "core_barrier")
    checks.tensor(data, "data")
    if data.buffer is not SHARED_HBM:
        rules.broken(rules.CORES, "data", data.buffer.value, "a barrier is over shared_hbm data")
    if tuple(cores) != (0, 1):
        rules.broken(rules.CORES, "cores", cores, "only (0, 1)")
    made = core.issue(
        engine.name,
        "core_barrier",
        (),
        (),
        1,
        name,
        {"data": data.storage.info.id, "cores": (0, 1)},
    )
    meet(core, ("barrier", data.storage.info.id), f"core_barrier on {data.access!r}")
    return made


@sequenced
def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: DmaEngine = DmaEngine.dma,
    name: str | None = None,
) -> NkiInstruction:
    """Send ``src`` to one core and receive into ``dst`` from one; both cores wait.

    The other core's ``sendrecv`` on the same pipe is the other half (nki.isa.sendrecv, NKI 0.6).
    """
    core = current()
    checks.member(dma_engine, DmaEngine, "dma_engine")
    _check_pair(core, "sendrecv")
    checks.tile(src, "src", SBUF_ONLY)
    checks.tile(dst, "dst", SBUF_ONLY)
    if src.dtype is not dst.dtype:
        rules.broken(rules.DTYPE, "dst", dst.dtype, f"src is {src.dtype}")
    checks.same_layout(dst, "dst", src, "src")
    for rank, label in ((send_to_rank, "send_to_rank"), (recv_from_rank, "recv_from_rank")):
        if rank not in (0, 1):
            rules.broken(rules.CORES, label, rank, "0 or 1")
    limit = _GPSIMD_DMA_BYTES[src.dtype.itemsize]
    if dma_engine is DmaEngine.gpsimd_dma and src.free * src.dtype.itemsize > limit:
        rules.broken(rules.CORES, "src", src.shape, f"gpsimd_dma moves {limit} bytes per partition")
    made = core.issue(
        "gpsimd" if dma_engine is DmaEngine.gpsimd_dma else "dma",
        "sendrecv",
        (("dst", dst),),
        (("src", src),),
        src.size,
        name,
        {"send_to": send_to_rank, "recv_from": recv_from_rank, "pipe_id": pipe_id},
    )
    launch, key = core.launch, ("sendrecv", pipe_id)
    mine = Parcel(core.id, send_to_rank, recv_from_rank, src.values.copy(), dst)
    if launch.baton is None:  # a replay: its order stands for the waiting
        _complete(launch, key, mine)
        return made
    launch.mailbox[(key, core.id)] = mine
    meet(core, key, f"sendrecv on pipe {pipe_id} from core {recv_from_rank}")
    sent = launch.mailbox[(key, core.id if recv_from_rank == core.id else 1 - core.id)]
    meet(core, (*key, "taken"), f"sendrecv on pipe {pipe_id}: the other core takes the tile")
    _deliver(sent, mine)
    return made


@dataclass(slots=True)
class Parcel:
    """One core's half of an exchange: what it sends to whom, and where it wants what it gets."""

    core: int
    send_to: int
    recv_from: int
    values: np.ndarray
    dst: NkiTensor


def _deliver(sent: Parcel, to: Parcel) -> None:
    """Fill the destination of one half with the values of another."""
    if sent.send_to != to.core:
        rules.broken(
            rules.CORES,
            "recv_from_rank",
            to.recv_from,
            f"core {sent.core} sends to core {sent.send_to}",
        )
    to.dst.values[...] = sent.values.reshape(to.dst.shape)


def _complete(launch: Launch, key: tuple[Any, ...], second: Parcel) -> None:
    """Keep the first half of an exchange; with the second one fill both destinations."""
    waiting: list[Parcel] = launch.mailbox.setdefault((key, 1 - second.core), [])
    if not waiting:
        launch.mailbox.setdefault((key, second.core), []).append(second)
        return
    halves = {half.core: half for half in (waiting.pop(0), second)}
    for half in halves.values():
        _deliver(halves[half.recv_from], half)


def meet(core: Core, key: tuple[Any, ...], what: str) -> None:
    """Wait until the other core has come to the same meeting as often as this one."""
    launch = core.launch
    if launch.baton is None:  # a replay
        return
    visits = launch.visits
    mine = visits[(key, core.id)] = visits.get((key, core.id), 0) + 1
    others = [c for c in range(launch.lnc) if c != core.id]
    launch.baton.wait(core.id, lambda: all(visits.get((key, c), 0) >= mine for c in others), what)
    launch.epoch(core.id)


def _check_pair(core: Core, what: str) -> None:
    if core.version < 3:
        rules.broken(rules.AVAILABILITY, what, core.target.generation, "needs gen3")
    if core.launch.lnc != 2:
        rules.broken(rules.CORES, what, f"{core.launch.lnc} core", "launch with kernel[2]")
