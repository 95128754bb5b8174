"""Random kernels on every generation, on one core and on two: what a report says always adds up."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.timeline import faster, profile
from nki_sim.timeline.critical import critical_path
from nki_sim.timeline.profiling import ENOUGH_ROWS, VALIDATION_ROWS
from tests.nki_sim.timeline import kernels as k

pytestmark = pytest.mark.sim

FP32, BF16 = np.float32, ml_dtypes.bfloat16
COLUMNS = 256

STEPS = (
    "load", "store", "move", "add", "scale", "exp", "sum", "matmul", "transpose", "iota", "memset",
    "barrier",
)  # fmt: skip


class Counted:
    """A kernel made of a list of steps; every core does all of them on its own rows."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        self.steps = steps
        self.moved = 0  # bytes that DMA writes, counted here and not by the simulator

    def copy(self, dst: Any, src: Any) -> None:
        nisa.dma_copy(dst, src)
        self.moved += int(np.prod(dst.shape)) * np.dtype(dst.dtype).itemsize

    def run(self, x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        first = nl.program_id(0) * 128
        mine = slice(first, first + 128)
        at = nl.ndarray((128, COLUMNS), x.dtype, nl.sbuf)
        self.copy(at, x[mine, :])
        for step, width in self.steps:
            new = nl.ndarray((128, COLUMNS), x.dtype, nl.sbuf)
            if step == "load":
                nisa.memset(new, 0.0)
                self.copy(new[:, 0:width], x[mine, 0:width])
            elif step == "store":
                self.copy(out[mine, 0:width], at[:, 0:width])
                continue
            elif step == "move":
                self.copy(new, at)
            elif step == "add":
                nisa.tensor_tensor(new, at, at, nl.add)
            elif step == "scale":
                nisa.tensor_scalar(new, at, nl.multiply, 0.5)
            elif step == "exp":
                nisa.activation(new, nl.exp, at)
            elif step == "sum":
                total = nl.ndarray((128, 1), nl.float32, nl.sbuf)
                nisa.tensor_reduce(total, nl.add, at[:, 0:width], axis=1)
                nisa.tensor_scalar(new, at, nl.add, total)
            elif step == "matmul":
                product = nl.ndarray((128, COLUMNS), nl.float32, nl.psum)
                nisa.nc_matmul(product, at[:, 0:128], at)
                nisa.tensor_copy(new, product)
            elif step == "transpose":
                turned = nl.ndarray((128, 128), x.dtype, nl.psum)
                nisa.nc_transpose(turned, at[:, 0:128])
                nisa.memset(new, 0.0)
                nisa.tensor_copy(new[:, 0:128], turned)
            elif step == "iota":
                numbers = nl.ndarray((128, COLUMNS), nl.int32, nl.sbuf)
                nisa.iota(numbers, [[1, COLUMNS]], offset=0)
                nisa.tensor_tensor(new, at, numbers, nl.add)
            elif step == "memset":
                nisa.memset(new, 1.0)
            else:
                nisa.core_barrier(out, tuple(range(nl.num_programs(0))))
                continue
            at = new
        self.copy(out[mine, :], at)
        return out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from((1, 8, 100, COLUMNS)))),
    where=st.sampled_from(
        (("trn1", 1), ("inf2", 1), ("trn2", 1), ("trn2", 2), ("trn3", 1), ("trn3", 2))
    ),
    dtype=st.sampled_from((FP32, BF16)),
)
def test_what_a_report_says_adds_up(
    steps: list[tuple[str, int]], where: tuple[str, int], dtype: Any
) -> None:
    target, lnc = where
    if lnc == 1:
        steps = [s for s in steps if s[0] != "barrier"]
    counted = Counted(steps)

    def kernel(x: Any) -> Any:
        return counted.run(x)

    p = profile(kernel, np.empty((128 * lnc, COLUMNS), dtype), target=target, lnc=lnc,
                shapes_only=True)  # fmt: skip
    assert p.bytes == counted.moved
    assert p.bandwidth * p.total_us * 1000 == pytest.approx(p.bytes)
    for name, lane in p.engines.items():
        assert lane.busy + lane.stalled + lane.idle == pytest.approx(p.total_us), name
        assert sum(lane.stalls.values()) == pytest.approx(lane.stalled, abs=1e-6), name
        assert min(lane.busy, lane.stalled, lane.idle, *lane.stalls.values(), 0.0) >= -1e-6, name
    assert sum(lane.instructions for lane in p.engines.values()) == p.instructions
    assert sum(step.us for step in p.critical_path) == pytest.approx(p.total_us)
    assert len(critical_path(p.trace, p.schedule)) <= 2 * p.instructions
    assert p.resources[p.busiest] <= p.total_us * (1 + 1e-9)
    assert p.sbuf_peak <= p.sbuf_capacity and p.psum_peak <= p.psum_capacity
    cores = {name[0] for name in p.engines if name[0].isdigit()}
    assert cores == ({"1"} if lnc == 2 else set())


def test_two_cores_each_have_engines_and_queues_of_their_own() -> None:
    p = profile(k.halves, np.empty((512, 256), FP32), target="trn2", lnc=2, shapes_only=True)
    assert {"dma", "1 dma", "scalar", "1 scalar"} <= set(p.engines)
    assert p.engines["dma"].busy == pytest.approx(p.engines["1 dma"].busy)


# ---------------------------------------------------------------------- what is called certain


def test_certain_means_at_both_ends() -> None:
    x = np.empty((128, 512), FP32)
    psum = profile(k.vector_add, x, True, shapes_only=True)
    sbuf = profile(k.vector_add, x, False, shapes_only=True)
    assert faster(psum, sbuf) == (True, True)
    assert faster(sbuf, psum) == (False, True)
    # Rows of 256 bytes cost gen2 3 ns or 93: their copy beats VectorE's work, but not for sure.
    rows = profile(k.copy_rows, np.empty((256, 4096), FP32), 64, shapes_only=True)
    work = profile(k.vector_pieces, np.empty((128, 16384), FP32), 64, shapes_only=True)
    assert rows.total_us < work.low_us < work.high_us < rows.high_us
    assert faster(rows, work) == (True, False)
    assert faster(work, rows) == (False, False)


def test_a_bound_that_differs_at_the_ends_is_not_certain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Small rows cost 3 or 93 ns on gen2: VectorE or DMA limits this kernel."""

    def kernel(x: Any) -> Any:
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        for c in range(0, x.shape[1], 128):
            made = k.tile(x[:, c : c + 128])
            for _ in range(4):
                nisa.tensor_scalar(made, made, nl.add, 1.0)
            nisa.dma_copy(out[:, c : c + 128], made)
        return out

    p = profile(kernel, np.empty((128, 16384), FP32), target="trn1", shapes_only=True)
    assert (p.low.bound, p.high.bound) == ("vector", "dma") and not p.bound_certain
    assert "bound by vector (low: vector, high: dma)" in p.summary()
    certain = profile(k.copy_rows, np.empty((256, 4096), FP32), 64, target="trn1", shapes_only=True)
    assert certain.bound_certain
    assert "bound by dma (certain)" in certain.summary()


def test_a_generation_without_four_measurements_is_called_unvalidated() -> None:
    x = np.empty((128, 512), FP32)
    for target, generation in (("trn1", "gen2"), ("trn2", "gen3"), ("trn3", "gen4")):
        p = profile(k.vector_add, x, True, target=target, shapes_only=True)
        assert p.validated == (VALIDATION_ROWS[generation] >= ENOUGH_ROWS == 4)
        assert ("gen4 is unvalidated" in p.summary()) == (generation == "gen4")
