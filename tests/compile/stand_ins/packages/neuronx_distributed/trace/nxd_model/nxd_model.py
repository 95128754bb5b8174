"""Stand-in of neuronx_distributed/trace/nxd_model/nxd_model.py: runs traced modules on the CPU.

Ranks are threads. States and weights are looked up by name, so a graph that only reads what another
one writes finds neither; what was never written is zero.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from torch import Tensor, nn
from torch_neuronx.pyhlo import hlo_pb2
from torch_neuronx.xla_impl.trace import RUNNABLE, Runnable

from neuronx_distributed.parallel_layers.world import World
from neuronx_distributed.trace.model_builder_utils import (
    CompilationArtifacts,
    LayoutTransformerArtifacts,
    ModelParamInfo,
    TraceArtifacts,
    WLOArtifacts,
)


class NxDModel(nn.Module):
    """Compiled graphs over one set of weights and states."""

    def __init__(
        self,
        world_size: int,
        start_rank: int | None = None,
        local_ranks_size: int | None = None,
        state_initializer: Any = None,
        layout_transformer: LayoutTransformerArtifacts | None = None,
    ):
        super().__init__()
        if start_rank is None:
            assert local_ranks_size is None or local_ranks_size == world_size
            start_rank, local_ranks_size = 0, world_size
        assert local_ranks_size is not None
        self.world_size, self.start_rank = world_size, start_rank
        self.local_ranks_size = local_ranks_size
        if layout_transformer is not None:
            layout_transformer.construct_layout_transformer_object(local_ranks_size)
        self.model_params: list[ModelParamInfo] = []
        self.input_shape_map: dict[str, list[str]] = {}
        self.neffs: dict[str, bytes] = {}
        self.known_states: dict[str, tuple[list[int], torch.dtype]] = {}
        self.flattener_map = nn.ModuleDict()
        self.orders: dict[str, tuple[Any, Any]] = {}
        self.weights: list[dict[str, Tensor]] = [{}] * world_size
        self.states: list[dict[str, Tensor]] = [{}] * world_size
        self.loaded_on_neuron = False
        self._ranks: dict[str, list[nn.Module]] = {}

    def add(
        self,
        key: str,
        trace_artifacts: TraceArtifacts,
        compilation_artifacts: CompilationArtifacts | WLOArtifacts,
    ) -> NxDModel:
        """Adds a graph; the states are those of the first one that has any."""
        states = trace_artifacts.metaneff.of("INPUT_STATE")
        self.known_states = self.known_states or states
        # The real one takes such a buffer for a weight of this graph and finds none when it loads.
        assert states == self.known_states, (
            f"{key} rebinds {sorted(states)}, the graphs before it {sorted(self.known_states)}"
        )
        if not self.model_params:
            self.model_params = trace_artifacts.model_params
        assert self.model_params == trace_artifacts.model_params, (
            "The model provided appears to have a different signature than all other models"
        )
        flattener = trace_artifacts.flattener
        assert isinstance(flattener.layout, tuple), f"flattener layout is {type(flattener.layout)}"
        self.orders[key] = (flattener, trace_artifacts.packer)
        self.flattener_map[key] = nn.Identity()  # refuses dots
        neff = compilation_artifacts.get_neff_bytes()
        _runnable(neff)
        self.neffs[key] = neff
        names = [(each.param_name, list(each.tensor.shape)) for each in
                 trace_artifacts.provided_args]  # fmt: skip
        self.input_shape_map.setdefault(_route(names), []).append(key)
        return self

    def set_weights(self, sharded_checkpoint: list[dict[str, Tensor]]):
        """The weights of the local ranks, in order."""
        if self.loaded_on_neuron:
            raise ValueError(
                "set_weights() was called when the model was already loaded on neuron."
            )
        assert len(sharded_checkpoint) == self.local_ranks_size
        self.weights = sharded_checkpoint

    def to_neuron(self):
        """Makes the states and loads every graph."""
        if self.loaded_on_neuron:
            return
        self.states = [
            {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in
             self.known_states.items()}
            for _ in range(self.local_ranks_size)
        ]  # fmt: skip
        for key, neff in self.neffs.items():
            runnable = _runnable(neff)
            self._ranks[key] = [
                _with(runnable, self.weights[rank], self.states[rank])
                for rank in range(self.local_ranks_size)
            ]
        self.loaded_on_neuron = True

    def replace_weights(self, sharded_checkpoint: list[dict[str, Tensor]]):
        """Other weights for a loaded model."""
        self.loaded_on_neuron = False
        self.set_weights(sharded_checkpoint)
        self.to_neuron()

    def read_from_neuron_buffer(self, buffer_key: str, rank: int) -> Tensor:
        """A state or weight of a rank."""
        assert self.loaded_on_neuron, "Model must be loaded on neuron before calling these methods"
        for held in (self.states, self.weights):
            if len(held) > rank and buffer_key in held[rank]:
                return held[rank][buffer_key].clone()
        raise KeyError(f"Could not find neuron buffer: {buffer_key} in rank {rank}")

    def write_to_neuron_buffer(self, tensor: Tensor, buffer_key: str, rank: int):
        """Overwrites a state or weight of a rank."""
        assert self.loaded_on_neuron, "Model must be loaded on neuron before calling these methods"
        for held in (self.states, self.weights):
            if len(held) > rank and buffer_key in held[rank]:
                if tensor.shape != held[rank][buffer_key].shape:
                    raise KeyError(f"Cannot write tensor of shape {tensor.shape}")
                held[rank][buffer_key].copy_(tensor)
                return
        raise KeyError(f"Could not find neuron buffer: {buffer_key} in rank {rank}")

    def forward(self, *args, model_name: str | None = None, forward_mode="default", **kwargs):
        """Runs the graph for these inputs on all ranks; the outputs of rank 0."""
        if not self.loaded_on_neuron:
            raise RuntimeError("Model not initialized. Call set_weights() followed by to_neuron()")
        assert forward_mode == "default", "the stand-in has the default mode only"
        names = [each.param_name for each in self.model_params]
        given = dict(zip(names, args, strict=False)) | kwargs
        ordered = [(name, given[name]) for name in names if name in given]
        assert len(ordered) == len(args) + len(kwargs), "Not all kwargs were parsed"
        routes = self.input_shape_map[_route([(name, list(x.shape)) for name, x in ordered])]
        if len(routes) > 1:
            assert model_name is not None, (
                f"Got {len(routes)} possible routes but model_name wasn't provided."
            )
        else:
            assert model_name in (None, routes[0]), f"Found {routes[0]} but got {model_name}"
            model_name = routes[0]
        assert model_name in routes
        runnable = _runnable(self.neffs[model_name])
        assert all(x.device.type == "cpu" for _, x in ordered)
        flattener, packer = self.orders[model_name]
        flat = flattener([x.clone() for _, x in ordered])
        inputs = dict(zip(runnable.inputs, flat, strict=True))

        def work(rank: int) -> Any:
            module = self._ranks[model_name][rank]
            with torch.no_grad():
                result = module(**inputs)
                _keep(module, self.states[rank])
            return result

        result = World(self.local_ranks_size).run(work)[0]
        return packer(list(result) if isinstance(result, tuple) else [result])


def _route(names: list[tuple[str, list[int]]]) -> str:
    return "(" + ", ".join(f"{name}: {shape}" for name, shape in names) + ")"


def _runnable(neff: bytes) -> Runnable:
    if not neff.startswith(b"NEFF"):
        raise RuntimeError("nrt_load status=2: invalid NEFF")
    module = hlo_pb2.HloModuleProto()
    module.ParseFromString(json.loads(neff[4:])["module"].encode())
    if module.identity not in RUNNABLE:
        raise RuntimeError("the stand-in runs only what was traced in this process")
    return RUNNABLE[module.identity]


def _with(runnable: Runnable, weights: dict[str, Tensor], states: dict[str, Tensor]) -> nn.Module:
    """A rank's copy of the module over its own weights and the shared states."""
    module = copy.deepcopy(runnable.module)
    ties: dict[int, Tensor] = {}
    for prefix, each in module.named_modules():
        for held in (each._parameters, each._buffers):
            for leaf, old in list(held.items()):
                if old is None:
                    continue
                name = f"{prefix}.{leaf}".lstrip(".")
                if id(old) in ties:
                    held[leaf] = ties[id(old)]
                    continue
                held[leaf] = ties[id(old)] = _found(name, old, runnable, weights, states)
    return module


def _keep(module: nn.Module, states: dict[str, Tensor]) -> None:
    """Writes what the module rebound where all graphs see it."""
    for prefix, each in module.named_modules():
        for leaf, new in list(each._buffers.items()):
            old = states.get(f"{prefix}.{leaf}".lstrip("."))
            if old is not None and new is not old:
                each._buffers[leaf] = old.copy_(new)


def _found(
    name: str,
    old: Tensor,
    runnable: Runnable,
    weights: dict[str, Tensor],
    states: dict[str, Tensor],
) -> Tensor:
    source = states if name in runnable.states else weights
    if name not in source:
        raise RuntimeError(f"no tensor for {name}: not among the {len(source)} that are loaded")
    new = source[name]
    if (new.shape, new.dtype) != (old.shape, old.dtype):
        raise RuntimeError(
            f"{name} is {new.dtype}{list(new.shape)}; the graph takes {old.dtype}{list(old.shape)}"
        )
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
