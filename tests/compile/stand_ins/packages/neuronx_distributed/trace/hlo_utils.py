"""Stand-in of neuronx_distributed/trace/hlo_utils.py, of what compiling with layouts uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch_neuronx.pyhlo import hlo_pb2

from neuronx_distributed.trace.model_builder_utils import TraceArtifacts, WLOArtifacts


def read_hlo(hlo_path: str):
    """A graph from a file."""
    hlo = hlo_pb2.HloModuleProto()
    hlo.ParseFromString(Path(hlo_path).read_bytes())
    return hlo


def write_hlo(hlo_path: str, hlo_module: Any):
    """A graph to a file."""
    Path(hlo_path).write_bytes(hlo_module.SerializeToString())


def mark_weights_for_wlo(
    trace_artifacts: TraceArtifacts, weights_to_skip_layout_optimization: set | None = None
) -> None:
    """Says which weights' layouts the compiler may choose."""
    skipped = weights_to_skip_layout_optimization or set()
    indices = trace_artifacts.weight_name_to_idx
    if skipped - set(indices):
        raise RuntimeError(f"Invalid weights in skip set: {skipped - set(indices)}")
    chosen = sorted(i for name, i in indices.items() if name not in skipped)
    trace_artifacts.hlo.frontend_attributes["transposable_weight_idx"] = str(chosen)


def apply_layout_transformation(
    trace_artifacts: TraceArtifacts,
    priority_model_trace_artifacts: TraceArtifacts,
    wlo_artifacts: WLOArtifacts,
    key: str | None = None,
) -> None:
    """Makes a graph take its weights as the priority graph wants them."""
    if not wlo_artifacts:
        raise ValueError("WLO artifacts is missing")
    if wlo_artifacts.wrapped_neff_hlo_filepath is None:
        return
    stub = read_hlo(wlo_artifacts.wrapped_neff_hlo_filepath)
    if not set(trace_artifacts.weight_name_to_idx) <= set(
        priority_model_trace_artifacts.weight_name_to_idx
    ):
        raise RuntimeError(f"{key} has weights that the priority graph has not")
    trace_artifacts.hlo.frontend_attributes["layouts"] = "\n".join(stub.lines)
