"""An artefact on NeuronCores: NxDModel made of its graphs' files, weights set, states on the cores.

neuronx-distributed's own `NxDModel.save` writes TorchScript, which is code that loading runs, and
which it calls compatible with no other version. Here the model is put together from the files that
the manifest's hashes cover: the same calls of `NxDModel.add`, and nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from compile.artifact import GRAPHS, Artifact
from compile.failures import NeuronFailure, whole_message
from compile.neuron import LAYOUTS, LNC, TARGET, artifacts, environment
from models.causal_lm import CacheShape, load_config, rope
from models.causal_lm.sharding import kv_bytes, split_heads
from models.causal_lm.shards import file_name
from nki_kernels.errors import InputError


class NeuronSession:
    """Graphs of an artefact on this host's cores; see `compile.backend.Session`.

    One process drives all cores of a host. On several hosts torchrun starts one process each, and
    each holds the ranks behind those of the hosts before it.
    """

    def __init__(self, artifact: Artifact) -> None:
        what = artifact.manifest
        self.what = what
        self.config = load_config(artifact.checkpoint)
        self.prefix = "model." if what["candidates"] else ""
        self.first, self.count = local_ranks(what["tp"])
        folder = artifact.folder / GRAPHS
        weights = [
            rank_weights(artifact, rank, self.prefix)
            for rank in range(self.first, self.first + self.count)
        ]
        self.weight_bytes = sum(each.nbytes for each in weights[0].values())
        try:
            with environment({TARGET: what["target"], LNC: str(what["lnc"])}):
                self.model = assembled(folder, artifact.graphs, what["tp"], self.first, self.count)
                self.model.set_weights(weights)
                self.model.to_neuron()
        except Exception as error:
            raise NeuronFailure("loading", whole_message(error)) from error

    def run(self, name: str, inputs: Mapping[str, Tensor]) -> Any:
        """What a graph gives, of rank 0; all ranks have the same."""
        try:
            return self.model(**inputs, model_name=name)
        except RuntimeError as error:
            raise NeuronFailure("running", whole_message(error), graph=name) from error

    def copy_context(self, shape: CacheShape, source: int, targets: Sequence[int]) -> None:
        """Copies a group's context by way of the host: slow, and only for G above 1."""
        heads = split_heads(self.config, self.what["tp"], 0)
        parts = heads.replicas if self.what["kv_split"] == "positions" else 1
        slots = -(-shape.S_ctx // parts)
        for rank in range(self.count):
            for layer in range(self.config.layers):
                for state, dim in (("k_ctx", 2), ("v_ctx", 1)):
                    key = f"{self.prefix}layers.{layer}.self_attn.cache.{state}"
                    held = self.model.read_from_neuron_buffer(key, rank)
                    part = held.narrow(dim, source * slots, slots).clone()
                    for target in targets:
                        held.narrow(dim, target * slots, slots).copy_(part)
                    self.model.write_to_neuron_buffer(held, key, rank)

    def nbytes(self) -> dict[str, int]:
        """Bytes that a rank holds."""
        itemsize = (
            1 if self.config.kv_dtype == "fp8" else getattr(torch, self.what["dtype"]).itemsize
        )
        cache = CacheShape(**self.what["cache"])
        kv = kv_bytes(self.config, cache, self.what["tp"], self.what["kv_split"], itemsize)
        return {"weights": self.weight_bytes, "kv": kv.context + kv.suffix}


def local_ranks(tp: int) -> tuple[int, int]:
    """The first rank of this host and how many it has, where torchrun started one process a host.

    Raises:
        InputError: the hosts do not divide tp.
    """
    hosts, host = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if tp % hosts:
        raise InputError(f"tp is {tp}, which {hosts} processes, one a host, do not divide")
    return host * (tp // hosts), tp // hosts


def assembled(folder: Path, names: Sequence[str], tp: int, first: int, count: int) -> Any:
    """The NxDModel of an artefact's graphs, not loaded yet."""
    from neuronx_distributed import NxDModel
    from neuronx_distributed.trace.model_builder_utils import (
        CompilationArtifacts,
        LayoutTransformerArtifacts,
    )

    layouts = None
    if (folder / f"{LAYOUTS}.neff").is_file():
        layouts = LayoutTransformerArtifacts(
            hlo_filepath=str(folder / f"{LAYOUTS}.hlo"),
            neff_filepath=str(folder / f"{LAYOUTS}.neff"),
            metaneff_filepath=str(folder / f"{LAYOUTS}.metaneff"),
        )
    model = NxDModel(
        world_size=tp, start_rank=first, local_ranks_size=count, layout_transformer=layouts
    )
    for name in names:
        model.add(
            key=name,
            trace_artifacts=artifacts(folder, name),
            compilation_artifacts=CompilationArtifacts(neff_filepath=str(folder / f"{name}.neff")),
        )
    return model


def rank_weights(artifact: Artifact, rank: int, prefix: str) -> dict[str, Tensor]:
    """What a rank's graphs take besides inputs and states, by the traced module's names.

    That is its file of the checkpoint, the head where the checkpoint ties it, factors of an 8-bit
    cache, the rank itself, and the rotation's tables.

    Raises:
        InputError: the file is damaged.
    """
    artifact.check_weights(rank)
    what = artifact.manifest
    tp = what["tp"]
    config = load_config(artifact.checkpoint)
    cache = CacheShape(**what["cache"])
    held = load_file(artifact.checkpoint / file_name(tp, rank))
    if config.tie_word_embeddings:
        held["lm_head.weight"] = held["embed_tokens.weight"].clone()
    if config.kv_dtype == "fp8":  # factors that a checkpoint leaves out are 1
        one = torch.ones(split_heads(config, tp, rank).g)
        for layer in range(config.layers):
            for factor in ("k_scale", "v_scale"):
                held.setdefault(f"layers.{layer}.self_attn.cache.{factor}", one.clone())
    if tp > 1:
        held["embed_tokens.rank_util.rank"] = torch.tensor([rank], dtype=torch.int32)
    cos, sin = rope.tables(config.rope, config.d, cache.S_ctx + cache.S_dec)
    held |= {"rope_cos": cos, "rope_sin": sin}
    return {prefix + name: tensor for name, tensor in held.items()}
