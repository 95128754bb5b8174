"""Stand-in of neuronx_distributed/trace/model_builder_utils.py."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


class ModelBuilderConstants:
    """Names of files and keys."""

    NEFF_FILE = "graph.neff"
    WRAPPED_NEFF_FILE = "wrapped_neff.hlo"
    GRAPH_HLO_FILE = "graph.hlo"
    LOG_FILE_DEFAULT_NAME = "log-neuron-cc.txt"
    METANEFF_FILE = "metaneff.pb"
    LAYOUT_TRANSFORMER_KEY = "layout_transformer"
    DEFAULT_WORLD_SIZE = 1


@dataclass
class ModelParamInfo:
    """A parameter of forward."""

    param_name: str
    is_positional: bool


@dataclass
class ProvidedArgInfo:
    """A parameter of forward with an example of it."""

    param_name: str
    is_positional: bool
    tensor: torch.Tensor


class TraceArtifacts:
    """What tracing gives."""

    def __init__(
        self,
        hlo: Any,
        metaneff: Any,
        flattener: Any,
        packer: Any,
        weight_name_to_idx: dict[str, int],
        weight_names_to_skip: set,
        provided_args: list[ProvidedArgInfo],
        model_params: list[ModelParamInfo],
    ):
        self.hlo, self.metaneff = hlo, metaneff
        self.flattener, self.packer = flattener, packer
        self.weight_name_to_idx = weight_name_to_idx
        self.weight_names_to_skip = weight_names_to_skip
        self.provided_args, self.model_params = provided_args, model_params


class CompilationArtifacts:
    """Where a graph's NEFF is."""

    def __init__(self, neff_filepath: str):
        self.neff_filepath = neff_filepath

    def get_neff_bytes(self) -> bytes:
        """The NEFF."""
        return Path(self.neff_filepath).read_bytes()


class WLOArtifacts(CompilationArtifacts):
    """The same of the graph that chose the layouts of weights, and the graph that says how."""

    def __init__(self, neff_filepath: str, wrapped_neff_hlo_filepath: str | None = None):
        super().__init__(neff_filepath)
        self.wrapped_neff_hlo_filepath = wrapped_neff_hlo_filepath


class LayoutTransformerArtifacts:
    """Files of the graph that changes weights' layouts."""

    def __init__(self, hlo_filepath: str, neff_filepath: str, metaneff_filepath: str):
        self.hlo_filepath, self.neff_filepath = hlo_filepath, neff_filepath
        self.metaneff_filepath = metaneff_filepath

    def construct_layout_transformer_object(self, local_ranks_size):
        """The loaded graph."""
        for path in (self.neff_filepath, self.metaneff_filepath):
            Path(path).read_bytes()
        return f"layouts for {local_ranks_size} ranks"


def generate_key(hlo_module: Any, key: str | None = None) -> str:
    """A graph's name."""
    if key is not None:
        return key
    return f"model_{hashlib.sha256(hlo_module.SerializeToString()).hexdigest()[:8]}"
