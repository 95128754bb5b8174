"""What `scripts/compile.py --lower` does: a plan's graphs as HLO, and what they hold."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from compile import graphs
from compile.hlo import Context, as_text
from compile.lowering import Lowered, check_torch_xla, lower, traced_ranks
from compile.neuron import untied
from compile.plan import Plan
from models.causal_lm import CausalLM
from models.files import write_text
from models.parallel import SINGLE
from nki_kernels.errors import InputError


def lower_plan(plan: Plan, folder: Path, candidates: int) -> None:
    """Writes NAME.hlo and NAME.json of each graph to `folder`, and prints what they hold.

    Weights are zeros: a graph does not depend on them.

    Raises:
        InputError: there is no torch_xla, the folder cannot be made, or a graph holds what it must
            not.
    """
    version = check_torch_xla()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--lower {folder} cannot be made: {error.strerror}") from error
    tp = plan.request.tp
    model = graphs.build(untied(plan), traced_ranks(tp) if tp > 1 else SINGLE)
    specs = graphs.graph_specs(plan, candidates)
    print(f"lowering  torch_xla {version} on this host: not compiled, not run")
    wrong = []
    for spec in tqdm(specs, unit="graph", leave=False):
        found = lower_graph(model, spec, candidates, tp)
        write_text(folder / f"{spec.name}.hlo", found.text)
        content = json.dumps(found.report.as_json() | {"inputs": found.inputs}, indent=2)
        write_text(folder / f"{spec.name}.json", content + "\n")
        tqdm.write(as_text(spec.name, found.report))
        wrong += [spec.name] if found.report.problems else []
    if wrong:
        raise InputError(f"graphs hold what they must not, as told above: {', '.join(wrong)}")


def lower_graph(model: CausalLM, spec: graphs.GraphSpec, candidates: int, tp: int) -> Lowered:
    """One graph; in the torch form, a decode graph is searched for copies of the context."""
    module = graphs.traced(model, candidates)
    states = [name for name, _ in module.named_buffers() if ".cache." in name]
    context = None
    if spec.phase == "decode":
        slots = -(-spec.shape.S_ctx // model.parts)
        held = tuple(name for name in states if name.endswith("_ctx"))
        context = Context(held, (slots, spec.shape.G * slots), spec.shape.r)
    with graphs.bucket(model, spec.shape):
        return lower(module, spec.inputs, states, context, tp)
