"""Graphs for a CPU: captured by torch.export, saved without weights, run over shared states.

A graph is the functional form that a Neuron graph has, too: weights and states go in, and what it
makes of the states comes out and takes their place. NKI operators stay operators in it; on a CPU
the simulator runs them. Collectives are nodes that name a process group; loading gives them the
groups that there are.
"""

from __future__ import annotations

import io
import json
import platform
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from compile import graphs
from compile.artifact import Artifact
from compile.graphs import GraphSpec
from compile.plan import Plan
from models.causal_lm import CacheShape, CausalLM, load
from models.causal_lm.directory import listed
from models.parallel import TensorParallel, described, started
from models.parallel.group import Group
from nki_kernels.errors import InputError

SUFFIX = ".pt2"


class Cpu:
    """The backend of CPUs; see `compile.backend.Backend`.

    Args:
        simulate: whether the simulator runs NKI operators; the torch reference is much faster.
    """

    name = "cpu"
    workers = 1

    def __init__(self, simulate: bool = True) -> None:
        self.simulate = simulate

    def versions(self) -> dict[str, str]:
        """Of what captures, saves and runs a graph."""
        return {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    def settings(self, spec: GraphSpec) -> list[str]:
        """None: torch.export has no flags that change a graph."""
        del spec
        return []

    def stages(self, specs: Sequence[GraphSpec]) -> list[list[GraphSpec]]:
        """All at once; no graph needs another."""
        return [list(specs)]

    @contextmanager
    def building(self, plan: Plan) -> Iterator[CausalLM]:
        """Rank 0's network; its collectives never run."""
        with described(plan.request.tp) as parallel:
            yield graphs.build(plan, parallel)

    def trace_graph(
        self, model: CausalLM, spec: GraphSpec, candidates: int, done: Path
    ) -> Callable[[Path], None]:
        """Captures a graph, to be saved; the file holds no weight and no state."""
        module = graphs.traced(model, candidates)
        with graphs.bucket(model, spec.shape), _without_noise():
            program = torch.export.export(module, (), kwargs=spec.inputs).run_decompositions({})
            _strip(program, module)
            program.example_inputs = None  # would be pickled
            saved = io.BytesIO()
            torch.export.save(program, saved)

        def write(folder: Path) -> None:
            # By Python: torch's own writer calls a full disk by another name.
            (folder / f"{spec.name}{SUFFIX}").write_bytes(saved.getvalue())

        return write

    def joined(self, tp: int) -> AbstractContextManager[TensorParallel]:
        """One process a rank, as torchrun starts them."""
        return started(tp)

    def load(self, artifact: Artifact, parallel: TensorParallel) -> CpuSession:
        """This rank's weights, states as zeros, and every graph."""
        return CpuSession(artifact, parallel, self.simulate)


def _strip(program: ExportedProgram, module: nn.Module) -> None:
    """Takes weights and states out of a program; names, shapes and dtypes stay."""
    held = dict(module.named_buffers(remove_duplicate=False))

    def nothing(tensor: Tensor) -> Tensor:
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    for name, tensor in program.state_dict.items():
        empty = nothing(tensor)
        weight = isinstance(tensor, nn.Parameter)
        program.state_dict[name] = nn.Parameter(empty, requires_grad=False) if weight else empty
    for name, constant in program.constants.items():
        if name in held and isinstance(constant, Tensor):
            program.constants[name] = nothing(constant)


class CpuSession:
    """Graphs of an artefact on a CPU, over one set of weights and states."""

    def __init__(self, artifact: Artifact, parallel: TensorParallel, simulate: bool = True) -> None:
        what = artifact.manifest
        artifact.check_weights(parallel.rank)
        self.model = load(
            artifact.checkpoint,
            dtype=what["dtype"],
            kernels=what["kernels"],
            target=what["target"],
            attention=what["attention"],
            parallel=parallel,
            kv_split=what["kv_split"],
        )
        self.model.allocate(CacheShape(**what["cache"]))
        self.module = graphs.traced(self.model, what["candidates"])
        self.weights = dict(self.module.named_parameters(remove_duplicate=False))
        if parallel.size > 1:
            parts = {parallel.size: parallel.group}
            if self.model.parts > 1:
                parts[self.model.parts] = parallel.subgroup(self.model.parts).group
        else:
            parts = {}
        self.graphs = {
            name: _Loaded(artifact.folder / "graphs" / f"{name}{SUFFIX}", parts, simulate)
            for name in artifact.graphs
        }

    def run(self, name: str, inputs: Mapping[str, Tensor]) -> Any:
        """What a graph gives; the states are as it leaves them."""
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        with torch.no_grad():
            written, given = self.graphs[name](self.weights, buffers, inputs)
        for state, tensor in written.items():
            owner, _, leaf = state.rpartition(".")
            setattr(self.module.get_submodule(owner), leaf, tensor)
        return given

    def copy_context(self, shape: CacheShape, source: int, targets: Sequence[int]) -> None:
        """Gives groups `targets` of a cache of `shape` the context of group `source`."""
        with graphs.bucket(self.model, shape):
            self.model.copy_context(source, targets)

    def nbytes(self) -> dict[str, int]:
        """Bytes that this rank holds."""
        return {
            "weights": sum(weight.nbytes for weight in self.module.parameters()),
            "kv": self.model.cache_bytes(),
        }


class _Loaded:
    """A saved graph, called with weights, states and inputs by name."""

    def __init__(self, path: Path, groups: Mapping[int, Group], simulate: bool) -> None:
        # Registers the operators that a graph may hold.
        import nki_kernels.torch_ops  # noqa: F401

        refuse_pickles(path)
        with _without_noise():
            program = torch.export.load(path)
        self.module = program.graph_module
        self.inputs = program.graph_signature.input_specs
        self.outputs = program.graph_signature.output_specs
        self.constants = program.constants
        _join(self.module.graph, groups)
        if not simulate:
            _take_reference(self.module.graph)
        self.module.recompile()

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Any]:
        """States that were written, and what the graph gives: a tensor, or several."""
        arguments = []
        for spec in self.inputs:
            if spec.kind is InputKind.USER_INPUT:
                arguments.append(inputs[spec.arg.name])
            elif spec.kind is InputKind.PARAMETER:
                assert spec.target is not None
                arguments.append(weights[spec.target])
            elif spec.kind is InputKind.BUFFER:
                assert spec.target is not None
                arguments.append(buffers[spec.target])
            else:
                assert spec.target is not None
                arguments.append(self.constants[spec.target])
        written, given = {}, []
        for spec, value in zip(self.outputs, self.module(*arguments), strict=True):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                assert spec.target is not None
                written[spec.target] = value
            else:
                given.append(value)
        return written, given[0] if len(given) == 1 else tuple(given)


def refuse_pickles(path: Path) -> None:
    """Refuses a saved graph of which torch.export.load would unpickle a part.

    It does so, code included, with what it calls sample inputs where they are not plain tensors,
    and with weights and constants that say so. Ours have neither.

    Raises:
        InputError: the file has one, or is no archive of one graph.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            found = [n for n, size in sizes.items() if "/data/sample_inputs/" in n and size]
            for name in sizes:
                if name.endswith("_config.json"):
                    found += _pickled(json.loads(archive.read(name)), name)
    except (zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{path} is no graph that was saved here: {error}") from error
    if found:
        raise InputError(f"{path} holds pickled objects, which are not read: {listed(found)}")


def _pickled(content: Any, name: str) -> list[str]:
    """What an archive's list of tensors says is pickled; `name` is the list's."""
    entries = content.get("config", {}) if isinstance(content, dict) else {name: None}
    return [
        each
        for each, entry in entries.items()
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False
    ]


def _join(graph: torch.fx.Graph, groups: Mapping[int, Group]) -> None:
    """Gives a graph's collectives this process's groups, found by how many ranks they have."""
    for node in graph.nodes:
        if node.op != "call_function" or "_c10d_functional" not in str(node.target):
            continue
        kind = str(node.target).split(".")[-2]
        if kind == "wait_tensor":
            continue
        size = node.meta["val"].shape[0] // node.args[0].meta["val"].shape[0]
        if kind == "all_reduce":
            size = max(groups)
        elif kind != "all_gather_into_tensor":
            raise InputError(f"a graph has the collective {kind}, which is not known here")
        group = groups[size]
        assert isinstance(group, ProcessGroup)
        node.args = (*node.args[:-1], group.group_name)


def _take_reference(graph: torch.fx.Graph) -> None:
    """Has a graph's NKI operators computed by the torch reference."""
    for node in graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("bifork."):
            node.args = tuple("torch" if each == "nki" else each for each in node.args)


class _without_noise(warnings.catch_warnings):
    """Hides what torch warns itself of."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="No complete tensor found")
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch 2.9
