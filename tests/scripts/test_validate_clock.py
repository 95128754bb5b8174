"""The profiler's part: what it is asked, what it answers, and the graph that it is given."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nki_kernels import launch
from nki_kernels.calls import Call, kernel_cases
from nki_kernels.errors import InputError
from nki_kernels.predict import Prediction
from nki_kernels.speed_of_light import Decode
from scripts import validate_on_device
from scripts.validation import compare, machine, sweep
from scripts.validation.clock import ACTIVE, Measurement, ProfilerClock, TimelineClock, summary_of
from scripts.validation.kernels import compile_call
from scripts.validation.report import load
from scripts.validation.sweep import Timed, decode, grid, recordable, take_time

pytestmark = pytest.mark.sim

# By way of a shell: a path with a space does not go behind #!.
PROFILER = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import json, os, pathlib, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as file:
    file.write(json.dumps([os.environ["NEURON_RT_VISIBLE_CORES"], *arguments]) + "\\n")
if arguments[0] == "capture":
    session = pathlib.Path(arguments[arguments.index("-s") + 1])
    {capture}
else:
    print("INFO processing [1/2]")
    print({summary!r})
"""


def profiler(folder: Path, summary: Any, capture: str = "") -> tuple[str, Path]:
    """An executable that takes `neuron-explorer`'s arguments, and the file it logs them to."""
    log, program = folder / "log", folder / "neuron-explorer"
    write = capture or '(session.parent / "profile_exec_2.ntff").write_text("")'
    program.write_text(PROFILER.format(python=sys.executable, log=str(log), capture=write,
                                       summary=json.dumps(summary)))  # fmt: skip
    program.chmod(0o755)
    return str(program), log


def neff(call: Call, target: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "graph.neff").write_text("")
    return folder / "graph.neff"


SUMMARY = {
    "total_time": 95e-6,
    **{field: (i + 1) * 1e-6 for i, field in enumerate(ACTIVE.values())},
    "hbm_read_bytes": 4096,
}


def timed(target: str = "trn1") -> Timed:
    return next(each for each in grid(target, (1,), (256,), (), ("gqa",)) if "write" in each.name)


def test_what_the_profiler_is_asked_and_says(tmp_path: Path) -> None:
    program, log = profiler(tmp_path, [{"summary": [SUMMARY]}])
    clock = ProfilerClock(program, captures=2, core="1", compile_neff=neff)
    found = clock.measure(timed().call, "trn1", tmp_path / "case")
    assert found.us == (pytest.approx(95.0), pytest.approx(95.0))
    assert found.engines == {name: pytest.approx(i + 1.0) for i, name in enumerate(ACTIVE)}
    assert found.details == {"hbm_read_bytes": 4096}
    assert clock.evidence == "measured" and clock.name.startswith("neuron-explorer capture")
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    case, session = tmp_path / "case", tmp_path / "case" / "capture1"
    assert asked[2:] == [
        ["1", "capture", "-n", str(case / "graph.neff"), "-s", str(session / "profile.ntff"),
         "--profile-nth-exec=2"],
        ["1", "view", "-n", str(case / "graph.neff"), "-s", str(session / "profile_exec_2.ntff"),
         "--output-format", "summary-json"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "summary, capture, message",
    [
        ({"no": 1}, "", "has no total_time"),
        (SUMMARY, "pass", "left no .ntff"),
        (SUMMARY, 'print("oops", file=sys.stderr); sys.exit(3)', "capture ended with 3: oops"),
    ],
    ids=["no time", "no trace", "exit code"],
)
def test_a_profiler_that_fails(summary: Any, capture: str, message: str, tmp_path: Path) -> None:
    clock = ProfilerClock(profiler(tmp_path, summary, capture)[0], compile_neff=neff)
    with pytest.raises(RuntimeError, match=message):
        clock.measure(timed().call, "trn1", tmp_path / "case")


@pytest.mark.parametrize("content", [SUMMARY, [SUMMARY], {"n": {"summary": [{"a": 1}, SUMMARY]}}])
def test_the_summary_is_found_wherever_it_stands(content: Any) -> None:
    assert summary_of(f"[INFO] 100%\n{json.dumps(content, indent=1)}\ndone") == SUMMARY


def test_times_beside_predictions_have_the_launch(tmp_path: Path) -> None:
    class Fixed(TimelineClock):
        def measure(self, call: Call, target: str, folder: Path) -> Measurement:
            return Measurement((30.0, 10.0, 20.0), {"dma": 5.0})

    found = take_time(timed(), "trn1", Fixed(), tmp_path)
    assert found.times is not None and found.times.median_us == 20.0
    alone = TimelineClock().measure(timed().call, "trn1", tmp_path)
    assert found.times.nominal_us == pytest.approx(alone.us[0], abs=1e-3)
    assert found.times.low_us > 10 and found.times.high_us > 25  # the launch's own range
    assert found.engines["clock"] == {"dma": 5.0} and found.engines["predicted"]["dma"] > 0


def test_a_long_call_is_extrapolated_and_has_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = Prediction(500.0, 400.0, 700.0, "dma", 9, True)
    monkeypatch.setattr(sweep.predict, "predict", lambda path, work, target: grown)
    each = decode("ordinary", "gqa", Decode(2, 1, 1, 4, 1, 128, 256, 8), "trn1")
    found = take_time(each, "trn1", TimelineClock(), tmp_path)
    assert found.times is not None and found.times.extrapolated
    assert found.times.nominal_us == 500 + 13 and found.times.bound == "dma"
    assert found.call is None and "predicted" not in found.engines


def test_what_is_recorded_again_names_every_argument() -> None:
    for each in grid("trn2", (2,), (256,), (512,), ("gqa",)):
        about = recordable(each.call)
        tensors = [value for value in each.call.arguments if isinstance(value, torch.Tensor)]
        assert len(about["arrays"]) == len(tensors)
        assert len(about["keywords"]) == len(each.call.options) + len(each.call.arguments) - len(
            tensors
        )
        json.dumps(about)


class Tracing(ModuleType):
    """`torch_neuronx` with `trace` of the documented signature; it leaves a NEFF."""

    def __init__(self, leaves: str | None) -> None:
        super().__init__("torch_neuronx")
        self.leaves = leaves
        self.asked: dict[str, Any] = {}

    def trace(
        self,
        func: Any,
        example_inputs: Any,
        *_: Any,
        input_output_aliases: Any = {},  # noqa: B006 - as documented
        compiler_workdir: Any = None,
        compiler_args: Any = None,
        partitioner_config: Any = None,
        inline_weights_to_neff: bool = True,
        cpu_backend: bool = False,
    ) -> None:
        self.asked = {"args": compiler_args, "cpu_backend": cpu_backend, "inputs": example_inputs}
        self.out = func(*example_inputs)
        if self.leaves:
            path = Path(compiler_workdir) / self.leaves
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")


def test_a_graph_of_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced with tensors in place; here `nki` is ours, so that the graph really computes."""
    fake = Tracing("model/graph.neff")
    monkeypatch.setitem(sys.modules, "torch_neuronx", fake)
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    case = next(case for case in kernel_cases() if re.match("flash.*sinks", case.name))
    call = case.make("trn1")
    launch.load(call.module, call.name)
    assert compile_call(call, "trn1", tmp_path) == tmp_path / "model" / "graph.neff"
    assert call.margin(fake.out) <= 1
    assert fake.asked["cpu_backend"] is True and len(fake.asked["inputs"]) == 4  # q, k, v, sinks
    assert "--target=trn1" in fake.asked["args"] and "--auto-cast=none" in fake.asked["args"]
    fake.leaves = None
    with pytest.raises(InputError, match=r"left no graph\.neff"):
        compile_call(call, "trn1", tmp_path / "other")


def test_times_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script without --rehearse, with stand-ins for the device, the profiler and tracing."""
    program, log = profiler(tmp_path, SUMMARY)
    monkeypatch.setattr(machine, "refuse_without", lambda *packages, **needs: None)
    monkeypatch.setattr(machine, "profiler", lambda: program)
    monkeypatch.setitem(sys.modules, "torch_neuronx", Tracing("graph.neff"))
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    monkeypatch.setenv(machine.VISIBLE, "3")
    out = tmp_path / "device.json"
    arguments = ["--stages", "times", "--only", "write_kv/gqa", "--captures", "1"]
    monkeypatch.setattr(sys, "argv", ["validate_on_device.py", *arguments, "--out", str(out)])
    validate_on_device.main()
    report = load(out)
    (case,) = report.cases.values()
    assert not report.rehearsal and (case.evidence, case.outcome) == ("measured", "passed")
    assert case.times is not None and case.times.median_us == 95.0
    assert {"instance", "driver", "system_packages", "profiler"} <= set(report.environment)
    assert report.clock is not None and report.clock["name"].startswith("neuron-explorer capture")
    assert {json.loads(line)[0] for line in log.read_text().splitlines()} == {"3"}
    assert (tmp_path / "device.json.work" / "write_kv_gqa-b16" / "graph.neff").is_file()
    (row, *_) = compare.rows(compare.measured([("r", report)]), {"r": report})
    assert row["value"] == 95.0 and row["generation"] == "gen2"
