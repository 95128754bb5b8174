"""Running a kernel on the simulator without the operators in between, for tests that vary how.

    python -m tests.nki_kernels.running

prints instructions and simulated wall time at the shape of the default model (host time of the
simulator, which says nothing about a device).
"""

from __future__ import annotations

import time
from typing import Any

import nki_sim
from nki_kernels import launch
from nki_kernels.bifurcated_attention import tuning as bifurcated_tuning
from nki_kernels.bifurcated_attention import validate as bifurcated_validate
from nki_kernels.cases import Case, FlashCase, make, make_flash
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention import validate as flash_validate

BIFURCATED = ("nki_kernels.bifurcated_attention.kernel", "bifurcated_attention_kernel")
FLASH = ("nki_kernels.flash_attention.kernel", "flash_attention_kernel")
OPTIONS = ("start", "window", "softcap", "sinks", "query_position", "k_scale", "v_scale")
"""Arguments of a case that a kernel takes by keyword."""


def bifurcated_options(arguments: dict[str, Any], target: str = "trn1") -> dict[str, Any]:
    """The schedule that the operator would choose, and the options of the call."""
    shape = bifurcated_validate.validate(**arguments)
    plan = bifurcated_tuning.schedule(shape, arguments["q"].element_size(), target)
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    return bifurcated_tuning.kernel_options(plan, **options)


def flash_options(arguments: dict[str, Any], target: str = "trn1") -> dict[str, Any]:
    """The schedule that the operator would choose, and the options of the call."""
    shape = flash_validate.validate(**arguments)
    plan = flash_tuning.schedule(shape, arguments["q"].element_size(), target)
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    return flash_tuning.kernel_options(plan, **options)


def simulate(
    kernel: Any,
    arguments: dict[str, Any],
    target: str = "trn1",
    trace: nki_sim.Trace | None = None,
    lnc: int = 1,
    **options: Any,
) -> Any:
    """Run a kernel, or one named by (module, function), on a case's arguments.

    With `lnc` 2 it runs as a logical core of two physical ones.
    """
    if isinstance(kernel, tuple):
        kernel = launch.load(*kernel)
    if lnc > 1:
        kernel = kernel[lnc]
    tensors = [value for name, value in arguments.items() if name not in OPTIONS]
    return nki_sim.simulate(kernel, target=target, trace=trace)(*tensors, **options)


def main() -> None:
    """Count instructions and time the simulator: h = 4, g = 2, d = 64, a context of 350 tokens."""
    calls = []
    for b in (1, 16, 64):
        for dtype in ("float32", "bfloat16"):
            case = Case(m_c=350, m_d=29, b=b, h=4, g=2, d=64, dtype=dtype)
            arguments = make(case)
            calls.append((f"decode {case}", BIFURCATED, arguments, bifurcated_options(arguments)))
    flash_case = FlashCase(1, 350, 4, 2, 64)
    arguments = make_flash(flash_case)
    calls.append((f"prefill {flash_case}", FLASH, arguments, flash_options(arguments)))
    for name, kernel, arguments, options in calls:
        trace = nki_sim.Trace()
        simulate(kernel, arguments, trace=trace, **options)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            simulate(kernel, arguments, **options)
            times.append(time.perf_counter() - start)
        median = sorted(times)[3]
        print(f"{name}: {len(trace)} instructions, {1e3 * median:.1f} ms simulated")


if __name__ == "__main__":
    main()
