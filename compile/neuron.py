"""The Neuron backend: graphs traced by ModelBuilder v2 and compiled by neuronx-cc, each by itself.

`ModelBuilder` checks and traces (neuronx_distributed/trace/model_builder_v2.py). Its `compile`
makes every graph anew, each time; so graphs go through the functions that it consists of
(neuronx_distributed/trace/functions.py), each into files of its own, which the cache keeps: a graph
that compiled is neither traced nor compiled again. AWS's packages are imported only inside the
functions that need them. None of this has met neuronx-cc or a device here.

Files of a graph NAME: NAME.neff, NAME.metaneff (which tensors go where), NAME.hlo (what the
compiler was given), NAME.json (its inputs, and how they are ordered). The graph whose weight
layouts the others follow has NAME.layouts.hlo too, and layouts.*: the graph that brings weights
into them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compile import graphs
from compile.failures import NeuronFailure, read_log, whole_message
from compile.flags import flag_text
from compile.graphs import GraphSpec
from compile.plan import Plan
from models.causal_lm import CausalLM
from models.parallel import Ranks, TensorParallel
from models.parallel.neuron import from_neuronx_distributed, neuronx_distributed_version
from nki_kernels.errors import InputError

if TYPE_CHECKING:
    from compile.artifact import Artifact
    from compile.neuron_session import NeuronSession

PACKAGES = ("torch-neuronx", "neuronx-distributed", "libneuronxla", "neuronx-cc", "nki")
TARGET = "NEURON_PLATFORM_TARGET_OVERRIDE"
LNC = "NEURON_LOGICAL_NC_CONFIG"
LAYOUTS = "layouts"  # name of the files of the graph that changes weights' layouts


def check_sdk() -> None:
    """Refuses a host without AWS's packages.

    Raises:
        InputError: neuronx-distributed or torch-neuronx is not installed, or is an empty stub.
    """
    from compile.devices import sdk_version

    if neuronx_distributed_version() is None or sdk_version() is None:
        raise InputError(
            "what is for NeuronCores needs torch-neuronx 2.9 and neuronx-distributed 0.18 or later "
            "(Neuron pip repository); without them scripts/compile.py --device cpu makes the same "
            "graphs for a CPU"
        )


@dataclass(frozen=True)
class Neuron:
    """The backend of NeuronCores; see `compile.backend.Backend`.

    Attributes:
        target: core generation.
        lnc: physical cores of a logical one.
        fp8: whether weights or cache are float8_e4m3fn.
        priority: the graph whose weight layouts the others follow; None leaves weights as they are.
        workers: compilers at a time.
        more: flags of the user, behind those of compile/flags.py.
        workdir: where the compiler works; its logs stay there when it fails.
    """

    target: str = "trn1"
    lnc: int = 1
    fp8: bool = False
    priority: str | None = None
    workers: int = 1
    more: str = ""
    workdir: Path = Path(tempfile.gettempdir()) / "bifork-neuronx-cc"

    name = "neuron"

    @staticmethod
    def for_plan(plan: Plan, workers: int | None = None, more: str = "") -> Neuron:
        """The backend for a plan, with `more` flags for every graph.

        Layouts follow the largest decode graph, for it runs once a token. With LNC 2 they are left
        alone: ModelBuilder v2 compiles the graph that changes them for one core only
        (`_compile_priority_model`), so that way is untested by its makers. As many compilers run at
        a time as the plan's host has memory for, and this one, or `workers`.

        Raises:
            InputError: there are to be no workers.
        """
        decodes = [graph.name for graph in plan.graphs if graph.phase == "decode"]
        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if workers is None:
            workers = max(min(plan.host.workers, int(0.8 * here) // plan.host.worker), 1)
        elif workers < 1:
            raise InputError(f"--workers is {workers}; it must be at least 1")
        return Neuron(
            target=plan.instance.target,
            lnc=plan.instance.lnc,
            fp8="fp8" in (plan.config.weights, plan.config.kv_dtype),
            priority=decodes[-1] if plan.instance.lnc == 1 else None,
            workers=workers,
            more=more,
        )

    def versions(self) -> dict[str, str]:
        """Of torch and of AWS's packages."""
        check_sdk()
        found: dict[str, str] = {"torch": str(torch.__version__)}
        for package in PACKAGES:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found[package] = "none"
        return found

    def settings(self, spec: GraphSpec) -> list[str]:
        """The compiler's flags, and whose layouts of weights the graph takes."""
        layouts = [f"layouts of {self.priority}"] if self.priority else []
        return [self.flags(spec), *layouts]

    def flags(self, spec: GraphSpec) -> str:
        """The compiler's command line for a graph."""
        return f"{flag_text(spec.phase, self.target, self.lnc, self.fp8)} {self.more}".rstrip()

    def stages(self, specs: Sequence[GraphSpec]) -> list[list[GraphSpec]]:
        """The graph whose layouts the others follow, then the others."""
        first = [spec for spec in specs if spec.name == self.priority]
        rest = [spec for spec in specs if spec.name != self.priority]
        return [stage for stage in (first, rest) if stage]

    @contextmanager
    def building(self, plan: Plan) -> Iterator[CausalLM]:
        """Rank 0's network, of neuronx-distributed's layers, inside its parallel state.

        On a CPU and not on "meta": tracing copies weights to the device "xla". Their values do not
        matter. A tied head is a weight of its own, for a graph's weights have one name each.
        """
        check_sdk()
        from neuronx_distributed import NxDParallelState

        tp = plan.request.tp
        with (
            environment({TARGET: self.target, LNC: str(self.lnc)}),
            NxDParallelState(world_size=tp, tensor_model_parallel_size=tp, lnc_size=self.lnc),
        ):
            yield graphs.build(untied(plan), from_neuronx_distributed())

    def trace_graph(
        self, model: CausalLM, spec: GraphSpec, candidates: int, done: Path
    ) -> Callable[[Path], None]:
        """Traces a graph; what compiles it into a folder may run in another thread."""
        from neuronx_distributed import ModelBuilder

        try:
            with graphs.bucket(model, spec.shape), torch.no_grad():
                builder = ModelBuilder(graphs.traced(model, candidates))
                builder.trace(kwargs=dict(spec.inputs), tag=spec.name)
        except Exception as error:
            raise NeuronFailure("tracing", whole_message(error), graph=spec.name) from error
        traced = builder.trace_artifacts_collection[spec.name]

        def compiled(folder: Path) -> None:
            self._compile(spec, traced, done, folder)

        return compiled

    def _compile(self, spec: GraphSpec, traced: Any, done: Path, folder: Path) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=self.workdir, prefix=f"{spec.name}-"))
        flags = self.flags(spec)
        try:
            if spec.name == self.priority:
                made = self._compile_priority(spec, traced, flags, work, folder)
            else:
                made = self._compile_other(spec, traced, flags, work, done)
        except Exception as error:
            said, log = read_log(work)
            text = f"{whole_message(error)}\n{said}"
            failure = NeuronFailure("compiling", text, graph=spec.name, flags=flags, log=log)
            raise failure from error
        shutil.copyfile(made.neff_filepath, folder / f"{spec.name}.neff")
        (folder / f"{spec.name}.metaneff").write_bytes(traced.metaneff.SerializeToString())
        (folder / f"{spec.name}.hlo").write_bytes(traced.hlo.SerializeToString())
        text = json.dumps(described(traced), indent=2) + "\n"
        (folder / f"{spec.name}.json").write_text(text, encoding="utf-8")
        shutil.rmtree(work)

    def _compile_priority(
        self, spec: GraphSpec, traced: Any, flags: str, work: Path, folder: Path
    ) -> Any:
        from neuronx_distributed.trace import hlo_utils
        from neuronx_distributed.trace.functions import compile_layout_transformer, compile_wlo

        hlo_utils.mark_weights_for_wlo(
            trace_artifacts=traced,
            weights_to_skip_layout_optimization=traced.weight_names_to_skip,
        )
        made = compile_wlo(
            hlo_module=traced.hlo,
            metaneff=traced.metaneff,
            compiler_workdir=work,
            compiler_args=flags,
            key=spec.name,
        )
        layouts = compile_layout_transformer(
            wlo_artifacts=made,
            priority_model_weight_name_to_idx=traced.weight_name_to_idx,
            compiler_workdir=work,
            logical_nc_config=self.lnc,
        )
        if made.wrapped_neff_hlo_filepath is not None:
            shutil.copyfile(made.wrapped_neff_hlo_filepath, folder / f"{spec.name}.layouts.hlo")
        if layouts is not None:
            shutil.copyfile(layouts.hlo_filepath, folder / f"{LAYOUTS}.hlo")
            shutil.copyfile(layouts.neff_filepath, folder / f"{LAYOUTS}.neff")
            shutil.copyfile(layouts.metaneff_filepath, folder / f"{LAYOUTS}.metaneff")
        return made

    def _compile_other(
        self, spec: GraphSpec, traced: Any, flags: str, work: Path, done: Path
    ) -> Any:
        from neuronx_distributed.trace import hlo_utils
        from neuronx_distributed.trace.functions import compile as compile_hlo
        from neuronx_distributed.trace.model_builder_utils import WLOArtifacts

        if self.priority is not None:
            stub = done / f"{self.priority}.layouts.hlo"
            first = artifacts(done, self.priority)
            hlo_utils.apply_layout_transformation(
                trace_artifacts=traced,
                priority_model_trace_artifacts=first,
                wlo_artifacts=WLOArtifacts(
                    neff_filepath=str(done / f"{self.priority}.neff"),
                    wrapped_neff_hlo_filepath=str(stub) if stub.is_file() else None,
                ),
                key=spec.name,
            )
        return compile_hlo(
            hlo_module=traced.hlo,
            metaneff=traced.metaneff,
            compiler_workdir=work,
            compiler_args=flags,
            key=spec.name,
        )

    @contextmanager
    def joined(self, tp: int) -> Iterator[TensorParallel]:
        """One process a host, which drives all its cores."""
        from compile.neuron_session import local_ranks

        first, count = local_ranks(tp)
        yield TensorParallel(Ranks(first // count, tp // count))

    def load(self, artifact: Artifact, parallel: TensorParallel) -> NeuronSession:
        """Weights, states as zeros, and every graph, on this host's cores."""
        check_sdk()
        from compile.neuron_session import NeuronSession

        del parallel  # one process drives all cores of its host
        return NeuronSession(artifact)


def untied(plan: Plan) -> Plan:
    """A plan whose network has a head of its own."""
    return replace(plan, config=replace(plan.config, tie_word_embeddings=False))


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, which AWS's packages read, and sets them back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def described(traced: Any) -> dict[str, Any]:
    """What `artifacts` needs to make a graph's TraceArtifacts again.

    Orders are kept as text, as neuronx-distributed's own `NxDModel.save` keeps them.
    """
    return {
        "params": [[each.param_name, each.is_positional] for each in traced.model_params],
        "inputs": [
            [
                each.param_name,
                each.is_positional,
                str(each.tensor.dtype).removeprefix("torch."),
                list(each.tensor.shape),
            ]
            for each in traced.provided_args
        ],
        "flattener": {
            "layout": str(traced.flattener.layout),
            "exclude": str(traced.flattener.exclude),
        },
        "packer": {
            "layout": str(traced.packer.layout),
            "identifiers": str(traced.packer.identifiers),
            "constants": str(traced.packer.constants),
        },
        "weights": dict(traced.weight_name_to_idx),
    }


def artifacts(folder: Path, name: str) -> Any:
    """The TraceArtifacts of a compiled graph, from its files, without its HLO.

    `NxDModel.add` reads names and shapes of the inputs.
    """
    import ast

    from neuronx_distributed.trace.model_builder_utils import (
        ModelParamInfo,
        ProvidedArgInfo,
        TraceArtifacts,
    )
    from torch_neuronx.proto import metaneff_pb2
    from torch_neuronx.xla_impl import structure

    told = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    metaneff = metaneff_pb2.MetaNeff()
    metaneff.ParseFromString((folder / f"{name}.metaneff").read_bytes())
    order, packing = told["flattener"], told["packer"]
    return TraceArtifacts(
        hlo=None,
        metaneff=metaneff,
        flattener=structure.Flattener(
            ast.literal_eval(order["layout"]), ast.literal_eval(order["exclude"])
        ),
        packer=structure.Packer(
            ast.literal_eval(packing["layout"]),
            ast.literal_eval(packing["identifiers"]),
            ast.literal_eval(packing["constants"]),
        ),
        weight_name_to_idx=told["weights"],
        weight_names_to_skip=set(),
        provided_args=[
            ProvidedArgInfo(
                param_name, is_positional, torch.zeros(shape, dtype=getattr(torch, dtype))
            )
            for param_name, is_positional, dtype, shape in told["inputs"]
        ],
        model_params=[ModelParamInfo(*each) for each in told["params"]],
    )
