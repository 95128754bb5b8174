"""`generate_hlo`, with the arguments that neuronx_distributed/trace/functions.py gives it.

The graph is a list of lines (see `recording`); beside it stands the module itself as it was when it
was traced, which is what "runs" later, on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_neuronx.proto.metaneff_pb2 import MetaNeff
from torch_neuronx.pyhlo.hlo_pb2 import HloModuleProto
from torch_neuronx.xla_impl import recording
from torch_neuronx.xla_impl.structure import Flattener, Packer


@dataclass
class Runnable:
    """A module as it was traced, and which of its tensors are states."""

    module: nn.Module
    inputs: list[str]
    states: list[str]
    weights: list[str]


RUNNABLE: dict[str, Runnable] = {}
"""What was traced in this process, by the hash of its graph's lines."""


@dataclass
class HloArtifacts:
    """What `generate_hlo` returns, as far as it is read."""

    hlo_module: HloModuleProto
    metaneff: MetaNeff
    flattener: Flattener
    packer: Packer
    weight_name_to_idx: dict[str, int]


def generate_hlo(
    func: Callable[..., Any],
    example_inputs: dict[str, Tensor],
    *,
    inline_weights_to_neff: bool = True,
    return_weights: bool = False,
    output_aliased_tensor: bool = True,
    cpu_backend: bool = False,
    preserve_parameters: bool = True,
    enable_aliasing: bool = False,
    treat_inputs_as_kwargs: bool = False,
) -> HloArtifacts:
    """The graph of a module; buffers that it rebinds are its states, all else of it weights."""
    if inline_weights_to_neff or return_weights or output_aliased_tensor:
        raise ValueError("weights are inputs here, and aliased tensors are no outputs")
    if not (enable_aliasing and treat_inputs_as_kwargs and preserve_parameters and cpu_backend):
        raise ValueError("aliasing, inputs by name, parameters kept and the CPU backend are meant")
    if not isinstance(func, nn.Module):
        raise TypeError("the stand-in traces modules")
    traced, kept = copy.deepcopy(func), copy.deepcopy(func)
    recorder = recording.Recorder()
    before = _to_xla(traced, recorder)
    inputs = {name: recording.on_xla(x) for name, x in example_inputs.items()}
    for name, x in inputs.items():
        recorder.own(f"input {name}", x)
    with recorder, torch.no_grad():
        result = traced(**inputs)
        outputs = result if isinstance(result, tuple) else (result,)
        if not all(isinstance(x, Tensor) for x in outputs):
            raise TypeError(f"outputs are {type(result)}; they must be tensors")
        after = _tensors(traced)
        states = [name for name, x in before.items() if after.get(name) is not x]
        for name in states:
            old, new = before[name], after.get(name)
            if name in dict(func.named_parameters()) or new is None:
                raise RuntimeError(f"{name} was rebound and is no buffer")
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise RuntimeError(
                    f"state {name} was {old.dtype}{list(old.shape)} and is rebound to "
                    f"{new.dtype}{list(new.shape)}"
                )
    weights = [name for name in before if name not in states]
    kinds = [(name, "USER_INPUT", x) for name, x in inputs.items()]
    kinds += [(name, "INPUT_STATE", before[name]) for name in states]
    kinds += [(name, "INPUT_WEIGHT", before[name]) for name in weights]
    described = [
        (name, kind, list(x.shape), str(x.dtype).removeprefix("torch.")) for name, kind, x in kinds
    ]
    signature = [f"{kind} {name} {dtype}{shape}" for name, kind, shape, dtype in described]
    module, meta = HloModuleProto(), MetaNeff()
    module.lines, meta.inputs = [*signature, *recorder.lines], [list(each) for each in described]
    RUNNABLE[module.identity] = Runnable(kept, list(inputs), states, weights)
    count = len(inputs) + len(states)
    return HloArtifacts(
        module,
        meta,
        Flattener(tuple(range(len(inputs)))),
        Packer(tuple(range(len(outputs))) if isinstance(result, tuple) else 0, (), ()),
        {name: count + i for i, name in enumerate(weights)},
    )


def _to_xla(module: nn.Module, recorder: recording.Recorder) -> dict[str, Tensor]:
    moved: dict[int, Tensor] = {}
    for prefix, each in module.named_modules():
        for held in (each._parameters, each._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    new = recording.on_xla(tensor)
                    recorder.own(f"{prefix}.{name}".lstrip("."), new)
                    moved[id(tensor)] = new
                held[name] = moved[id(tensor)]
    return _tensors(module)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
