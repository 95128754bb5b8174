"""What a record asks of each resource at the very least, whatever the order of its instructions.

The largest is called ``busiest``. It is not a bound on the kernel's task: passes that a better
kernel would not make count as well.
"""

from __future__ import annotations

from nki_sim.memory import PSUM
from nki_sim.timeline.constants import Timing
from nki_sim.timeline.costs import stream_cycles, tensor_cycles
from nki_sim.trace import Instruction, Trace


def resources(trace: Trace, t: Timing) -> dict[str, float]:
    """us of each resource on the core that needs most of it: no fixed costs, no waiting.

    "dma" counts every byte of HBM once (what is touched first), at the rate of all DMA engines;
    "tensor" the documented cycles; "scalar", "vector" and "gpsimd" streamed elements; "psum port"
    (gen2) what VectorE and ScalarE stream through the port they share.
    """
    most: dict[str, float] = {}
    for core in range(max(1, trace.cores)):
        items = [i for i in trace.instructions if i.core == core]
        for name, ns in _of_core(items, t).items():
            most[name] = max(most.get(name, 0.0), ns / 1000)
    return most


def _of_core(items: list[Instruction], t: Timing) -> dict[str, float]:
    clocks = {"vector": t.vector_ghz, "scalar": t.scalar_ghz, "gpsimd": t.gpsimd_ghz}
    found = {"dma": first_touched(items) / t.dma_core_bytes_per_ns}
    for i in items:
        if i.engine == "tensor":
            ns = tensor_cycles(i, t) / t.tensor_ghz
        elif i.engine in clocks:
            ns = stream_cycles(i, t) / clocks[i.engine]
            if t.version == 2 and i.engine != "gpsimd" and _uses_psum(i):
                found["psum port"] = found.get("psum port", 0.0) + ns
        else:
            continue
        found[i.engine] = found.get(i.engine, 0.0) + ns
    return found


def first_touched(items: list[Instruction]) -> int:
    """Bytes of HBM that are read or written at least once, read and write counted apart.

    Of a tensor touched in many places at most its whole size counts, so that overlapping views are
    not counted twice.
    """
    touched: dict[tuple[int, bool], int] = {}
    size: dict[int, int] = {}
    seen: set[tuple[object, ...]] = set()
    for i in items:
        for is_write, operands in ((False, i.reads), (True, i.writes)):
            for _, a in operands:
                if a.allocation.partitions or i.engine != "dma":
                    continue
                n = a.allocation.id
                view = (n, is_write, a.offset, a.shape, a.strides)
                if view in seen:
                    continue
                seen.add(view)
                size[n] = a.allocation.nbytes
                touched[(n, is_write)] = touched.get((n, is_write), 0) + a.nbytes
    return sum(min(nbytes, size[n]) for (n, _), nbytes in touched.items())


def _uses_psum(i: Instruction) -> bool:
    return any(a.space is PSUM for _, a in (*i.writes, *i.reads))


def tensor_flops(trace: Trace) -> int:
    """Multiplications and additions of the record's matmuls, transposes left out."""
    total = 0
    for i in trace.instructions:
        if i.opcode == "nc_matmul" and not i.attrs["is_transpose"]:
            double = 2 if i.attrs["perf_mode"] == "double_row" else 1
            total += 2 * i.attrs["k"] * double * i.attrs["m"] * i.attrs["n"]
    return total
