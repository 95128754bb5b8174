"""Stand-in of neuronx_distributed/trace/functions.py: tracing, compiling, sharding."""

from __future__ import annotations

import inspect
import re
import shlex
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from libneuronxla import neuron_xla_compile, neuron_xla_wlo_compile
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_neuronx.utils import get_platform_target
from torch_neuronx.xla_impl.trace import generate_hlo

from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.parallel_layers.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    SPMDRank,
)
from neuronx_distributed.trace import hlo_utils
from neuronx_distributed.trace.model_builder_utils import (
    CompilationArtifacts,
    LayoutTransformerArtifacts,
    ModelBuilderConstants,
    ModelParamInfo,
    ProvidedArgInfo,
    TraceArtifacts,
    WLOArtifacts,
    generate_key,
)

_SHARDED = (ParallelEmbedding, ColumnParallelLinear, RowParallelLinear, SPMDRank)


def append_default_compiler_flags(compiler_args: str | None = "") -> str:
    """Adds what a string lacks; --model-type only where there is no string."""
    text = compiler_args or (
        "--enable-saturate-infinity --auto-cast=none --model-type=transformer -O1"
    )
    if "--auto-cast" not in text:
        text += " --auto-cast=none"
    if not re.search(r"-O\d+", text):
        text += " -O1"
    if "--verbose" not in text:
        text += " --verbose=35"
    return text


def trace(
    model: Callable | nn.Module,
    args: Tensor | tuple[Tensor, ...] | None = None,
    kwargs: dict[str, Tensor] | None = None,
    spmd: bool = True,
    preserve_parameters: bool = True,
    weights_to_skip_layout_optimization: set | None = None,
) -> TraceArtifacts:
    """Traces a module for the given inputs."""
    if not spmd:
        raise NotImplementedError("MPMD tracing is not currently supported")
    if model is None:
        raise ValueError("Model cannot be None")
    provided, parameters = _inputs(model, args, kwargs)
    example = {each.param_name: each.tensor for each in provided}
    try:
        found = generate_hlo(
            model,
            example,
            inline_weights_to_neff=False,
            return_weights=False,
            output_aliased_tensor=False,
            cpu_backend=True,
            preserve_parameters=preserve_parameters,
            enable_aliasing=True,
            treat_inputs_as_kwargs=True,
        )
    except Exception as error:
        raise RuntimeError(f"HLO generation failed: {error}") from error
    return TraceArtifacts(
        hlo=found.hlo_module,
        metaneff=found.metaneff,
        flattener=found.flattener,
        packer=found.packer,
        weight_name_to_idx=found.weight_name_to_idx,
        weight_names_to_skip=set(weights_to_skip_layout_optimization or ()),
        provided_args=provided,
        model_params=parameters,
    )


def _inputs(
    model: Any, args: Any, kwargs: Any
) -> tuple[list[ProvidedArgInfo], list[ModelParamInfo]]:
    """The rules for signatures and examples."""
    signature = inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    if not signature.parameters:
        raise ValueError("Model must have at least one parameter")
    kinds = {each.kind for each in signature.parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise NotImplementedError("Methods with *args or **kwargs are not supported.")
    parameters = []
    for name, each in signature.parameters.items():
        required = each.default is inspect.Parameter.empty
        if not required and each.default is not None:
            raise ValueError(f"Parameter '{name}' has a non-None default value: {each.default}.")
        parameters.append(ModelParamInfo(param_name=name, is_positional=required))
    if isinstance(args, Tensor):
        args = (args,)
    args = () if args is None else args
    if not isinstance(args, tuple) or not all(isinstance(x, Tensor) for x in args):
        raise ValueError("args must be either None, a single tensor, or a tuple of tensors")
    if len(args) > len(parameters):
        raise ValueError("Too many positional arguments.")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError("kwargs must be a dictionary")
    given = dict(zip((each.param_name for each in parameters), args, strict=False))
    named = kwargs or {}
    unknown = set(named) - {each.param_name for each in parameters}
    if unknown:
        raise ValueError(f"Found unexpected keys in kwargs: {unknown}.")
    if set(named) & set(given):
        raise ValueError("Parameters were already provided as positional arguments")
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"Value for key '{name}' must be a tensor")
    given |= named
    missing = [p.param_name for p in parameters if p.is_positional and p.param_name not in given]
    if missing:
        raise ValueError(f"Missing required parameters: {missing}.")
    if not given:
        raise ValueError("At least one input tensor must be provided via args or kwargs")
    provided = [
        ProvidedArgInfo(p.param_name, p.is_positional, given[p.param_name])
        for p in parameters
        if p.param_name in given
    ]
    return provided, parameters


def compile(
    hlo_module: Any,
    metaneff: Any,
    compiler_workdir: str | Path | None = None,
    compiler_args: str | None = None,
    key: str | None = None,
) -> CompilationArtifacts:
    """Compiles a graph into workdir/key/timestamp/."""
    _required(hlo_module=hlo_module, metaneff=metaneff)
    key = generate_key(hlo_module, key)
    try:
        folder = _folder(compiler_workdir, key)
        flags = append_default_compiler_flags(compiler_args=compiler_args)
        if "--logfile" not in flags:
            flags += f" --logfile={folder / ModelBuilderConstants.LOG_FILE_DEFAULT_NAME}"
        _write_hlo(folder, hlo_module)
        neff = neuron_xla_compile(
            module_bytes=hlo_module.SerializeToString(),
            compiler_flags=flags,
            input_format="hlo",
            platform_target=get_platform_target(flags),
            cache_key=None,
            retry_failed_compilation=False,
            lazy=True,
            use_cache=False,
            cache_dir=None,
            work_dir=folder.absolute(),
        )
        path = folder / ModelBuilderConstants.NEFF_FILE
        path.write_bytes(neff)
        (folder / ModelBuilderConstants.METANEFF_FILE).write_bytes(metaneff.SerializeToString())
    except Exception as error:
        raise RuntimeError(f"Compilation failed for {key}") from error
    return CompilationArtifacts(neff_filepath=str(path))


def compile_wlo(
    hlo_module: Any,
    metaneff: Any,
    compiler_workdir: str | Path | None = None,
    compiler_args: list[str] | str | None = None,
    key: str | None = None,
) -> WLOArtifacts:
    """Compiles the priority graph, whose weights' layouts the compiler chooses."""
    _required(hlo_module=hlo_module, metaneff=metaneff)
    key = generate_key(hlo_module, key)
    try:
        folder = _folder(compiler_workdir, key)
        needed = ["--model-type=transformer", "--enable-internal-neff-wrapper"]
        needed += ["--auto-cast=none", "--verbose=35"]
        parts = compiler_args.split() if isinstance(compiler_args, str) else compiler_args or []
        parts = parts + [each for each in needed if each not in parts]
        parts.append(f"--logfile={folder / ModelBuilderConstants.LOG_FILE_DEFAULT_NAME}")
        flags = " ".join(parts)
        shlex.split(flags)
        _write_hlo(folder, hlo_module)
        neff, wrapped = neuron_xla_wlo_compile(
            hlo_module.SerializeToString(),
            flags,
            input_format="hlo",
            platform_target=get_platform_target(flags),
            cache_key=None,
            retry_failed_compilation=False,
            lazy=True,
            use_cache=False,
            cache_dir=None,
            work_dir=folder.absolute(),
            create_subdir=False,
        )
        path = folder / ModelBuilderConstants.NEFF_FILE
        path.write_bytes(neff)
        beside = None
        if wrapped:
            beside = folder / ModelBuilderConstants.WRAPPED_NEFF_FILE
            beside.write_bytes(wrapped)
        (folder / ModelBuilderConstants.METANEFF_FILE).write_bytes(metaneff.SerializeToString())
    except Exception as error:
        raise RuntimeError(f"Compilation failed for priority model {key}") from error
    return WLOArtifacts(
        neff_filepath=str(path), wrapped_neff_hlo_filepath=None if beside is None else str(beside)
    )


def compile_layout_transformer(
    wlo_artifacts: WLOArtifacts,
    priority_model_weight_name_to_idx: dict[str, int],
    compiler_workdir: str | Path | None = None,
    logical_nc_config: int = 1,
) -> LayoutTransformerArtifacts | None:
    """Compiles the graph that brings weights into the layouts that were chosen."""
    _required(
        wlo_artifacts=wlo_artifacts,
        priority_model_weight_name_to_idx=priority_model_weight_name_to_idx,
    )
    if wlo_artifacts.wrapped_neff_hlo_filepath is None:
        return None
    stub = hlo_utils.read_hlo(wlo_artifacts.wrapped_neff_hlo_filepath)
    try:
        folder = _folder(compiler_workdir, "layout_opt")
        flags = (
            f"--model-type=transformer --lnc={logical_nc_config} --verbose=35"
            f" --logfile={folder / ModelBuilderConstants.LOG_FILE_DEFAULT_NAME}"
        )
        neff = neuron_xla_compile(
            module_bytes=stub.SerializeToString(),
            compiler_flags=flags,
            input_format="hlo",
            platform_target=get_platform_target(flags),
            cache_key=None,
            retry_failed_compilation=False,
            lazy=True,
            use_cache=False,
            cache_dir=None,
            work_dir=folder.absolute(),
        )
        hlo = _write_hlo(folder, stub)
        path = folder / ModelBuilderConstants.NEFF_FILE
        path.write_bytes(neff)
        metaneff = folder / ModelBuilderConstants.METANEFF_FILE
        metaneff.write_bytes(b"metaneff")
    except Exception as error:
        raise RuntimeError("Compilation failed for layout transformer") from error
    return LayoutTransformerArtifacts(
        hlo_filepath=str(hlo), neff_filepath=str(path), metaneff_filepath=str(metaneff)
    )


def shard_checkpoint(
    checkpoint: dict[str, Tensor],
    model: nn.Module,
    start_rank: int | None = None,
    end_rank: int | None = None,
    load_on_device: bool = False,
    serialize_path: str | None = None,
) -> list[dict[str, Tensor]]:
    """The parts of the ranks. Changes `checkpoint`, keeps its dtypes, drops names it knows not."""
    assert parallel_state.model_parallel_is_initialized(), (
        "NxD parallel state has not been initialized"
    )
    if load_on_device:
        raise SystemError("Attempted to load sharded weights onto Neuron on a non-Neuron instance")
    _preshard(model, checkpoint, "")
    known = set(model.state_dict())
    dropped = [name for name in checkpoint if name not in known]
    warnings.warn(f"Removing redundant keys from checkpoint: {dropped}", stacklevel=2)
    for name in dropped:
        checkpoint.pop(name)
    tp = parallel_state.get_tensor_model_parallel_size()
    first = 0 if start_rank is None else start_rank
    last = tp - 1 if end_rank is None else end_rank
    assert 0 <= first <= last < tp
    found = []
    for rank in range(first, last + 1):
        part = dict(checkpoint)
        _shard(model, part, rank)
        if serialize_path is not None:
            Path(serialize_path).mkdir(parents=True, exist_ok=True)
            path = Path(serialize_path) / f"tp{rank}_sharded_checkpoint.safetensors"
            save_file({name: x.contiguous() for name, x in part.items()}, path)
        found.append(part)
    return found


def _preshard(module: nn.Module, checkpoint: dict[str, Tensor], prefix: str) -> None:
    hook = getattr(module, "preshard_hook", None)
    if hook is not None:
        hook(checkpoint, prefix + "weight")
        if getattr(module, "add_bias", False):
            hook(checkpoint, prefix + "bias")
        return
    for name, child in module.named_children():
        _preshard(child, checkpoint, f"{prefix}{name}.")


def _shard(model: nn.Module, checkpoint: dict[str, Tensor], rank: int) -> None:
    for prefix, module in model.named_modules():
        if not isinstance(module, _SHARDED):
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}".lstrip(".")
            if name not in checkpoint:
                continue
            if getattr(parameter, "tensor_model_parallel", False):
                whole, dim = checkpoint[name], parameter.partition_dim
                parts = torch.split(whole, whole.shape[dim] // parameter.num_partitions, dim)
                checkpoint[name] = parts[rank % parameter.num_partitions]
            if checkpoint[name].shape != parameter.shape:
                raise RuntimeError(
                    f"expected shape {parameter.shape} for {name} but found "
                    f"{checkpoint[name].shape}"
                )


def _required(**values: Any) -> None:
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ValueError(f"Required compile arguments missing: {', '.join(missing)}")


def _folder(workdir: str | Path | None, key: str) -> Path:
    if workdir is None:
        raise ValueError("the stand-in writes nowhere by default")
    folder = Path(workdir) / key / datetime.now().isoformat().replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write_hlo(folder: Path, hlo: Any) -> Path:
    (folder / "model").mkdir(exist_ok=True)
    path = folder / "model" / ModelBuilderConstants.GRAPH_HLO_FILE
    hlo_utils.write_hlo(str(path), hlo)
    return path
