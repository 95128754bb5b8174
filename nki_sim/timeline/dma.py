"""What a DMA costs each of the core's 16 engines: contiguous runs of HBM, bytes, who moves them.

An engine serves the SBUF partitions 8e to 8e + 7 (nki-dma-overview.rst), so a transfer's width in
partitions decides how many engines work on it. Each engine pays a fixed time for every contiguous
run that it reads or writes in HBM, and its bytes at the engine's rate. Runs count on the HBM side:
a [128, 128] bf16 tensor that is contiguous in HBM moves its 2 KiB an engine in 97 ns (figure of the
same page), which is one run, not eight.
"""

from __future__ import annotations

from typing import NamedTuple

from nki_sim.timeline.constants import Timing
from nki_sim.trace import Access, Instruction

PARTITIONS_PER_ENGINE = 8


class Transfer(NamedTuple):
    """One DMA: ns of work for each engine, bytes written, contiguous runs, and its queue."""

    work: tuple[float, ...]
    nbytes: int
    runs: int
    queue: str
    mode: str


def transfer(i: Instruction, t: Timing) -> Transfer:
    """The transfer of a DMA instruction."""
    destination = i.writes[0][1]
    sources = [a for name, a in i.reads if name != "index"]
    engines = int(t.dma_engines)
    share = _shares(destination, sources, engines)
    runs = [max(_runs(a) for a in (destination, source)) for source in sources]
    if all(a.allocation.partitions for a in (destination, *sources)):
        runs = [max(n, destination.shape[0]) for n in runs]  # inside SBUF each partition is a run
    nbytes = destination.nbytes
    rate = t.dma_bytes_per_ns
    if i.opcode == "dma_transpose":
        inside = all(a.allocation.partitions for a in (destination, *sources))
        rate *= t.dma_transpose_sbuf_rate if inside else t.dma_transpose_rate
        runs = [min(_runs(a) for a in (destination, *sources))]
    elif i.opcode == "dma_compute":
        rate *= t.dma_compute_rate
    moved = max(nbytes, *[a.nbytes for a in sources]) * len(sources)
    total = sum(runs)
    work = tuple(
        [
            s * moved / rate + max(len(sources), total * s) * t.dma_row_ns if s else 0.0
            for s in share
        ]
    )
    return Transfer(work, nbytes, total, _queue(destination, sources[0]), _mode(i, t))


def _shares(destination: Access, sources: list[Access], engines: int) -> list[float]:
    """The part of the transfer that each engine moves."""
    chip = next((a for a in (destination, *sources) if a.allocation.partitions), None)
    if chip is None:  # HBM to HBM: cut by bytes, at least 512 each
        used = max(1, min(engines, destination.nbytes // 512))
        return [1 / used if e < used else 0.0 for e in range(engines)]
    start = chip.start_partition + (chip.allocation.partition0 or 0)
    count = chip.shape[0]
    if start == 0 and count == PARTITIONS_PER_ENGINE * engines:
        return [1 / engines] * engines
    shares = [0.0] * engines
    for p in range(start, start + count):
        shares[p // PARTITIONS_PER_ENGINE % engines] += 1 / count
    return shares


def _runs(a: Access) -> int:
    """Descriptors an access needs: contiguous runs of HBM; on chip what breaks a partition up."""
    rows, _ = a.rows()
    if a.allocation.partitions:
        return rows if rows > a.shape[0] else 1
    if a.indirect == "vector":
        return max(rows, a.shape[0])
    return rows


def _queue(destination: Access, source: Access) -> str:
    """Loads, stores and moves wait in queues of their own."""
    if destination.allocation.partitions:
        return "move" if source.allocation.partitions else "load"
    return "store" if source.allocation.partitions else "copy"


def _mode(i: Instruction, t: Timing) -> str:
    """Who makes the descriptors: "none" (the host), "swdge" (GpSimd) or "hwdge".

    Left to the compiler, gen2 has static descriptors and later cores software ones; run-time row
    indices always take software (nki-dge.rst).
    """
    if any(a.indirect == "vector" for _, a in (*i.writes, *i.reads)):
        return "swdge"
    mode = i.attrs.get("dge_mode", "unknown")
    if mode == "unknown":
        return "none" if t.version == 2 else "swdge"
    return str(mode)
