#!/usr/bin/env python
"""Prove kernels and model on a Trainium or Inferentia instance, then time them beside predictions.

python scripts/validate_on_device.py --target inf2 --out inf2.json
python scripts/validate_on_device.py --rehearse --out rehearsal.json   no device: the same steps

Stages, in this order: kernels (on a NeuronCore against fp64), tokens (a model against eager CPU),
times (the sweep, by the device's profiler). docs/first_hour_on_an_instance.md says what to expect.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nki_kernels.errors import require
from scripts import command_line
from scripts.decode_sweep import SHAPES, numbers
from scripts.validation import command, machine, sweep
from scripts.validation.clock import Clock, ProfilerClock, TimelineClock
from scripts.validation.kernels import (
    every,
    few,
    kernel_jobs,
    on_neuron_core,
    on_our_simulator,
)
from scripts.validation.runner import Job
from scripts.validation.tokens import NEW_TOKENS, artifact_jobs, token_jobs

STAGES = ("kernels", "tokens", "times")
NEEDS = ("nki", "neuronx-cc", "torch-neuronx")


def main() -> None:
    """Check what is here, then run the stages."""
    parser = command.parser(__doc__, STAGES)
    add = parser.add_argument
    add("--model", default="", metavar="DIR|ID", help="of stage tokens (the default model)")
    add(
        "--artifact",
        metavar="DIR",
        help="compiled from --model by scripts/compile.py, for stage tokens (operator by operator)",
    )
    add("--max-new-tokens", type=int, default=NEW_TOKENS, metavar="T", help="(%(default)s)")
    add("--samples", "-n", default=_text(sweep.SAMPLES), help="b of times (%(default)s)")
    add("--context", default=_text(sweep.CONTEXTS), help="m_c of times (%(default)s)")
    add("--prefill", default=_text(sweep.PREFILLS), help="S of times (%(default)s)")
    add("--shape", default=",".join(SHAPES), help="mha, gqa (%(default)s)")
    add("--captures", type=int, default=3, metavar="N", help="profiles a shape (%(default)s)")
    options = parser.parse_args()
    stages = command.stages_of(options, STAGES, ("times",))
    samples = numbers(options.samples, "--samples")
    contexts = numbers(options.context, "--context")
    prefills = numbers(options.prefill, "--prefill")
    shapes = options.shape.split(",")
    for name in shapes:
        require(name in SHAPES, f"--shape {name!r} is none of {', '.join(SHAPES)}")
    for name in ("captures", "max_new_tokens"):
        value = getattr(options, name)
        require(value >= 1, f"--{name.replace('_', '-')} must be at least 1, got {value}")
    path, folder = command.begin(options)
    clock: Clock = TimelineClock()
    if not options.rehearse:
        machine.refuse_without(NEEDS, device=True)
        together = "times" in stages and len(stages) > 1
        require(
            not (together and options.artifact),
            "--artifact: its ranks may take all cores, and the profiler needs one; run --stages "
            "kernels,tokens and --stages times apart",
        )
        mine, profilers = machine.cores(together)
        if together:
            os.environ[machine.VISIBLE] = mine
        if options.target in ("trn2", "trn3"):
            os.environ.setdefault("NEURON_LOGICAL_NC_CONFIG", "1")  # the kernels are for one core
        clock = ProfilerClock(machine.profiler() or "", options.captures, profilers)

    def jobs() -> list[Job]:
        target = options.target
        evidence = "computed" if options.rehearse else "measured"
        found: list[Job] = []
        if "kernels" in stages:
            runs = on_our_simulator if options.rehearse else on_neuron_core
            cases = every(options.only) if options.cases == "all" else few(options.only)
            found += kernel_jobs(target, runs, evidence, cases)
        if "tokens" in stages and options.only in "tokens":
            device = "simulate" if options.rehearse else "neuron"
            new_tokens = options.max_new_tokens
            if options.artifact:
                folder_of = Path(options.artifact)
                found += artifact_jobs(
                    folder_of, options.model, target, evidence, options.rehearse, new_tokens
                )
            else:
                found += token_jobs(options.model, target, evidence, device, new_tokens)
        if "times" in stages:
            timed = sweep.grid(target, samples, contexts, prefills, shapes)
            chosen = [each for each in timed if options.only in each.name]
            found += sweep.time_jobs(chosen, target, clock, folder)
        return found

    command.finish(options, "device", path, jobs, clock)


def _text(values: tuple[int, ...]) -> str:
    return ",".join(str(value) for value in values)


if __name__ == "__main__":
    command_line.run(main)
