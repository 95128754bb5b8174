"""Stand-in of neuronx_distributed/trace/model_builder_v2.py."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch_neuronx
from torch import Tensor, nn

from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.trace import hlo_utils
from neuronx_distributed.trace.functions import (
    compile,
    compile_layout_transformer,
    compile_wlo,
    trace,
)
from neuronx_distributed.trace.model_builder_utils import (
    ModelBuilderConstants,
    TraceArtifacts,
    generate_key,
)
from neuronx_distributed.trace.nxd_model import NxDModel


class ModelBuilder:
    """Traces a module for several inputs and compiles the graphs."""

    def __init__(
        self,
        model: Callable | nn.Module,
        weights_to_skip_layout_optimization: set | None = None,
    ):
        if not torch_neuronx.__version__.startswith("2"):
            raise AssertionError("ModelBuilder requires torch-neuronx>=2.*")
        self.model = model
        self.weights_to_skip_layout_optimization = weights_to_skip_layout_optimization
        self.trace_artifacts_collection: dict[str, TraceArtifacts] = {}
        self.world_size = ModelBuilderConstants.DEFAULT_WORLD_SIZE
        if parallel_state.model_parallel_is_initialized():
            self.world_size = parallel_state._state["world"]

    def trace(
        self,
        args: Tensor | tuple[Tensor, ...] | None = None,
        kwargs: dict[str, Tensor] | None = None,
        tag: str | None = None,
        spmd: bool = True,
    ):
        """Adds a graph."""
        found = trace(
            model=self.model,
            args=args,
            kwargs=kwargs,
            spmd=spmd,
            preserve_parameters=True,
            weights_to_skip_layout_optimization=self.weights_to_skip_layout_optimization,
        )
        self.trace_artifacts_collection[generate_key(found.hlo, tag)] = found
        return self

    def compile(
        self,
        priority_model_key: str | None = None,
        compiler_workdir: str | Path | None = None,
        compiler_args: str | dict[str, str] | None = None,
        max_workers: int | None = None,
    ) -> NxDModel:
        """Compiles all graphs, every time anew."""
        graphs = self.trace_artifacts_collection
        if not graphs:
            raise ValueError("No traces available for compilation. Call trace() first.")
        if priority_model_key and priority_model_key not in graphs:
            raise ValueError(f"Invalid priority_model_key: {priority_model_key}")
        if isinstance(compiler_args, dict):
            if set(graphs) - set(compiler_args):
                raise ValueError(f"Missing compiler args for {set(graphs) - set(compiler_args)}")
        elif compiler_args is not None:
            compiler_args = dict.fromkeys(graphs, compiler_args)
        flags: dict[str, str | None] = dict(compiler_args or dict.fromkeys(graphs))
        results: dict[str, Any] = {}
        layouts = None
        try:
            if priority_model_key:
                first = graphs[priority_model_key]
                hlo_utils.mark_weights_for_wlo(
                    trace_artifacts=first,
                    weights_to_skip_layout_optimization=first.weight_names_to_skip,
                )
                results[priority_model_key] = compile_wlo(
                    hlo_module=first.hlo,
                    metaneff=first.metaneff,
                    compiler_workdir=compiler_workdir,
                    compiler_args=flags[priority_model_key],
                    key=priority_model_key,
                )
                layouts = compile_layout_transformer(
                    wlo_artifacts=results[priority_model_key],
                    priority_model_weight_name_to_idx=first.weight_name_to_idx,
                    compiler_workdir=compiler_workdir,
                )
            with concurrent.futures.ThreadPoolExecutor(max_workers=max_workers) as pool:

                def work(key: str) -> Any:
                    graph = graphs[key]
                    if priority_model_key:
                        hlo_utils.apply_layout_transformation(
                            trace_artifacts=graph,
                            priority_model_trace_artifacts=graphs[priority_model_key],
                            wlo_artifacts=results[priority_model_key],
                            key=key,
                        )
                    return compile(graph.hlo, graph.metaneff, compiler_workdir, flags[key], key)

                rest = [key for key in graphs if key != priority_model_key]
                for key, result in zip(rest, pool.map(work, rest), strict=True):
                    results[key] = result
        except Exception as error:
            raise RuntimeError("Compilation process failed") from error
        made = NxDModel(world_size=self.world_size, layout_transformer=layouts)
        for key, graph in graphs.items():
            made.add(key=key, trace_artifacts=graph, compilation_artifacts=results[key])
        return made
