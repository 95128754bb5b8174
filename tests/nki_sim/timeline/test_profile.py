"""What ``profile`` reports is consistent, complete, and refused where it cannot be right."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.timeline import benchmarks as b
from nki_sim.timeline import plot
from nki_sim.timeline.critical import critical_path
from nki_sim.timeline.perfetto import events
from nki_sim.timeline.profiling import instruction_order
from nki_sim.timeline.schedule import schedule
from tests.nki_sim.timeline import kernels as k

pytestmark = pytest.mark.sim

FP32, BF16 = np.float32, ml_dtypes.bfloat16


def mamba_arrays() -> list[np.ndarray]:
    shapes = [(256, 64), (256, 64), (256, 4), (4, 64), (4, 64)]
    return [np.zeros(shape, FP32) for shape in shapes]


CASES = [
    ("mamba", "trn1", 1, b.mamba, mamba_arrays()),
    ("mamba", "trn2", 1, b.mamba, mamba_arrays()),
    ("matmul", "trn1", 1, b.matmul_tiled, [np.zeros((256, 128), BF16), np.zeros((256, 512), BF16)]),
    ("softmax", "trn3", 1, partial(k.softmax, passes="few"), [np.zeros((256, 512), FP32)]),
    ("cores", "trn2", 2, k.halves, [np.zeros((512, 256), FP32)]),
]
IDS = [f"{c[0]} on {c[1]}" for c in CASES]


@pytest.fixture(params=CASES, ids=IDS)
def case(request: pytest.FixtureRequest) -> nki_sim.Profile:
    _, target, lnc, kernel, arrays = request.param
    return nki_sim.profile(kernel, *arrays, target=target, lnc=lnc)


def test_busy_stalled_and_idle_are_the_whole_time(case: nki_sim.Profile) -> None:
    for name, lane in case.engines.items():
        parts = lane.busy + lane.stalled + lane.idle
        assert parts == pytest.approx(case.total_us, rel=1e-9), name
        assert sum(lane.stalls.values()) == pytest.approx(lane.stalled, abs=1e-6), name
        assert min(lane.busy, lane.stalled, lane.idle) >= -1e-9, name


def test_bytes_are_what_the_simulator_moved(case: nki_sim.Profile) -> None:
    written = sum(a.nbytes for i in case.trace if i.engine == "dma" for _, a in i.writes)
    moved = sum(t.nbytes for t in case.schedule.transfers if t is not None)
    assert case.bytes == written == moved > 0
    assert case.bandwidth == pytest.approx(case.bytes / case.total_us / 1000)


def test_engines_do_one_thing_at_a_time(case: nki_sim.Profile) -> None:
    s = case.schedule
    spans: dict[str, list[tuple[float, float]]] = {}
    for n, i in enumerate(case.trace):
        if i.engine != "dma":
            spans.setdefault(s.lane[n], []).append((s.start[n], s.start[n] + s.busy[n]))
    for found in spans.values():
        for (_, end), (start, _) in itertools.pairwise(sorted(found)):
            assert start >= end - 1e-9


def test_without_a_scheduler_engines_keep_the_order_of_the_program(case: nki_sim.Profile) -> None:
    t = case.timing.with_(reorder_window=1)
    s = schedule(case.trace, instruction_order(case.trace), t)
    last: dict[str, float] = {}
    for n, i in enumerate(case.trace):
        if i.engine != "dma":
            assert s.start[n] >= last.get(s.lane[n], 0.0) - 1e-9
            last[s.lane[n]] = s.start[n] + s.busy[n]


def reordered(x: Any, fixed: bool) -> Any:
    """A chain between two engines, then independent work that a scheduler takes in between."""
    made = k.tile(x)
    other = k.tile(x)
    with nl.no_reorder() if fixed else contextlib.nullcontext():
        for _ in range(8):
            nisa.activation(made, nl.exp, made)
            nisa.tensor_scalar(made, made, nl.add, 1.0)
            nisa.tensor_scalar(other, other, nl.multiply, 2.0)
    nisa.tensor_tensor(made, made, other, nl.add)
    return k.stored(made)


def test_the_scheduler_fills_gaps_but_keeps_what_the_kernel_fixes() -> None:
    x = np.empty((128, 512), FP32)
    free = nki_sim.profile(partial(reordered, fixed=False), x, shapes_only=True)
    fixed = nki_sim.profile(partial(reordered, fixed=True), x, shapes_only=True)
    assert free.total_us < 0.95 * fixed.total_us
    starts = [free.schedule.start[n] for n, i in enumerate(free.trace) if i.engine == "vector"]
    assert starts != sorted(starts)
    starts = [fixed.schedule.start[n] for n, i in enumerate(fixed.trace) if i.engine != "dma"]
    assert starts == sorted(starts)


def test_nothing_starts_before_what_it_needs(case: nki_sim.Profile) -> None:
    s = case.schedule
    before = instruction_order(case.trace)
    for n, producers in enumerate(before):
        for p in producers:
            assert s.start[n] >= s.end[p] - 1e-6


def test_dma_engines_never_do_more_than_time_allows(case: nki_sim.Profile) -> None:
    for core in case.schedule.engine_busy:
        assert max(core) <= case.schedule.total


def test_critical_path_is_a_chain_from_the_end_to_the_start(case: nki_sim.Profile) -> None:
    path = critical_path(case.trace, case.schedule)
    assert path[0][2] == case.schedule.total and path[-1][1] == 0.0
    for (_, begin, _), (_, _, end) in itertools.pairwise(path):
        assert begin == end
    assert sum(step.us for step in case.critical_path) == pytest.approx(case.total_us)


def test_low_and_high_enclose_the_nominal(case: nki_sim.Profile) -> None:
    assert 0 < case.low_us <= case.total_us <= case.high_us


def test_no_resource_needs_longer_than_the_kernel_takes(case: nki_sim.Profile) -> None:
    assert case.resources[case.busiest] == max(case.resources.values()) <= case.total_us


def test_the_summary_names_what_matters(case: nki_sim.Profile) -> None:
    text = case.summary()
    assert f"bound by {case.bound}" in text and "critical path" in text
    assert ("unvalidated" in text) == (case.target == "gen4")
    for name in case.engines:
        assert name in text


def test_shapes_only_gives_the_same_times() -> None:
    for _, target, lnc, kernel, arrays in CASES:
        full = nki_sim.profile(kernel, *arrays, target=target, lnc=lnc)
        bare = nki_sim.profile(kernel, *arrays, target=target, lnc=lnc, shapes_only=True)
        for one, other in zip(full.trace, bare.trace, strict=True):
            assert repr(one).rpartition(" [")[0] == repr(other).rpartition(" [")[0]
        assert bare.total_us == full.total_us


def test_shapes_only_computes_nothing() -> None:
    x = np.ones((128, 64), FP32)

    def kernel(x: Any) -> None:
        made = k.tile(x)
        nisa.tensor_scalar(made, made, nl.add, 1.0)
        nisa.dma_copy(x, made)

    nki_sim.profile(kernel, x, shapes_only=True)
    assert (x == 1).all()
    nki_sim.profile(kernel, x)
    assert (x == 2).all()


def test_options_and_partials_reach_the_kernel() -> None:
    x = np.zeros((128, 512), FP32)
    one = nki_sim.profile(k.vector_pieces, x, width=64)
    two = nki_sim.profile(partial(k.vector_pieces, width=64), x)
    assert one.instructions == two.instructions == 10


# ---------------------------------------------------------------------- traces for other tools


def test_perfetto_trace_follows_the_format(case: nki_sim.Profile, tmp_path: Path) -> None:
    """Google's Trace Event Format: the fields of "X" and "M" events, and tracks without overlap."""
    path = tmp_path / "trace.json"
    case.save_perfetto(path)
    content = json.loads(path.read_text())
    assert content["displayTimeUnit"] in ("ms", "ns")
    named: set[tuple[int, int]] = set()
    ends: dict[tuple[int, int], float] = {}
    slices = 0
    for event in content["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            if event["name"] == "thread_sort_index":
                assert isinstance(event["args"]["sort_index"], int)
                continue
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            named.add(track)
            continue
        assert event["ph"] == "X" and isinstance(event["cat"], str)
        assert track in named, "a slice on a track without a name"
        # Exactly: viewers nest a slice that reaches into the next one by a rounding error.
        assert event["ts"] >= ends.get(track, 0.0) and event["dur"] >= 0
        ends[track] = event["ts"] + event["dur"]
        assert {"opcode", "source", "instruction"} <= set(event["args"])
        slices += 1
    assert slices >= case.instructions
    assert max(ends.values()) <= case.total_us + 1e-4


def test_perfetto_slices_name_shapes_and_lines() -> None:
    p = nki_sim.profile(partial(k.vector_pieces, width=512), np.zeros((128, 512), FP32))
    add = next(e for e in events(p) if e["name"] == "tensor_scalar")
    assert add["args"]["data"] == "[128, 512] float32 sbuf"
    assert "kernels.py:" in add["args"]["source"]


@pytest.mark.slow  # matplotlib takes seconds to start
def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for _, target, lnc, kernel, arrays in CASES[2:]:
        path = tmp_path / "plot.png"
        nki_sim.profile(kernel, *arrays, target=target, lnc=lnc).plot(path)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
        assert int.from_bytes(content[16:20], "big") >= 1200  # pixels wide


@pytest.mark.slow
def test_plot_names_engines_shares_units_and_ends() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    p = nki_sim.profile(k.halves, np.empty((512, 256), FP32), target="trn2", lnc=2)
    left, right = figure.subplots(1, 2)
    plot._lanes(left, p)
    plot._roofline(right, p)
    labels = [tick.get_text() for tick in left.get_yticklabels()]
    assert [label.partition("\n")[0] for label in labels] == [
        "dma load", "dma store", "scalar", "gpsimd descriptors",
        "core 1 dma load", "core 1 dma store", "core 1 scalar", "core 1 gpsimd descriptors",
    ]  # fmt: skip
    busy = {label.partition("\n")[0]: label.rpartition("\n")[2] for label in labels}
    assert busy["scalar"] == f"{100 * p.engines['scalar'].utilisation(p.total_us):.0f} %"
    assert left.get_xlabel() == "us (nominal)"
    assert right.get_ylabel() == "G elements/s" and "byte of HBM" in right.get_xlabel()
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert "slope, DMA: 870 GB/s" in legend and "2 cores" in right.get_title()


def test_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    p = nki_sim.profile(k.functions, np.zeros((128, 8), FP32), alternate=False)
    with pytest.raises(ImportError, match=r"pip install 'bifork\[plot\]'"):
        p.plot(tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- refusals


def test_unknown_target() -> None:
    with pytest.raises(ValueError, match="'trn9' is not a known target"):
        nki_sim.profile(k.functions, np.zeros((128, 8), FP32), target="trn9")


def test_kernel_that_fails_in_simulation() -> None:
    def kernel(x: Any) -> None:
        nisa.dma_copy(nl.ndarray((256, 4), nl.float32, nl.sbuf), x)

    for shapes_only in (False, True):
        with pytest.raises(nki_sim.RuleError, match="partitions"):
            nki_sim.profile(kernel, np.zeros((256, 4), FP32), shapes_only=shapes_only)


def test_kernel_without_work() -> None:
    with pytest.raises(ValueError, match="issued no instruction"):
        nki_sim.profile(k.nothing, np.zeros((128, 8), FP32))


def test_data_dependent_control_flow_needs_arithmetic() -> None:
    arrays = (np.full((1, 1), 3, np.int32), np.zeros((128, 8), FP32))
    with pytest.raises(nki_sim.ShapesOnlyError, match="register_load reads data"):
        nki_sim.profile(k.counted_loop, *arrays, shapes_only=True)
    assert nki_sim.profile(k.counted_loop, *arrays).total_us > 0


def test_instruction_without_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    from nki_sim.timeline import costs

    monkeypatch.delitem(costs._STREAMS, "tensor_scalar")
    with pytest.raises(NotImplementedError, match=r"no cost for nki\.isa\.tensor_scalar"):
        nki_sim.profile(partial(k.vector_pieces, width=512), np.zeros((128, 512), FP32))
