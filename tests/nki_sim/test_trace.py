"""The record: what an instruction leaves behind must be enough for a timeline."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError, Trace
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim


def test_instructions_name_engine_operands_bytes_and_line():
    def kernel(a):
        tile = nl.ndarray((16, 40), nl.float32, nl.sbuf, name="tile")
        nisa.dma_copy(dst=tile, src=a[:, 8:48], name="first")
        scaled = nl.ndarray((16, 40), nl.bfloat16, nl.sbuf)
        nisa.tensor_scalar(scaled, tile, nl.multiply, 2.0)
        column = nl.zeros((16, 1), nl.float32)
        nisa.activation(scaled, nl.exp, tile, bias=column)
        psum = nl.ndarray((40, 40), nl.float32, nl.psum)
        nisa.nc_matmul(psum, scaled, scaled)
        return None

    trace = Trace()
    run(kernel, normal(16, 64), trace=trace)
    dma, scalar, memset, act, matmul = trace
    assert [i.engine for i in trace] == ["dma", "vector", "vector", "scalar", "tensor"]
    assert [i.index for i in trace] == [0, 1, 2, 3, 4]
    assert dma.name == "first" and dma.dma_bytes == 16 * 40 * 4 == trace.dma_bytes
    source = dma.operand("src")
    assert source.allocation.argument and source.allocation.name == "a"
    assert (source.offset, source.shape, source.strides) == (8, (16, 40), (64, 1))
    assert source.rows() == (16, 160) and source.extent() == (0, 1, 32, (15 * 64 + 48) * 4)
    tile = dma.operand("dst")
    assert tile.rows() == (16, 160) and tile.extent() == (0, 16, 0, 160)
    assert scalar.operand("data").allocation is tile.allocation
    assert scalar.attrs["op0"] == "multiply" and scalar.attrs["operand0"] == 2.0
    assert scalar.operand("dst").dtype == nl.bfloat16 and scalar.free == 40
    assert act.operand("bias").shape == (16, 1) and memset.attrs["value"] == 0
    assert (matmul.attrs["k"], matmul.attrs["m"], matmul.attrs["n"]) == (16, 40, 40)
    file, line = matmul.source
    assert file == __file__
    lines = {i.source[1] for i in trace}
    assert len(lines) == 5 and line == max(lines)
    assert "nc_matmul" in repr(matmul) and "test_trace.py" in repr(matmul)
    with pytest.raises(KeyError):
        matmul.operand("nothing")


def test_rows_of_strided_and_transposed_accesses():
    def kernel(a):
        tile = nl.ndarray((8, 24), nl.float32, nl.sbuf)
        nisa.dma_copy(tile.reshape((8, 4, 6)), a.rearrange(("k", "j", "p"), ("p", "k", "j")))
        nisa.dma_copy(tile[:, 0:24:2], a.ap([[1, 8], [8, 12]]))
        nisa.dma_copy(tile, a.ap([[24, 8], [1, 24]]))

    trace = Trace()
    run(kernel, normal(4, 6, 8), trace=trace)
    transposed, strided, dense = (i.operand("src").rows() for i in trace)
    assert transposed == (192, 4) and strided == (96, 4) and dense == (1, 768)
    assert trace.instructions[1].operand("dst").rows() == (96, 4)


def test_dependencies_can_be_declared():
    def kernel():
        a, b = nl.ndarray((4, 4), nl.float32), nl.ndarray((4, 4), nl.float32)
        first = nisa.memset(a, 0.0)
        second = nisa.memset(b, 0.0)
        assert second.depends_on(first) is second
        with pytest.raises(TypeError):
            second.depends_on(3)

    trace = Trace()
    run(kernel, trace=trace)
    assert trace.instructions[1].after == (0,)


def test_a_declared_dependency_does_not_leave_a_dynamic_loop():
    def kernel(out_of):
        a, b, c = (nl.ndarray((4, 4), nl.float32) for _ in range(3))
        inside = []
        first = nisa.memset(a, 0.0)

        def body(i):
            inside.append(nisa.memset(b, 0.0).depends_on(first))
            nisa.memset(c, 0.0).depends_on(inside[-1])

        nl.fori_loop(0, 2, body)
        if out_of:
            nisa.memset(a, 1.0).depends_on(inside[-1])

    run(kernel, False)
    with pytest.raises(RuleError, match=r"loop\.depends-on") as caught:
        run(kernel, True)
    assert str(caught.value).count("memset") == 2


def test_a_trace_does_not_keep_the_memory():
    import gc

    from nki_sim.memory import Storage

    def kernel():
        for _ in range(10):
            nl.zeros((128, 1024), nl.float32)

    trace = Trace()
    run(kernel, trace=trace)
    gc.collect()
    assert len(trace) == 10
    assert not any(type(o) is Storage for o in gc.get_objects())


def test_simulations_in_two_threads_do_not_mix():
    def kernel(a):
        assert nisa.get_nc_version() == (
            nisa.nc_version.gen2 if a.shape[0] == 3 else nisa.nc_version.gen3
        )
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        for _ in range(100):
            nl.store(out, nl.add(nl.load(a), 1.0))
        return out

    results = {}

    def work(target, rows):
        trace = Trace()
        x = normal(rows, 5)
        y = nki_sim.simulate(kernel, target=target, trace=trace)(x)
        results[target] = (len(trace), bool(np.array_equal(y, x + 1)), trace.target)

    threads = [threading.Thread(target=work, args=a) for a in (("trn1", 3), ("trn2", 4))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {"trn1": (300, True, "gen2"), "trn2": (300, True, "gen3")}
