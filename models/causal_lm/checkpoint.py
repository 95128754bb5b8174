"""From a directory or a hub id to a network with weights.

Only data is read, never code: JSON and safetensors. Every tensor's name and shape is checked
against the network before the first weight is loaded, so that a wrong checkpoint fails in a moment
and with everything that is wrong with it. Weights are then streamed: of each tensor a rank reads
the part that it holds, and at most one block beside its weights is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from models.causal_lm.config import KV, ModelConfig, Weights
from models.causal_lm.directory import (
    find_checkpoint,
    is_split,
    listed,
    load_config,
    resolve_dtype,
    verify_files,
    weight_files,
)
from models.causal_lm.families import FAMILIES
from models.causal_lm.network import CausalLM
from models.causal_lm.quantisation import (
    DTYPES,
    LARGEST,
    channel_scales,
    encoded_blocks,
    is_projection,
)
from models.causal_lm.sharding import KVSplit, Shard
from models.causal_lm.shards import find_shard
from models.causal_lm.storage import NAMES, Stored, copy_blocks, open_files
from models.parallel import SINGLE, Ranks, TensorParallel
from nki_kernels.errors import InputError

# What old checkpoints store beside the weights and the network computes itself.
_COMPUTED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")

_STORED_DTYPES = {"F64", "F32", "F16", "BF16"}


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str = "cpu",
    kernels: str = "auto",
    target: str = "trn1",
    attention: str = "auto",
    parallel: TensorParallel = SINGLE,
    kv_split: KVSplit = "positions",
    weights: Weights | None = None,
    kv_dtype: KV | None = None,
    verify: bool = False,
    progress: bool = False,
) -> CausalLM:
    """Loads a checkpoint directory or hub id.

    Args:
        name: a directory in Hugging Face format, one that was split (see `convert`), or a hub id.
        dtype: "float32" or "bfloat16"; None is the checkpoint's own, with float16 widened to
            float32.
        device: where the weights go.
        kernels: which attention kernels run, "auto", "nki" or "torch".
        target: core generation simulated when NKI kernels run on a CPU.
        attention: which NKI kernel decodes: "bifurcated", "ordinary", or "auto", which pays.
        parallel: the ranks that share the network; this one reads its part of the weights.
        kv_split: see `CausalLM`.
        weights: "int8" or "fp8" quantises the projections while they are read; None leaves them as
            they are stored.
        kv_dtype: "fp8" holds keys and values in 8 bits; None is as the checkpoint says.
        verify: whether to compare the files with the checksums that the folder has for them; those
            of a split checkpoint always are.
        progress: whether to show how much is read.

    Raises:
        InputError: whatever is wrong with the name, the files or the arguments, in one sentence.
    """
    directory = find_checkpoint(name)
    config = load_config(directory)
    torch_dtype = resolve_dtype(dtype, config)
    model = CausalLM(
        _quantised(config, weights, kv_dtype),
        dtype=torch_dtype,
        device="meta",
        kernels=kernels,
        target=target,
        attention=attention,
        parallel=parallel,
        kv_split=kv_split,
    )
    held = dtypes(model)
    stored = find_weights(directory, config, parallel.size, parallel.rank)
    parts = {name: part for name, part in stored.items() if name in held}
    if verify or is_split(directory):
        verify_files(directory, sorted({part.path for part in parts.values()}))
    fill(model, read_weights(parts, held, device=device, progress=progress))
    return model.requires_grad_(False)


def _quantised(config: ModelConfig, weights: str | None, kv_dtype: str | None) -> ModelConfig:
    """The config of the network to make of a checkpoint with `config`."""
    for name, value, allowed in (("weights", weights, Weights), ("kv_dtype", kv_dtype, KV)):
        if value is not None and value not in get_args(allowed):
            words = ", ".join(get_args(allowed))
            raise InputError(f"{name} is {value!r}; it must be one of {words}")
    if weights not in (None, config.weights) and config.weights != "float":
        raise InputError(
            f"weights is {weights!r}, and the checkpoint's are {config.weights}; quantise the one "
            "that it was made of"
        )
    return replace(
        config,
        weights=cast(Weights, weights or config.weights),
        kv_dtype=cast(KV, kv_dtype or config.kv_dtype),
    )


def dtypes(model: CausalLM) -> dict[str, torch.dtype]:
    """The dtype of each weight of a network."""
    return {name: weight.dtype for name, weight in model.named_parameters()}


def fill(model: CausalLM, weights: Mapping[str, Tensor]) -> None:
    """Gives a network all its weights."""
    device = next(iter(weights.values())).device
    ones = unit_scales(model, weights, device)
    left = model.load_state_dict({**weights, **ones}, strict=False, assign=True)
    model.tie_weights()
    computed = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = {name for name in left.missing_keys if "rank_util" not in name} - computed
    assert not missing and not left.unexpected_keys, left


def unit_scales(
    model: CausalLM, given: Container[str], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The factors of keys and values that are not `given`: they are 1."""
    return {
        name: torch.ones(weight.shape, device=device)
        for name, weight in model.named_parameters()
        if ".cache." in name and name not in given
    }


def read_weights(
    parts: Mapping[str, Stored],
    dtypes: Mapping[str, torch.dtype],
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Tensor]:
    """Reads weights into memory, cast, or quantised, to their dtypes.

    Args:
        parts: where they lie.
        dtypes: of each.
        device: where they go.
        progress: whether to show how far it is.

    Returns:
        the weights, and the factors of those that were quantised.
    """
    weights = {}
    total = sum(part.nbytes for part in parts.values())
    with tqdm(
        total=total, desc="weights", unit="B", unit_scale=True, leave=False, disable=not progress
    ) as bar:
        for name, part in parts.items():
            dtype = dtypes[name]
            if dtype in LARGEST and NAMES[dtype] != part.dtype:
                scale = channel_scales(part, dtype)
                weights[f"{name}_scale"] = scale.to(device)
                weights[name] = torch.empty(part.shape, dtype=dtype, device=device)
                copy_blocks(encoded_blocks(part, scale, dtype), weights[name])
                bar.update(part.nbytes)
            else:
                weights[name] = part.read(dtype, device, bar.update)
    return weights


def find_weights(
    directory: Path, config: ModelConfig, tp: int = 1, rank: int = 0
) -> dict[str, Stored]:
    """Where each weight of rank `rank` of `tp` lies in a checkpoint; only headers are read.

    Args:
        directory: of the checkpoint.
        config: of its network, as it is stored.
        tp: how many ranks there are.
        rank: which of them this is.

    Raises:
        InputError: tp is no possible degree, files are damaged, or what they hold does not fit the
            config: tensors are missing, unexpected, of another shape or of another dtype.
    """
    shards = rank_shards(config, tp, rank)
    if is_split(directory):
        return find_shard(directory, shards, tp, rank)
    found = {}
    for stored, parts in check_tensors(config, shards, directory):
        start = 0
        for name, shard in parts.items():
            stop = start + shard.whole[0]
            whole = stored.narrow([slice(start, stop), *stored.part[1:]])
            found[name] = whole.narrow(*live_part(shard))
            start = stop
    return found


def rank_shards(config: ModelConfig, tp: int = 1, rank: int = 0) -> dict[str, Shard]:
    """Which part of each stored weight rank `rank` of `tp` holds, from the config alone.

    Raises:
        InputError: the network cannot be split over `tp` ranks; names the degrees that it can.
    """
    parallel = TensorParallel(Ranks(rank, tp))
    shards = CausalLM(config, device="meta", parallel=parallel).shards()
    return {n: shard for n, shard in shards.items() if config.kv_scales or ".cache." not in n}


def live_part(shard: Shard) -> tuple[list[slice], tuple[int, ...]]:
    """The slices of the whole weight that a shard holds, and its shape, zeros included."""
    part = [slice(0, size) for size in shard.whole]
    if shard.dim is not None:
        part[shard.dim] = slice(*shard.live)
    return part, shard.shape


def check_tensors(
    config: ModelConfig, shards: Mapping[str, Shard], directory: Path
) -> list[tuple[Stored, dict[str, Shard]]]:
    """Checks names, shapes, dtypes; returns each tensor with the weights whose rows it stacks.

    Raises:
        InputError: see `find_weights`.
    """
    stored = open_files(weight_files(directory))
    wanted = _wanted(config, shards)
    ignored = {name for name in stored if _COMPUTED.fullmatch(name)}
    if config.tie_word_embeddings:
        ignored.add("lm_head.weight")  # stored or not, the head is the embedding
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted and name not in ignored]
    shapes = [
        f"{name} {list(stored[name].shape)} instead of {list(_stacked(parts))}"
        for name, parts in wanted.items()
        if name in stored and stored[name].shape != _stacked(parts)
    ]
    quantised = {NAMES[DTYPES[config.weights]]} if config.weights != "float" else _STORED_DTYPES
    dtypes = [
        f"{name} {stored[name].dtype}"
        for name, parts in wanted.items()
        if name in stored
        and stored[name].dtype
        not in (quantised if all(map(is_projection, parts)) else _STORED_DTYPES)
    ]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another dtype than the config says"
        if config.weights != "float"
        else "not floating point": dtypes,
    }
    problems = [f"{len(found)} {kind} ({listed(found)})" for kind, found in kinds.items() if found]
    if problems:
        raise InputError(f"{directory}: the tensors do not fit config.json: " + "; ".join(problems))
    return [(stored[name], parts) for name, parts in wanted.items()]


def _wanted(config: ModelConfig, shards: Mapping[str, Shard]) -> dict[str, dict[str, Shard]]:
    """Each tensor that the checkpoint must hold -> the weights whose rows it stacks, in order."""
    family = FAMILIES[config.family]
    order = {part: i for parts in family.fused.values() for i, part in enumerate(parts)}

    def place(ours: str) -> int:
        return max(order.get(part, 0) for part in ours.split("."))

    wanted: dict[str, dict[str, Shard]] = {family.stored_name(ours): {} for ours in shards}
    for ours in sorted(shards, key=place):
        wanted[family.stored_name(ours)][ours] = shards[ours]
    return wanted


def _stacked(parts: Mapping[str, Shard]) -> tuple[int, ...]:
    first, *rest = [shard.whole for shard in parts.values()]
    return (first[0] + sum(shape[0] for shape in rest), *first[1:])
