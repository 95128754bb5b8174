"""What one instruction costs its engine: the published cost formulas, over recorded shapes.

The formulas are those of the paragraphs "Estimated instruction cost" in the NKI documentation up to
SDK 2.26 (commit 49ee15c5 of aws-neuron-sdk, nki/api/nki/isa), with the vector performance mode of
trainium2_arch.rst. N is elements a partition. Every cost is in ns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nki_sim.memory import PSUM, SBUF
from nki_sim.timeline.constants import Timing
from nki_sim.trace import Access, Instruction

PSUM_PORT = 1
"""VectorE and ScalarE cannot access PSUM in parallel on gen2 (trainium_inferentia2_arch.rst)."""
SBUF_PORT = 2
"""VectorE and GpSimd cannot access SBUF in parallel on gen2 (the same list)."""

HALF = ("bfloat16", "float16")
RESIDENT_FUNCTIONS = ("copy", "square", "relu", "prelu", "abs", "sign", "identity")
"""Assumed to be in every activation table, so that they never reload one."""


class Cost(NamedTuple):
    """ns an instruction keeps its engine, ns more until a dependent instruction on the same engine
    or another one may start (the other one waits for a semaphore too), and the ports it holds."""

    busy: float
    same: float
    other: float
    ports: int


def cost(i: Instruction, t: Timing) -> Cost:
    """Cost of an instruction of a compute engine or sequencer.

    Raises:
        NotImplementedError: for an instruction without a cost model.
    """
    if i.engine == "tensor":
        return _tensor(i, t)
    if i.opcode == "core_barrier":
        return Cost(t.barrier_ns, 0.0, 0.0, 0)
    if i.engine == "sync":
        return Cost(t.min_cycles / t.gpsimd_ghz, 0.0, 0.0, 0)
    stream = _STREAMS.get(i.opcode)
    if stream is None:
        raise NotImplementedError(f"the timeline has no cost for nki.isa.{i.opcode}")
    cycles = stream(i, t)
    if any(a.indirect for _, a in (*i.writes, *i.reads)):
        cycles = max(cycles, t.dynamic_cycles)
    if t.version == 2 and _wide_stride(i):
        cycles *= 2
    ports = _ports(i, t)
    if i.engine == "gpsimd":
        busy = (t.gpsimd_start_cycles + cycles * t.gpsimd_stream) / t.gpsimd_ghz
        return Cost(busy, 0.0, 0.0, ports)
    if i.engine == "scalar":
        read_out = t.accumulator_cycles if any(n == "reduce_res" for n, _ in i.writes) else 0.0
        busy = max(t.min_cycles, t.scalar_issue_cycles + cycles * t.scalar_stream) + read_out
        # Documented for a chain on ScalarE itself; another engine waits for the semaphore instead.
        return Cost(busy / t.scalar_ghz, t.scalar_dependent_cycles / t.scalar_ghz, 0.0, ports)
    busy = max(t.min_cycles, t.vector_issue_cycles + cycles * t.vector_stream)
    wait = t.vector_dependent_cycles / t.vector_ghz
    return Cost(busy / t.vector_ghz, wait, wait, ports)


def _tensor(i: Instruction, t: Timing) -> Cost:
    """Σ max(64, N) cycles, four passes in fp32; the next weights load in the background."""
    if i.opcode == "nc_matmul":
        n = i.attrs["n"]
        wide = i.operand("moving").dtype == "float32"
        passes = 4 if wide else 1
        if wide and any(i.attrs["onezero"]):
            passes = 2
        if wide and i.attrs["is_transpose"] and t.version >= 3:
            passes = 2
    elif i.opcode == "nc_transpose":
        n = max(i.attrs["p"], min(64, i.attrs["f"]))
        wide = i.operand("data").dtype.itemsize == 4
        passes = 1 if not wide else 4 if t.version == 2 else 2
    else:
        raise NotImplementedError(f"the timeline has no cost for nki.isa.{i.opcode} on TensorE")
    issued = 2 if passes > 1 else 1  # fp32 shows as two hardware instructions in AWS's profile
    cycles = passes * max(n, t.tensor_min_cycles) / t.tensor_sustained
    busy = (cycles + issued * t.tensor_issue_cycles) / t.tensor_ghz
    return Cost(busy, 0.0, t.tensor_latency_cycles / t.tensor_ghz, 0)


def tensor_cycles(i: Instruction, t: Timing) -> float:
    """TensorE cycles of the documented formula alone: passes x max(64, N)."""
    ideal = t.with_(tensor_sustained=1.0, tensor_issue_cycles=0.0)
    return _tensor(i, ideal).busy * t.tensor_ghz


def stream_cycles(i: Instruction, t: Timing) -> float:
    """Cycles that VectorE, ScalarE or GpSimd stream elements, without fixed costs."""
    stream = _STREAMS.get(i.opcode)
    return 0.0 if stream is None else stream(i, t)


def _ports(i: Instruction, t: Timing) -> int:
    if t.version > 2:
        return 0
    spaces = {a.space for _, a in (*i.writes, *i.reads)}
    ports = 0
    if i.engine in ("vector", "scalar") and PSUM in spaces:
        ports |= PSUM_PORT
    if i.engine in ("vector", "gpsimd") and SBUF in spaces:
        ports |= SBUF_PORT
    return ports


def _wide_stride(i: Instruction) -> bool:
    """gen2 streams at half rate where the innermost stride is above 16 bytes (arch guide)."""
    for _, a in (*i.writes, *i.reads):
        if not a.allocation.partitions or len(a.shape) < 2 or a.shape[-1] == 1:
            continue
        if abs(a.strides[-1]) * a.dtype.itemsize > 16:
            return True
    return False


# ---------------------------------------------------------------------- elements to cycles


def _main(i: Instruction) -> list[Access]:
    """Operands that stream as many elements as the instruction, scalars and columns left out."""
    return [a for _, a in i.reads if a.free_size == i.free and (i.free > 1 or len(i.reads) == 1)]


def _half(accesses: list[Access]) -> bool:
    return all(a.dtype in HALF for a in accesses)


def _dense(a: Access) -> bool:
    return len(a.shape) < 2 or a.shape[-1] == 1 or a.strides[-1] == 1


def _copy(i: Instruction, t: Timing) -> float:
    """tensor_copy, tensor_scalar: N; performance mode N/4 or N/2 on gen3's VectorE."""
    if t.version < 3 or i.engine != "vector":
        return i.free
    both = [*_main(i)[:1], *[a for _, a in i.writes]]
    if not _half(both):
        return i.free
    in_sbuf = all(a.space is SBUF for a in both)
    return i.free / 4 if in_sbuf and all(_dense(a) for a in both) else i.free / 2


def _tensor_tensor(i: Instruction, t: Timing) -> float:
    inputs = [a for _, a in i.reads][:2]
    in_psum = sum(a.space is PSUM for a in inputs)
    everything = [*inputs, *[a for _, a in i.writes]]
    if in_psum == 1:
        return i.free
    if t.version >= 3 and _half(everything):
        return i.free
    fast = i.attrs.get("op") in ("add", "multiply", "subtract") and all(map(_dense, everything))
    if fast and all(a.dtype == "bfloat16" for a in everything):
        return i.free
    return 2 * i.free


def _scalar_tensor_tensor(i: Instruction, t: Timing) -> float:
    inputs = [i.operand("data"), i.operand("operand1")]
    fast = (i.attrs["op0"], i.attrs["op1"]) == ("subtract", "multiply") and i.free % 2 == 0
    return i.free if fast and all(a.dtype == "bfloat16" for a in inputs) else 2 * i.free


def _predicated(i: Instruction, t: Timing) -> float:
    tiles = [a for n, a in i.reads if n in ("src", "predicate")]
    if len(tiles) < 2 or sum(a.space is PSUM for a in tiles) == 1:
        return i.free
    return 2 * i.free


def _reduce(i: Instruction, t: Timing) -> float:
    both = [a for _, a in (*i.writes, *i.reads)]
    fast = i.attrs.get("op") in ("add", "maximum")
    return i.free / 2 if fast and all(a.dtype == "bfloat16" for a in both) else i.free


def _memset(i: Instruction, t: Timing) -> float:
    fast = i.attrs.get("value") == 0 and i.writes[0][1].dtype in HALF
    return i.free / 2 if fast else i.free


def _plain(factor: float, extra: float = 0.0) -> Callable[[Instruction, Timing], float]:
    def cycles(i: Instruction, t: Timing) -> float:
        return factor * i.free + extra

    return cycles


def _activation(i: Instruction, t: Timing) -> float:
    if t.version >= 4 and _half([a for n, a in (*i.writes, *i.reads) if n in ("dst", "data")]):
        return i.free / 2
    return i.free


def _read_out(i: Instruction, t: Timing) -> float:
    return i.free + t.accumulator_cycles


def _gather(i: Instruction, t: Timing) -> float:
    """local_gather; the published formula divides by C, a multiplication gives sane values."""
    size = i.attrs["num_elem_per_idx"]
    item = i.operand("src_buffer").dtype.itemsize
    c = ((28 + 4 * size) / (4 * size)) / min(4 / item, size)
    return float(i.attrs["num_valid_indices"] * size * c)


def _scan(i: Instruction, t: Timing) -> float:
    return 2 * i.free * t.scan_stream


def _topk(i: Instruction, t: Timing) -> float:
    return 4.0 * i.attrs["n"] + i.attrs["k"]


_STREAMS: dict[str, Callable[[Instruction, Timing], float]] = {
    "tensor_copy": _copy,
    "tensor_scalar": _copy,
    "tensor_tensor": _tensor_tensor,
    "scalar_tensor_tensor": _scalar_tensor_tensor,
    "tensor_copy_predicated": _predicated,
    "select_reduce": _plain(2),  # two inputs; no formula published
    "range_select": _plain(1),
    "tensor_reduce": _reduce,
    "tensor_scalar_reduce": _read_out,
    "tensor_scalar_cumulative": _plain(1),
    "tensor_tensor_scan": _scan,
    "memset": _memset,
    "reciprocal": _plain(8),
    "bn_stats": _plain(1),
    "bn_aggr": _plain(13 / 3),
    "dropout": _plain(1),
    "rng": _plain(1),
    "set_rng_seed": _plain(1),
    "rand_set_state": _plain(1),
    "rand_get_state": _plain(1),
    "nc_stream_shuffle": _plain(1),
    "nc_transpose": _plain(1),
    # nki-library's rotational top-k counts V + 144 cycles, of which 60 are the access.
    "max8": _plain(1, 84),
    "nc_find_index8": _plain(1, 84),
    "nc_match_replace8": _plain(1, 84),
    "activation": _activation,
    "activation_reduce": _activation,
    "activate2": _activation,
    "exponential": _plain(1 / 4),  # about four times activation(exp) (trainium3_arch.rst)
    "quantize_mx": _plain(1 / 4),  # four elements a cycle (trainium3_arch.rst)
    "rand2": _plain(1),
    "iota": _plain(1),
    "affine_select": _plain(1),
    "local_gather": _gather,
    "nc_n_gather": _plain(1),
    "nonzero_with_count": _plain(1),
    "sequence_bounds": _plain(1),
    "tensor_partition_reduce": _plain(1),
    "topk": _topk,
    "sendrecv": _plain(1),
}
