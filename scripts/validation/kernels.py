"""The stage that holds every kernel against its reference, whoever runs it.

Three can: our simulator, AWS's own (`nki.simulate`, NKI 0.3 and later), and a NeuronCore through
PyTorch/XLA, where a kernel called with XLA tensors is one operation of the graph (aws-neuron-sdk
nki/guides/framework_custom_op.rst).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compile.devices import resolve
from compile.flags import flag_text
from nki_kernels import launch
from nki_kernels.calls import (
    Call,
    Expected,
    KernelCase,
    as_double,
    kernel_cases,
    tensors_of,
    with_tensors,
    wrong,
)
from nki_kernels.errors import InputError
from scripts.validation import machine
from scripts.validation.runner import Found, Job

Runs = Callable[[Call, str], Any]
"""Runs a call on a core generation and returns its outputs."""


def on_our_simulator(call: Call, target: str) -> Any:
    """By `nki_sim`, also beside the SDK."""
    arguments, options = with_tensors(call, [tensor.clone() for tensor in tensors_of(call)])
    return launch.simulate(launch.load(call.module, call.name), target, *arguments, **options)


def on_aws_simulator(call: Call, target: str) -> Any:
    """By AWS's simulator, whose target is NEURON_PLATFORM_TARGET_OVERRIDE, set by the script.

    aws-neuron-sdk nki/guides/nki_simulator.rst: `nki.simulate(kernel)(...)` takes torch tensors and
    returns them.
    """
    import nki

    arguments, options = with_tensors(call, [tensor.clone() for tensor in tensors_of(call)])
    return nki.simulate(launch.load(call.module, call.name))(*arguments, **options)


def on_neuron_core(call: Call, target: str) -> Any:
    """On the first NeuronCore that the process sees, as one graph."""
    device = resolve("neuron").torch
    arguments, options = with_tensors(call, [tensor.to(device) for tensor in tensors_of(call)])
    found = launch.on_device(launch.load(call.module, call.name), *arguments, **options)
    outputs = found if isinstance(found, (tuple, list)) else [found]
    return [output.cpu() for output in outputs]


def compile_call(call: Call, target: str, folder: Path) -> Path:
    """The NEFF of a graph that is this call alone; takes no NeuronCore, also where there are some.

    `torch_neuronx.trace(func, example_inputs, *_, input_output_aliases, compiler_workdir,
    compiler_args, partitioner_config, inline_weights_to_neff, cpu_backend)`; `cpu_backend` with
    `--target` traces without a device (aws-neuron-sdk frameworks/torch/torch-neuronx/
    api-reference-guide/inference/api-torch-neuronx-trace.rst). The NEFF is `graph.neff` in the work
    directory (nki/guides/use-neuron-profile.rst).

    Raises:
        InputError: no NEFF was left.
    """
    import torch_neuronx

    kernel = launch.load(call.module, call.name)

    def graph(*tensors: torch.Tensor) -> Any:
        arguments, options = with_tensors(call, tensors)
        return kernel(*arguments, **options)

    torch_neuronx.trace(
        graph,
        tuple(tensors_of(call)),
        compiler_workdir=str(folder),
        compiler_args=flag_text("decode", target).split(),
        cpu_backend=True,
    )
    neffs = sorted(folder.rglob("graph.neff"))
    if not neffs:
        raise InputError(f"torch_neuronx.trace left no graph.neff under {folder}")
    return neffs[0]


def every(only: str = "") -> list[KernelCase]:
    """All cases whose name holds `only`."""
    return [case for case in kernel_cases() if only in case.name]


def kernel_jobs(target: str, runs: Runs, evidence: str, cases: Sequence[KernelCase]) -> list[Job]:
    """A job a case, and before them one whose expected value is wrong and must be found so.

    Args:
        target: core generation.
        runs: who runs the kernels.
        evidence: what passing shows.
        cases: to run.
    """
    jobs = [
        Job(f"kernels/{case.name}", "kernels", case.kernel, target, evidence,
            partial(hold, case, target, runs))
        for case in cases
    ]  # fmt: skip
    if cases:
        first = cases[0]
        jobs.insert(
            0,
            Job("planted/a wrong expectation is found", "planted", first.kernel, target, evidence,
                partial(hold_wrong, first, target, runs)),
        )  # fmt: skip
    return jobs


def hold(case: KernelCase, target: str, runs: Runs) -> Found:
    """Run a case and compare it with fp64 and with our simulator."""
    call = case.make(target)
    found = runs(call, target)
    margin = call.margin(found)
    if runs is on_our_simulator:
        return Found(margin=margin)
    ours = on_our_simulator(call, target)
    values = ours if isinstance(ours, (tuple, list)) else [ours]
    theirs = replace(
        call,
        expected=tuple(
            Expected(as_double(value), expected.allowed)
            for value, expected in zip(values, call.expected, strict=True)
        ),
    )
    return Found(margin=margin, agreement=theirs.margin(found))


def hold_wrong(case: KernelCase, target: str, runs: Runs) -> Found:
    """Run a case against a wrong expectation: passing would show that nothing is compared."""
    call = wrong(case.make(target))
    margin = call.margin(runs(call, target))
    if margin > 1:
        return Found(details={"margin of the wrong expectation": round(min(margin, 1e300), 3)})
    return Found(wrong="a planted wrong expectation was not noticed: no result here counts")


def few(only: str = "") -> list[KernelCase]:
    """The first case of each kernel and dtype whose name holds `only`."""
    firsts: dict[tuple[str, str], KernelCase] = {}
    for case in kernel_cases():
        if only in case.name:
            firsts.setdefault((case.kernel, case.dtype), case)
    return list(firsts.values())


def compile_jobs(
    target: str, folder: Path, cases: Sequence[KernelCase], rehearse: bool = False
) -> list[Job]:
    """A job a case: accepted by neuronx-cc, or why not."""
    return [
        Job(f"compile/{case.name}", "compile", case.kernel, target,
            "computed" if rehearse else "compiled",
            partial(accept, case, target, folder, rehearse))
        for case in cases
    ]  # fmt: skip


def accept(case: KernelCase, target: str, folder: Path, rehearse: bool) -> Found:
    """Compile a case; a rehearsal runs it on our simulator, which checks the hardware's rules."""
    call = case.make(target)
    if rehearse:
        on_our_simulator(call, target)
        return Found(details={"checked": "by nki_sim, which is no compiler"})
    where = folder / case.name.replace("/", "_")
    neff = compile_call(call, target, where)
    return Found(
        details={"bytes": neff.stat().st_size, "largest_child_gib": machine.largest_child_gib()}
    )
