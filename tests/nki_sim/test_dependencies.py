"""The dependency graph against one that is made byte by byte, on random accesses and on kernels."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import SimulatorError, Trace
from nki_sim.dependencies import Dependencies, dependencies
from nki_sim.dtypes import as_dtype
from nki_sim.kernel import jit
from nki_sim.memory import PSUM, SBUF, SHARED_HBM, Allocation
from nki_sim.trace import Access, Instruction
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim

BYTE, WORD = as_dtype("uint8"), as_dtype("float32")


def touched(access: Access) -> tuple[object, set[int]]:
    """(memory, addresses) of an access, one byte at a time."""
    a = access.allocation
    if access.indirect is not None:
        at = np.arange(a.nbytes)
    else:
        at = np.array([access.offset])
        for n, s in zip(access.shape, access.strides, strict=True):
            at = (at[:, None] + np.arange(n) * s).reshape(-1)
        item = access.dtype.itemsize
        at = (at[:, None] * item + np.arange(item)).reshape(-1)
    if a.byte0 is None:
        return a.id, set(at.tolist())
    partition, byte = np.divmod(at, a.partition_bytes)
    return a.space, set(((partition + a.partition0) * 10**6 + byte + a.byte0).tolist())


def compare(trace: Trace) -> tuple[int, int]:
    """(pairs that share bytes and are not ordered, memory edges between pairs that do not)."""
    found = dependencies(trace)
    ancestors: list[int] = []  # as bit sets
    accesses = [
        ([touched(a) for _, a in i.reads], [touched(a) for _, a in i.writes]) for i in trace
    ]
    missing = wrong = 0
    for i, (reads, writes) in enumerate(accesses):
        mine = 0
        for p, _ in found.before[i]:
            mine |= ancestors[p] | 1 << p
        ancestors.append(mine)
        shared = set()
        for j in range(i):
            for ours, theirs in (
                (reads, accesses[j][1]), (writes, accesses[j][1]), (writes, accesses[j][0]),
            ):  # fmt: skip
                if any(m == n and x & y for m, x in ours for n, y in theirs):
                    shared.add(j)
        missing += sum(not mine >> j & 1 for j in shared)
        memory = {p for p, kind in found.before[i] if kind in ("true", "anti", "output")}
        wrong += len(memory - shared)
    return missing, wrong


def synthetic(operands) -> Trace:
    """A record of instructions that only touch memory: [(reads, writes), ...]."""
    trace = Trace()
    for k, (reads, writes) in enumerate(operands):
        trace.instructions.append(
            Instruction(
                k, 0, "vector", "made_up", tuple(("dst", w) for w in writes),
                tuple(("src", r) for r in reads), 1, {}, None, None, 0,
            )
        )  # fmt: skip
    return trace


@st.composite
def an_access(draw, allocations):
    a = draw(st.sampled_from(allocations))
    if draw(st.integers(0, 19)) == 0:
        return Access(a, WORD, 0, a.shape, (1,) * len(a.shape), "vector")
    dtype = draw(st.sampled_from([BYTE, WORD]))
    if a.partitions:
        pitch = a.partition_bytes // dtype.itemsize
        p = draw(st.integers(0, a.partitions - 1))
        shape, strides = [draw(st.integers(1, a.partitions - p))], [pitch]
        offset, size = p * pitch, pitch
    else:
        shape, strides, offset, size = [], [], 0, a.nbytes // dtype.itemsize
    start = draw(st.integers(0, size - 1))
    room = size - 1 - start
    for _ in range(draw(st.integers(1, 3))):
        stride = draw(st.integers(0, 9)) if draw(st.booleans()) else draw(st.sampled_from([1, 4]))
        n = draw(st.integers(1, 1 + room // stride)) if stride else draw(st.integers(1, 3))
        room -= stride * (n - 1)
        shape.append(n)
        strides.append(stride)
    return Access(a, dtype, offset + start, tuple(shape), tuple(strides))


@st.composite
def a_record(draw):
    allocations = [
        Allocation(0, SBUF, (3, 4, 6), BYTE, ""),
        Allocation(1, SHARED_HBM, (5, 3, 2), WORD, ""),
        Allocation(2, PSUM, (4, 8), WORD, "", address=(0, 0)),
        Allocation(3, PSUM, (3, 10), WORD, "", address=(2, 16)),
    ]
    operands = st.lists(an_access(allocations), max_size=2)
    return synthetic(draw(st.lists(st.tuples(operands, operands), min_size=2, max_size=40)))


@settings(max_examples=60, deadline=None)
@given(a_record())
def test_random_accesses_are_ordered_exactly_where_they_share_bytes(trace):
    assert compare(trace) == (0, 0)


def test_many_accesses_to_one_tensor():
    a = Allocation(0, SBUF, (4, 30, 8), WORD, "")
    b = Allocation(1, SHARED_HBM, (40, 33), WORD, "")
    rng = np.random.default_rng(0)

    def block(t):
        p, q = (rng.integers(0, n) for n in t.shape[:2])
        m, n = rng.integers(1, t.shape[0] - p + 1), rng.integers(1, t.shape[1] - q + 1)
        if t is a:
            return Access(t, WORD, p * 240 + q * 8, (m, min(n, 2), 8), (240, 8, 1))
        return Access(t, WORD, p * 33 + q, (min(m, 2), min(n, 2)), (33, 1))

    tensors = [a, b]
    trace = synthetic(
        [([block(tensors[rng.integers(2)])], [block(tensors[rng.integers(2)])]) for _ in range(400)]
    )
    assert compare(trace) == (0, 0)


def edges(body, *arrays, **options):
    trace = Trace()
    run(body, *arrays, trace=trace, **options)
    return [[tuple(d) for d in deps] for deps in dependencies(trace).before]


def test_accumulation_reads_what_it_adds_to():
    def kernel():
        a, b = nl.zeros((16, 32), nl.float32), nl.zeros((16, 8), nl.float32)  # 0, 1
        out = nl.ndarray((32, 8), nl.float32, nl.psum)
        nisa.nc_matmul(out, a, b)  # 2
        nisa.nc_matmul(out, a, b)  # 3 adds
        nisa.nc_matmul(out, a, b, accumulate=False)  # 4 overwrites

    found = edges(kernel)
    assert found[2] == [(0, "true"), (1, "true")]
    assert found[3] == [(0, "true"), (1, "true"), (2, "true")]
    assert found[4] == [(0, "true"), (1, "true"), (3, "output")]


def test_registers_and_run_time_addresses():
    def kernel(a, n):
        tile = nl.load(n)  # 0
        at = nisa.register_alloc()
        nisa.register_load(at, tile)  # 1
        row = nl.ndarray((1, 4), nl.float32)
        nisa.dma_copy(row, a.ap([[4, 1], [1, 4]], scalar_offset=at, indirect_dim=0))  # 2
        nisa.register_load(at, tile)  # 3
        nisa.dma_copy(a[0:1], row)  # 4 may overwrite what 2 read

    found = edges(kernel, normal(4, 4), np.array([[2]], np.int32))
    assert found[2] == [(1, "true")] and found[4] == [(2, "true")]
    assert found[3] == [(0, "true"), (1, "true"), (2, "anti")]


def test_a_dynamic_loop_reuses_its_body_s_tensors():
    def body_of(loop):
        def kernel(a):
            out = nl.ndarray((6, 4), nl.float32, nl.shared_hbm)

            def body(i):
                t = nl.ndarray((1, 4), nl.float32)
                nisa.dma_copy(t, a[0:1])
                nisa.dma_copy(out[nl.ds(i, 1)], t)

            loop(body)
            return out

        return kernel

    fixed = edges(body_of(lambda body: [body(i) for i in range(6)]), normal(6, 4))
    assert fixed == [[], [(0, "true")], [], [(2, "true")], *fixed[4:]]
    device = edges(body_of(lambda body: nl.fori_loop(0, 6, body)), normal(6, 4))
    assert device[2] == [(0, "output"), (1, "anti")]


def test_an_exchange_completes_with_its_second_half():
    @jit
    def kernel(a):
        me = nl.program_id(0)
        mine, theirs = nl.load(a[nl.ds(me, 1)]), nl.ndarray((1, 4), nl.float32)
        nisa.sendrecv(mine, theirs, 1 - me, 1 - me, 0)
        nisa.tensor_copy(nl.ndarray((1, 4), nl.float32), theirs)

    trace = Trace()
    nki_sim.simulate(kernel[2], target="trn2", trace=trace)(normal(2, 4))
    found = dependencies(trace)
    first, second = (i.index for i in trace if i.opcode == "sendrecv")
    assert (first, "barrier") in found[second]
    copies = [i.index for i in trace if i.opcode == "tensor_copy"]
    assert len(copies) == 2 and all(found[i] == ((second, "true"),) for i in copies)


def test_a_long_record_is_quick():
    count = 20_000
    out = Allocation(0, SHARED_HBM, (128 * 100, 4096), WORD, "")
    held = Allocation(1, SBUF, (128, 64, 64), WORD, "")
    operands = []
    for k in range(count // 2):
        block = Access(held, WORD, k % 64 * 64, (128, 64), (4096, 1))
        column = Access(out, WORD, k // 100 * 8 + k % 100 * 128 * 4096, (128, 8), (4096, 1))
        operands += [([], [block]), ([block], [column])]
    trace = synthetic(operands)
    start = time.process_time()
    found = dependencies(trace)
    seconds = time.process_time() - start
    assert isinstance(found, Dependencies) and len(found) == count
    # every store reads its block; a load but the first 64 overwrites one that was stored
    assert found.edges == count // 2 + 2 * (count // 2 - 64)
    assert seconds < 6


def test_two_launches_in_one_record_are_refused():
    trace = Trace()
    for _ in range(2):
        run(lambda a: nisa.dma_copy(a, a) and None, normal(2, 2), trace=trace)
    with pytest.raises(SimulatorError, match="more than one launch"):
        dependencies(trace)
