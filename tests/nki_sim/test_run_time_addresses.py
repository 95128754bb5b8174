"""What is written and read at run-time addresses counts element by element, like the rest."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError, UnwrittenReadWarning
from nki_sim.kernel import Simulation
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim


def unwritten(kernel, *arrays) -> list[str]:
    """The reports of reads that nothing wrote."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(kernel, *arrays, target="trn2")
    assert all(w.category is UnwrittenReadWarning for w in found)
    return [str(w.message) for w in found]


def planes(count):
    """Write ``count`` of four planes of an on-chip tensor in a device loop, then read them all."""

    def kernel(x):
        source, tile = nl.load(x), nl.ndarray((8, 4, 6), nl.float32)
        nl.fori_loop(0, count, lambda i: nisa.tensor_copy(tile.select(1, i), source))
        nisa.tensor_copy(nl.ndarray((8, 4, 6), nl.float32), tile)

    return kernel


def test_planes_written_by_a_loop():
    assert unwritten(planes(4), normal(8, 6)) == []
    (report,) = unwritten(planes(3), normal(8, 6))
    assert "tensor_copy reads src" in report and "test_run_time_addresses.py:" in report


@pytest.mark.parametrize("plane", [1, 2])
def test_a_plane_read_by_a_register_or_a_tile(plane):
    def kernel(x, which):
        tile = nl.ndarray((8, 4, 6), nl.float32)
        nisa.tensor_copy(tile[:, 2, :], nl.load(x))
        register = nisa.register_alloc()
        index = nl.load(which)
        nisa.register_load(register, index)
        for at in (register, index):
            nisa.tensor_copy(nl.ndarray((8, 6), nl.float32), tile.select(1, at))

    found = unwritten(kernel, normal(8, 6), np.array([[plane]], np.int32))
    assert len(found) == (plane != 2)  # once a line
    assert all("scalar-indirect" in text for text in found)


@pytest.mark.parametrize(("row", "reports"), [(7, 0), (9, 1)])
def test_rows_that_are_gathered(row, reports):
    def kernel(x, index):
        table = nl.ndarray((32, 6), nl.float32, nl.shared_hbm)
        nisa.dma_copy(table[0:8], nl.load(x))
        rows = table.ap([[6, 4], [1, 6]], vector_offset=nl.load(index))
        nisa.dma_copy(nl.ndarray((4, 6), nl.float32), rows, oob_mode=nisa.oob_mode.skip)

    index = np.array([[1], [row], [99], [3]], np.int32)  # 99 is skipped
    assert len(unwritten(kernel, normal(8, 6), index)) == reports


def test_sums_in_psum_planes_chosen_at_run_time():
    def kernel(a):
        tile, sums = nl.load(a), nl.ndarray((5, 4, 6), nl.float32, nl.psum)

        def body(i):
            nisa.nc_matmul(sums.select(1, i), tile[:, 0:5], tile)
            nisa.nc_matmul(sums.select(1, i), tile[:, 0:5], tile)

        nl.fori_loop(0, 4, body)
        out = nl.ndarray((5, 4, 6), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, nl.copy(sums))
        return out

    x = normal(8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run(kernel, x)
    want = np.repeat((2 * x[:, :5].T @ x)[:, None], 4, axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("plane", "spoiled"), [(0, False), (3, True)])
def test_planes_of_placed_tensors(plane, spoiled):
    def kernel(x):
        tile = nl.ndarray((8, 4, 6), nl.float32, nl.sbuf, address=(0, 0))
        over = nl.ndarray((8, 6), nl.float32, nl.sbuf, address=(0, 72))  # plane 3
        for i in range(4):
            nisa.tensor_copy(tile[:, i], nl.load(x))
        nisa.memset(over, 0.0)
        at = nisa.register_alloc(plane)
        nisa.tensor_copy(nl.ndarray((8, 6), nl.float32), tile.select(1, at))

    if spoiled:
        with pytest.raises(RuleError, match=r"memory\.overlap"):
            run(kernel, normal(8, 6))
    else:
        run(kernel, normal(8, 6))


def test_addresses_that_a_launch_of_shapes_does_not_know_stay_quiet():
    def kernel(x, which):
        tile, index = nl.ndarray((8, 4, 6), nl.float32), nl.load(which)
        nisa.tensor_copy(tile.select(1, index), nl.load(x))
        nisa.tensor_copy(nl.ndarray((8, 4, 6), nl.float32), tile)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Simulation(kernel, "trn1", shapes_only=True)(normal(8, 6), np.array([[3]], np.int32))
