"""From a directory or a hub id to a network with weights.

Only data is read, never code: JSON and safetensors. Every tensor's name and shape is checked
against the network before the first weight is loaded, so that a wrong checkpoint fails in a moment
and with everything that is wrong with it. Weights are then streamed: of each tensor a rank reads
the part that it holds, and at most one block beside its weights is in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.causal_lm.config import ModelConfig
from models.causal_lm.directory import (
    SHARDS_FILE,
    find_checkpoint,
    listed,
    load_config,
    resolve_dtype,
    verify_files,
    weight_files,
)
from models.causal_lm.families import FAMILIES
from models.causal_lm.network import CausalLM
from models.causal_lm.shards import find_shard
from models.causal_lm.storage import Stored, open_files
from models.causal_lm.weights import Weight, all_weights, check_degree
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
    verify: bool = False,
    progress: bool = False,
) -> CausalLM:
    """Loads a checkpoint directory or hub id.

    Args:
        name: a directory in Hugging Face format, or a hub id.
        dtype: "float32" or "bfloat16"; None is the checkpoint's own, with float16 widened to
            float32.
        device: where the weights go.
        kernels: which attention kernels run, "auto", "nki" or "torch".
        target: core generation simulated when NKI kernels run on a CPU.
        verify: whether to compare the files with the checksums that the folder has for them; those
            of a split checkpoint always are.
        progress: whether to show how much is read.

    Raises:
        InputError: whatever is wrong with the name, the files or the arguments, in one sentence.
    """
    directory = find_checkpoint(name)
    config = load_config(directory)
    torch_dtype = resolve_dtype(dtype, config)
    model = CausalLM(config, dtype=torch_dtype, device="meta", kernels=kernels, target=target)
    parts = find_weights(directory, config)
    if verify or (directory / SHARDS_FILE).is_file():
        verify_files(directory, sorted({part.path for part in parts.values()}))
    weights = read_weights(parts, torch_dtype, device=device, progress=progress)
    left = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    assert set(left.missing_keys) <= {"lm_head.weight"}, left
    return model.requires_grad_(False)


def read_weights(
    parts: Mapping[str, Stored],
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Tensor]:
    """Reads weights into memory, cast to `dtype`; `progress` shows how far it is."""
    total = sum(part.nbytes for part in parts.values())
    with tqdm(
        total=total, desc="weights", unit="B", unit_scale=True, leave=False, disable=not progress
    ) as bar:
        return {name: part.read(dtype, device, bar.update) for name, part in parts.items()}


def find_weights(
    directory: Path, config: ModelConfig, tp: int = 1, rank: int = 0
) -> dict[str, Stored]:
    """Where each weight of rank `rank` lies in a checkpoint; nothing but headers is read.

    Raises:
        InputError: tp is no legal degree, files are damaged, or what they hold does not fit the
            config: tensors are missing, unexpected, of another shape or of another dtype.
    """
    check_degree(config, tp, rank)
    if (directory / SHARDS_FILE).is_file():
        return find_shard(directory, config, tp, rank)
    whole = all_weights(config)
    return {
        name: stored.narrow(whole[name].part(tp, rank), whole[name].part_shape(tp))
        for name, stored in _match(config, whole, directory).items()
    }


def _match(config: ModelConfig, whole: Mapping[str, Weight], directory: Path) -> dict[str, Stored]:
    """Checks names, shapes, dtypes; returns each of the network's weights as it is stored."""
    stored = open_files(weight_files(directory))
    wanted = _wanted(config, whole)
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
    dtypes = [
        f"{name} {stored[name].dtype}"
        for name in wanted
        if name in stored and stored[name].dtype not in _STORED_DTYPES
    ]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "not floating point": dtypes,
    }
    problems = [f"{len(found)} {kind} ({listed(found)})" for kind, found in kinds.items() if found]
    if problems:
        raise InputError(f"{directory}: the tensors do not fit config.json: " + "; ".join(problems))
    found = {}
    for name, parts in wanted.items():
        start = 0
        for ours, weight in parts.items():
            stop = start + weight.shape[0]
            found[ours] = stored[name].narrow([slice(start, stop), *stored[name].part[1:]])
            start = stop
    return found


def _wanted(config: ModelConfig, whole: Mapping[str, Weight]) -> dict[str, dict[str, Weight]]:
    """Each tensor that the checkpoint must hold -> the weights whose rows it stacks, in order."""
    family = FAMILIES[config.family]
    order = {part: i for parts in family.fused.values() for i, part in enumerate(parts)}

    def place(ours: str) -> int:
        return max(order.get(part, 0) for part in ours.split("."))

    wanted: dict[str, dict[str, Weight]] = {family.stored_name(ours): {} for ours in whole}
    for ours in sorted(whole, key=place):
        wanted[family.stored_name(ours)][ours] = whole[ours]
    return wanted


def _stacked(parts: Mapping[str, Weight]) -> tuple[int, ...]:
    first, *rest = [weight.shape for weight in parts.values()]
    return (first[0] + sum(shape[0] for shape in rest), *first[1:])
