#!/usr/bin/env python
"""Prove the kernels and graphs on a Linux host with AWS's Neuron SDK and no device.

python scripts/validate_on_sdk.py --target trn1 --out sdk.json
python scripts/validate_on_sdk.py --rehearse --out rehearsal.json      no SDK: the same steps

Stages: kernels (AWS's simulator against fp64 and against ours), compile (each kernel through
neuronx-cc) and graphs (every graph of a model's plan, in both forms, through neuronx-cc).
docs/first_hour_on_an_instance.md says what to expect.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compile.backend import Backend
from compile.plan import Plan
from models.causal_lm import find_checkpoint, load_config
from models.pretrained import DEFAULT_MODEL
from scripts import command_line
from scripts.compiling import backend_for
from scripts.decode_sweep import numbers
from scripts.validation import command, machine
from scripts.validation.graphs import Wanted, graph_jobs, plans
from scripts.validation.kernels import (
    compile_jobs,
    every,
    few,
    kernel_jobs,
    on_aws_simulator,
    on_our_simulator,
)
from scripts.validation.runner import Job

STAGES = ("kernels", "compile", "graphs")
COMPILER = ("nki", "neuronx-cc", "torch-neuronx")
NEEDS = {
    "kernels": ("nki",),
    "compile": COMPILER,
    "graphs": (*COMPILER, "neuronx-distributed"),
}


def main() -> None:
    """Check what is here, then run the stages."""
    with tempfile.TemporaryDirectory() as scratch:
        validate(scratch)


def validate(scratch: str) -> None:
    """`main` with a folder for what nobody keeps."""
    parser = command.parser(__doc__, STAGES)
    add = parser.add_argument
    add("--model", default="", metavar="DIR|ID", help="of stage graphs (the default model)")
    add("--instance", metavar="NAME", help="that graphs are for (the target's smallest)")
    add("--tp", type=int, default=1, metavar="N", help="ranks of graphs (%(default)s)")
    add("--context", default="384", metavar="S,...", help="prompt buckets (%(default)s)")
    add("--samples", "-n", default="16", metavar="B,...", help="buckets of b (%(default)s)")
    add("--max-new-tokens", type=int, default=32, metavar="T", help="(%(default)s)")
    options = parser.parse_args()
    stages = command.stages_of(options, STAGES, ("compile", "graphs"))
    contexts = tuple(numbers(options.context, "--context"))
    samples = tuple(numbers(options.samples, "--samples"))
    path, folder = command.begin(options)
    if options.rehearse and not options.work:  # a rehearsal's graphs are of no use
        folder = Path(scratch)
    if not options.rehearse:
        needed = dict.fromkeys(package for stage in stages for package in NEEDS[stage])
        machine.refuse_without(list(needed), simulator="kernels" in stages)

    def jobs() -> list[Job]:
        runs = on_our_simulator if options.rehearse else on_aws_simulator
        found: list[Job] = []
        if "kernels" in stages:
            found += kernel_jobs(options.target, runs, "computed", every(options.only))
        if "compile" in stages:
            cases = every(options.only) if options.cases == "all" else few(options.only)
            found += compile_jobs(options.target, folder, cases, options.rehearse)
        if "graphs" in stages and options.only in "graphs":
            config = load_config(find_checkpoint(options.model or str(DEFAULT_MODEL)))
            wanted = Wanted(
                options.target, options.instance, options.tp, contexts, samples,
                options.max_new_tokens,
            )  # fmt: skip
            evidence = "computed" if options.rehearse else "compiled"
            device = "cpu" if options.rehearse else "neuron"

            def backend_of(plan: Plan) -> Backend:
                return backend_for(device, plan)[0]

            found += graph_jobs(plans(config, wanted), backend_of, folder, evidence)
        return found

    command.finish(options, "sdk", path, jobs)


if __name__ == "__main__":
    command_line.run(main)
