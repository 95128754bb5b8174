"""What `scripts/compile.py` does where it is to compile: the artefact, and what is said of it."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from compile.artifact import check_out
from compile.backend import Backend
from compile.cache import Cache, default_cache
from compile.devices import sdk_version
from compile.graphs import check_candidates
from compile.make import Made, check_fits, make_artifact
from compile.plan import Plan
from models.causal_lm import Tokenizer
from models.causal_lm.directory import is_split
from models.causal_lm.draw import MOST_CANDIDATES
from models.causal_lm.tokenizer import TOKENIZER_FILES, load_generation_defaults
from models.files import write_json
from models.pretrained import checker, example_prompt
from nki_kernels.errors import InputError
from scripts import options


def backend_for(
    device: str,
    plan: Plan | None = None,
    simulate: bool = True,
    workers: int | None = None,
    flags: str | None = None,
) -> tuple[Backend, str]:
    """Where graphs are compiled for, and why.

    Args:
        device: "auto", "cpu" or "neuron".
        plan: what is to be compiled; None where an artefact is run.
        simulate: whether a CPU simulates NKI operators, or computes them by the torch reference.
        workers: compilers at a time; None leaves it to the memory of the host.
        flags: more flags of neuronx-cc for every graph.

    Raises:
        InputError: the device's software is not here, or it takes no such `workers` or `flags`.
    """
    if device == "auto":
        device = "cpu" if sdk_version() is None else "neuron"
        why = "the Neuron SDK is installed"
        if device == "cpu":
            why = "the Neuron SDK is not installed: the graphs run on CPUs"
    else:
        why = "asked for"
    if device == "neuron":
        from compile.neuron import Neuron, check_sdk

        check_sdk()
        return Neuron() if plan is None else Neuron.for_plan(plan, workers, flags or ""), why
    from compile.export import Cpu

    if workers is not None:
        raise InputError("--workers is for neuronx-cc; a CPU's graphs are captured one by one")
    if flags is not None:
        raise InputError("--compiler-flags is for neuronx-cc; torch.export takes none")
    return Cpu(simulate), why


def check(args: argparse.Namespace, checkpoint: Path, plan: Plan) -> int:
    """Refuses what can be refused before any work; gives the candidates of the draw.

    Raises:
        InputError: what is wrong, in one sentence.
    """
    if is_split(checkpoint):
        raise InputError(f"{checkpoint} is split already; compile what it was made of")
    if args.weights or args.kv_dtype:
        raise InputError(
            "--weights and --kv-dtype are for --dry-run; scripts/convert.py writes a quantised "
            "checkpoint, and that is compiled as it is"
        )
    check_out(out_of(args))
    check_fits(plan)
    if any((checkpoint / name).is_file() for name in TOKENIZER_FILES):
        options.check_vocabulary(plan.config, Tokenizer.load(checkpoint), checkpoint)
    if args.top_k is not None:
        candidates: int = args.top_k
    else:
        candidates = load_generation_defaults(checkpoint).top_k or 0
        candidates = candidates if candidates <= MOST_CANDIDATES else 0
    check_candidates(candidates)
    return candidates


def out_of(args: argparse.Namespace) -> Path:
    """Where the artefact goes."""
    return Path(args.out or f"compiled-{args.instance}-tp{args.tp}")


def compile_plan(args: argparse.Namespace, checkpoint: Path, plan: Plan) -> None:
    """Compiles, and says what was made.

    Raises:
        InputError: what is wrong, in one sentence.
    """
    candidates = check(args, checkpoint, plan)
    backend, why = backend_for(args.device, plan, workers=args.workers, flags=args.compiler_flags)
    out, folder = out_of(args), Path(args.cache) if args.cache else default_cache()
    cache = Cache(folder)
    print(f"device    {backend.name}: {why}")
    draw = f"among at most {candidates} tokens, in the graph" if candidates else "on the host"
    print(f"draw      {draw}", flush=True)
    began = time.perf_counter()
    try:
        made = make_artifact(
            plan, checkpoint, out, backend, cache, candidates, progress=args.json != "-"
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"no artefact was written; graphs that were done are in {folder}, and the same "
            "command goes on from there"
        ) from None
    seconds = time.perf_counter() - began
    for line in told(made, seconds, out, backend, folder):
        print(line)
    print(f"run it    {serve_command(plan, checkpoint, out, backend, candidates)}")
    if args.json and args.json != "-":
        write_json(Path(args.json), as_json(made, seconds, out, backend))


def told(made: Made, seconds: float, out: Path, backend: Backend, cache: Path) -> list[str]:
    """What was made, in words."""
    compiled = {name: s for name, s in made.graphs.items() if s is not None}
    lines = [
        f"graphs    {len(compiled)} compiled in {sum(compiled.values()):.1f} s, "
        f"{len(made.graphs) - len(compiled)} from {cache}"
    ]
    lines += [f"          {name:<24} {s:7.1f} s" for name, s in compiled.items()]
    lines.append(f"weights   split in {made.weights:.1f} s")
    lines.append(f"written   {out}: {made.nbytes:,} bytes in {seconds:.1f} s")
    if backend.name == "cpu":
        lines.append("evidence  computed: no graph has been seen by neuronx-cc")
    return lines


def serve_command(
    plan: Plan, checkpoint: Path, out: Path, backend: Backend, candidates: int
) -> str:
    """What to type to get answers: with each option whose default the artefact does not serve.

    Args:
        plan: that was compiled.
        checkpoint: what it was compiled from.
        out: the artefact.
        backend: of it.
        candidates: among which its graphs draw; 0 where the host does.
    """
    request, defaults = plan.request, load_generation_defaults(checkpoint)
    alone = request.tp == 1 or backend.name == "neuron"
    words = ["python"] if alone else ["torchrun", "--nproc-per-node", str(request.tp)]
    words += ["scripts/generate.py", "--artifact", shlex.quote(str(out))]
    if not example_fits(checkpoint, request.contexts[-1]):
        words += ["--prompt", '"..."']
    if request.samples[-1] < options.SAMPLES:
        words += ["-n", str(request.samples[-1])]
    if (defaults.max_new_tokens or options.MAX_NEW_TOKENS) > request.max_new_tokens:
        words += ["--max-new-tokens", str(request.max_new_tokens)]
    greedy = defaults.do_sample is False or defaults.temperature == 0
    if candidates and not greedy and not 1 <= (defaults.top_k or 0) <= candidates:
        words += ["--top-k", str(candidates)]
    return " ".join(words)


def example_fits(checkpoint: Path, context: int) -> bool:
    """Whether the prompt that `generate.py` takes without being given one has room."""
    if checker(checkpoint) is None:  # not the task that the prompt is of
        return False
    prompt = example_prompt(options.EXAMPLE)
    return len(Tokenizer.load(checkpoint).encode(prompt)) <= context


def as_json(made: Made, seconds: float, out: Path, backend: Backend) -> dict[str, Any]:
    """The same, for `--json`."""
    return {
        "artifact": str(out),
        "device": backend.name,
        "versions": backend.versions(),
        "graphs": [
            {"name": name, "seconds": s, "cached": s is None} for name, s in made.graphs.items()
        ],
        "weights_seconds": made.weights,
        "seconds": seconds,
        "bytes": made.nbytes,
    }
