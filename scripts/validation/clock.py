"""How long a kernel takes on a NeuronCore, by the device's own clock; and what stands in for it.

The host's clock measures the frontend, not the kernel. What AWS documents instead:

* `neuron-explorer capture` runs a NEFF and records its instructions, `view --output-format
  summary-json` gives `total_time`, "from explicit TPB start/stop notifications", without host
  overhead (aws-neuron-sdk tools/neuron-explorer/how-to-profile-workload.rst, troubleshooting.rst,
  profile-schema-reference.rst; `neuron-profile` before it, archive/profiler/
  neuron-profile-user-guide.rst). Used here: it takes the NEFF as compiled, gives each engine's
  active time too, and works in every SDK that knows our kernels.
* `nki.benchmark` and `nki.profile`: "not available with NKI 0.2.0" and since
  (release-notes/components/nki.rst).
* `nrtpy`'s `NrtpyModel.benchmark(mode="device")`: beta in SDK 2.32, and its wheel and `nki`'s
  cannot be in one environment (release-notes/components/runtime.rst).

Many calls in one graph would show the compiler's overlap of one call with the next, which a layer
does not have.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import nki_sim
from nki_kernels import launch
from nki_kernels.calls import Call
from scripts.validation.kernels import compile_call
from scripts.validation.machine import VISIBLE

ACTIVE = {
    "tensor": "tensor_engine_active_time",
    "vector": "vector_engine_active_time",
    "scalar": "scalar_engine_active_time",
    "gpsimd": "gpsimd_engine_active_time",
    "dma": "dma_active_time",
}
"""Engines of the timeline and the summary's fields, in seconds, for the same thing: time in which
at least one instruction is processed, or one DMA packet moves (profile-schema-reference.rst,
"Summary"). Instructions that wait for semaphores are not counted by it; the timeline's "busy"."""

SHOWN = ("hbm_read_bytes", "hbm_write_bytes", "spill_save_bytes", "spill_reload_bytes",
         "matmul_instruction_count", "dma_transfer_total_bytes")  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """us from the graph's start to its end, a number a capture; engines' active us of the last."""

    us: tuple[float, ...]
    engines: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)


class Clock(Protocol):
    """Something that times a call."""

    name: str
    source: str
    evidence: str

    def measure(self, call: Call, target: str, folder: Path) -> Measurement:
        """Time a call; `folder` is the case's own, for what is compiled and captured."""
        ...


class ProfilerClock:
    """`neuron-explorer`, or `neuron-profile`.

    Each capture executes twice and records the second, as AWS's page advises against warm-up.
    Inputs are zeros, the documented default; our kernels' instructions do not depend on values.

    Args:
        program: the profiler's path.
        captures: how often a call is captured.
        core: the NeuronCore that it runs on.
        compile_neff: makes the NEFF of a call in a folder.
        timeout_s: of one command.
    """

    evidence = "measured"
    source = "aws-neuron-sdk nki/guides/use-neuron-profile.rst"

    def __init__(
        self,
        program: str,
        captures: int = 3,
        core: str = "0",
        compile_neff: Callable[[Call, str, Path], Path] = compile_call,
        timeout_s: float = 1800,
    ) -> None:
        self.program = program
        self.name = f"{Path(program).name} capture, total_time of the second execution"
        self.captures = captures
        self._environment = os.environ | {VISIBLE: core}
        self._compile = compile_neff
        self._timeout = timeout_s

    def measure(self, call: Call, target: str, folder: Path) -> Measurement:
        """Compile, capture, read the summaries.

        Raises:
            RuntimeError: the profiler fails, or its summary has no total_time.
        """
        neff = self._compile(call, target, folder)
        summaries = [self._capture(neff, folder / f"capture{i}") for i in range(self.captures)]
        last = summaries[-1]
        return Measurement(
            us=tuple(1e6 * float(summary["total_time"]) for summary in summaries),
            engines={
                engine: 1e6 * float(last[name]) for engine, name in ACTIVE.items() if name in last
            },
            details={name: last[name] for name in SHOWN if name in last},
        )

    def _capture(self, neff: Path, folder: Path) -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        session = folder / "profile.ntff"
        self._run("capture", "-n", str(neff), "-s", str(session), "--profile-nth-exec=2")
        traces = sorted(folder.glob("*.ntff"))  # profile_exec_2.ntff
        if not traces:
            raise RuntimeError(f"{self.name} left no .ntff in {folder}")
        text = self._run(
            "view", "-n", str(neff), "-s", str(traces[-1]), "--output-format", "summary-json"
        )
        return summary_of(text)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.program, *arguments],
            capture_output=True,
            text=True,
            timeout=self._timeout,
            check=False,
            env=self._environment,
        )
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise RuntimeError(
                f"{Path(self.program).name} {arguments[0]} ended with {done.returncode}: "
                f"{said[-1] if said else 'no message'}"
            )
        return done.stdout


def summary_of(text: str) -> dict[str, Any]:
    """The summary in what `view --output-format summary-json` printed.

    Its schema "may change between versions" (troubleshooting.rst), so it is looked for: the first
    object with a total_time, wherever it stands.

    Raises:
        RuntimeError: there is none.
    """
    decoder = json.JSONDecoder()
    for start, character in enumerate(text):
        if character in "[{":
            try:
                content, _ = decoder.raw_decode(text, start)
            except ValueError:
                continue
            for found in _objects(content):
                if isinstance(found.get("total_time"), (int, float)):
                    return found
    raise RuntimeError("the profiler's summary has no total_time")


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, dict):
        yield content
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            yield from _objects(each)


class TimelineClock:
    """Our prediction in a device's place, so that all that comes after can be gone through."""

    name = "the timeline, which measures nothing"
    source = "docs/timeline.md"
    evidence = "predicted"

    def measure(self, call: Call, target: str, folder: Path) -> Measurement:
        """The nominal prediction, launch included."""
        p = profile(call, target)
        engines = {name: lane.busy for name, lane in p.engines.items()}
        return Measurement((p.total_us + p.launch_us,), engines)


def profile(call: Call, target: str) -> nki_sim.Profile:
    """The timeline's profile of a call, recorded without arithmetic."""
    kernel = launch.load(call.module, call.name)
    return nki_sim.profile(kernel, *call.arguments, target=target, shapes_only=True, **call.options)
