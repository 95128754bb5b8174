"""What the two cores of an LNC2 launch do together: barriers and exchanges of tiles."""

from __future__ import annotations

from typing import Any

from nki_sim import checks, rules
from nki_sim.checks import SBUF_ONLY
from nki_sim.enums import dma_engine as DmaEngine
from nki_sim.enums import engine as Engine
from nki_sim.machine import Core, current
from nki_sim.memory import SHARED_HBM
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

dma_engine = DmaEngine
engine = Engine

_GPSIMD_DMA_BYTES = {4: 1024, 2: 512, 1: 256}  # bytes per partition by element size


def core_barrier(
    data: NkiTensor, cores: Any, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Wait until both cores are here; what either wrote to ``data`` before is then visible to
    both."""
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


def sendrecv(
    src: NkiTensor,
    dst: NkiTensor,
    send_to_rank: int,
    recv_from_rank: int,
    pipe_id: int,
    dma_engine: DmaEngine = DmaEngine.dma,
    name: str | None = None,
) -> NkiInstruction:
    """Send ``src`` to the other core and receive its ``src`` into ``dst``; both wait for each
    other."""
    core = current()
    checks.member(dma_engine, DmaEngine, "dma_engine")
    _check_pair(core, "sendrecv")
    checks.tile(src, "src", SBUF_ONLY)
    checks.tile(dst, "dst", SBUF_ONLY)
    if src.dtype is not dst.dtype:
        rules.broken(rules.DTYPE, "dst", dst.dtype, f"src is {src.dtype}")
    checks.same_layout(dst, "dst", src, "src")
    peer = 1 - core.id
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
    mailbox = core.launch.mailbox
    key = ("sendrecv", pipe_id)
    mailbox[(key, core.id)] = (send_to_rank, src.values.copy())
    meet(core, key, f"sendrecv on pipe {pipe_id} from core {recv_from_rank}")
    sender = core.id if recv_from_rank == core.id else peer
    target, values = mailbox[(key, sender)]
    if target != core.id:
        rules.broken(
            rules.CORES, "recv_from_rank", recv_from_rank, f"core {sender} sends to core {target}"
        )
    meet(core, (*key, "taken"), f"sendrecv on pipe {pipe_id}: the other core takes the tile")
    dst.values[...] = values.reshape(dst.shape)
    return made


def meet(core: Core, key: tuple[Any, ...], what: str) -> None:
    """Wait until the other core has come to the same meeting as often as this one."""
    launch = core.launch
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
