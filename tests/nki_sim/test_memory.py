"""Fresh memory, reads of what nothing wrote, explicit placement, arguments in place."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import SimulatorError, Trace, UnwrittenReadWarning
from tests.nki_sim.helpers import BF16, normal, run

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("buffer", [nl.sbuf, nl.psum, nl.private_hbm, nl.shared_hbm])
def test_fresh_memory_is_nan_or_four(buffer):
    found = {}

    def kernel():
        for dtype in (nl.float32, nl.bfloat16, nl.float8_e4m3, nl.int32, nl.uint8):
            found[dtype] = nl.ndarray((4, 6), dtype, buffer).values.copy()

    run(kernel)
    for dtype, values in found.items():
        if dtype.is_float:
            assert np.isnan(values.astype(np.float32)).all()
        else:
            assert (values == 4).all()


def test_unwritten_reads_are_reported_with_their_instruction():
    def kernel():
        tile = nl.ndarray((8, 10), nl.float32, nl.sbuf, name="half")
        nisa.memset(tile[:, 0:5], 1.0)
        good = nl.ndarray((8, 5), nl.float32, nl.sbuf)
        nisa.tensor_copy(good, tile[:, 0:5])
        bad = nl.ndarray((8, 10), nl.float32, nl.sbuf)
        nisa.tensor_copy(bad, tile)

    trace = Trace()
    with pytest.warns(UnwrittenReadWarning, match=r"test_memory\.py:\d+: tensor_copy reads src"):
        run(kernel, trace=trace)
    (finding,) = trace.findings
    assert finding.kind == "unwritten-read" and "half" in finding.text
    assert trace.instructions[finding.index].opcode == "tensor_copy"


def test_no_false_alarm_once_all_parts_are_written():
    def kernel():
        tile = nl.ndarray((8, 10), nl.float32, nl.sbuf)
        for i in range(0, 10, 2):
            nisa.memset(tile[:, i : i + 2], 1.0)
        copy = nl.ndarray((8, 10), nl.float32, nl.sbuf)
        nisa.tensor_copy(copy, tile)
        as_bytes = nl.ndarray((8, 40), nl.uint8, nl.sbuf)
        nisa.tensor_copy(as_bytes[:, 0:20].view(nl.float32), tile[:, 0:5])
        nisa.tensor_copy(copy[:, 0:5], as_bytes[:, 0:20].view(nl.float32))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(kernel)


def test_unwritten_output_is_reported():
    def kernel():
        out = nl.ndarray((4, 4), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out[0:2], nl.zeros((2, 4), nl.float32))
        return out

    with pytest.warns(match="nothing wrote"):
        result = run(kernel)
    assert np.isnan(result[2:]).all() and (result[:2] == 0).all()


def test_explicit_addresses_alias():
    seen = {}

    def kernel():
        a = nl.ndarray((64, 8), nl.float32, nl.sbuf, address=(32, 128))
        b = nl.ndarray((32, 8), nl.int32, nl.sbuf, address=(64, 128))
        c = nl.ndarray((64, 8), nl.float32, nl.sbuf, address=(32, 4096))
        nisa.memset(a[0:64], 1.0)
        seen["b"], seen["c"] = b.values.copy(), c.values.copy()
        nisa.memset(b, 0)
        seen["a"] = a.values.copy()

    with pytest.raises(nki_sim.RuleError, match="start-partition"):
        run(kernel)

    def legal():
        a = nl.ndarray((64, 8), nl.float32, nl.sbuf, address=(64, 128))
        b = nl.ndarray((32, 8), nl.int32, nl.sbuf, address=(96, 128))
        c = nl.ndarray((64, 8), nl.float32, nl.sbuf, address=(64, 4096))
        nisa.memset(a, 1.0)
        seen["b"], seen["c"] = b.values.copy(), c.values.copy()
        nisa.memset(b, 0)
        seen["a"] = a.values.copy()

    run(legal)
    assert (seen["b"].view(np.float32) == 1).all()
    assert np.isnan(seen["c"]).all()
    assert (seen["a"][:32] == 1).all() and (seen["a"][32:] == 0).all()


def test_unwritten_reads_of_placed_tensors_are_reported():
    def kernel(rows):
        old = nl.ndarray((64, 8), nl.float32, nl.sbuf, address=(0, 128))
        nisa.memset(old, 1.0)
        new = nl.ndarray((64, 4), nl.float32, nl.sbuf, address=(0, 144))  # old's bytes, not its own
        nisa.memset(new[0:rows], 2.0)
        copy = nl.ndarray((64, 4), nl.float32, nl.sbuf)
        nisa.tensor_copy(copy, new)

    with pytest.warns(nki_sim.errors.UnwrittenReadWarning, match="tensor_copy reads src"):
        run(kernel, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(kernel, 64)


def test_arguments_are_written_in_place():
    x = normal(8, 4)
    want = x * 2

    def kernel(a):
        tile = nl.load(a)
        nisa.tensor_scalar(tile, tile, nl.multiply, 2.0)
        nisa.dma_copy(a, tile)
        return a

    result = run(kernel, x)
    assert result is x
    np.testing.assert_array_equal(x, want)


def test_non_contiguous_arguments_are_written_back():
    base = normal(8, 8)
    x = base[:, ::2]
    want = x + 1

    def kernel(a):
        nisa.dma_copy(a, nl.add(nl.load(a), 1.0))

    run(kernel, x)
    np.testing.assert_array_equal(base[:, ::2], want)


def test_read_only_arguments_cannot_be_written():
    x = normal(4, 4)
    x.flags.writeable = False

    def kernel(a):
        nisa.dma_copy(a, nl.load(a))

    with pytest.raises(SimulatorError, match="read-only"):
        run(kernel, x)


def test_torch_tensors_in_and_out():
    torch = pytest.importorskip("torch")

    def kernel(a, b):
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nl.store(out, nl.add(nl.load(a), nl.load(b)))
        nisa.dma_copy(b, nl.zeros(b.shape, b.dtype))
        return out, a

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.float8_e5m2):
        a = torch.arange(12).reshape(3, 4).to(dtype)
        b = torch.ones(3, 4).to(dtype)
        out, same = nki_sim.simulate(kernel, target="trn1")(a, b)
        assert out.dtype == dtype and same is a
        assert torch.equal(out.float(), (a.float() + 1).to(dtype).float())
        assert not b.float().any()


def test_numpy_dtypes_in_and_out():
    def kernel(a):
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        nl.store(out, nl.load(a))
        return out

    for dtype in (np.float32, np.float16, BF16, np.int8, np.uint16, np.bool_):
        x = (normal(5, 6) > 0).astype(dtype)
        y = run(kernel, x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(x, y)
    for dtype in (np.float64, np.int64):
        with pytest.raises(TypeError, match="argument a"):
            run(kernel, np.zeros((2, 2), dtype))


def test_tuples_scalars_and_nothing():
    def kernel(pair, n, flag=False, *, scale=1.0):
        assert flag is True and n == 3 and scale == 2.5
        out = nl.ndarray(pair[0].shape, nl.float32, nl.shared_hbm)
        nl.store(out, nl.multiply(nl.add(nl.load(pair[0]), nl.load(pair[1])), scale))
        return out

    x, y = normal(4, 4), normal(4, 4, seed=1)
    got = nki_sim.simulate(kernel, target="trn1")((x, y), np.int64(3), True, scale=2.5)
    np.testing.assert_array_equal(got, (x + y) * np.float32(2.5))
    assert run(lambda: None) is None


def test_named_tuples_and_dictionaries_come_back():
    class Pair(NamedTuple):
        a: object
        b: object

    def kernel(x):
        return Pair(x, {"twice": x})

    x = normal(2, 2)
    result = run(kernel, x)
    assert isinstance(result, Pair) and result.a is x and result.b["twice"] is x


def test_outside_a_kernel_there_is_no_core():
    with pytest.raises(SimulatorError, match="no kernel is running"):
        nl.ndarray((2, 2), nl.float32)
