"""A checkpoint written anew: split into one file a rank, or quantised."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from models.causal_lm.cache import CacheShape
from models.causal_lm.checkpoint import (
    check_tensors,
    dtypes,
    find_weights,
    load,
    rank_shards,
)
from models.causal_lm.config import KV, QUANT_METHOD, Weights
from models.causal_lm.directory import (
    INDEX_FILE,
    SHARDS_FILE,
    SINGLE_FILE,
    SUMS_FILE,
    is_split,
    load_config,
    read_json,
    resolve_dtype,
    weight_files,
)
from models.causal_lm.families import FAMILIES
from models.causal_lm.network import CausalLM
from models.causal_lm.quantisation import (
    DTYPES,
    channel_scales,
    encoded_blocks,
    is_projection,
    power_of_two_scales,
)
from models.causal_lm.saving import Save, fingerprint
from models.causal_lm.sharding import check_degree
from models.causal_lm.shards import file_name, index_content
from models.causal_lm.storage import Source, Stored
from models.files import write_json
from nki_kernels.errors import InputError


def split(
    directory: Path,
    out: Path,
    tp: int,
    dtype: str | torch.dtype | None = None,
    progress: bool = False,
) -> None:
    """Writes the checkpoint in `directory` to the folder `out`, one file a rank.

    One block of a tensor is in memory at a time. An interrupted call is resumed by the same call.

    Args:
        directory: a checkpoint in Hugging Face format.
        out: a folder that is missing, empty, or left by an interrupted call.
        tp: the tensor-parallel degree.
        dtype: "float32" or "bfloat16"; None is the checkpoint's own.
        progress: whether to show how much is written.

    Raises:
        InputError: a wrong checkpoint, an illegal degree, or `out` holds something else.
    """
    config = load_config(directory)
    torch_dtype = resolve_dtype(dtype, config)
    if is_split(directory):
        raise InputError(f"{directory} is split already; split the checkpoint that it was made of")
    check_degree(config, tp)
    ranks = [find_weights(directory, config, tp, rank) for rank in range(tp)]
    dtype_name = str(torch_dtype).removeprefix("torch.")
    source = fingerprint([directory / "config.json", *weight_files(directory)])
    save = Save(out, {"split": tp, "dtype": dtype_name, "from": source})
    held = dtypes(CausalLM(config, dtype=torch_dtype, device="meta"))
    sources = [
        {name: Source(part.shape, held[name], part.blocks) for name, part in parts.items()}
        for parts in ranks
    ]
    with tqdm(
        total=sum(source.nbytes for rank in sources for source in rank.values()),
        desc=f"split {tp}",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not progress,
    ) as bar:
        files = [
            save.file(
                file_name(tp, rank),
                tensors,
                bar.update,
            )
            for rank, tensors in enumerate(sources)
        ]
    save.accompany(directory, _config_of(directory, dtype_name))
    save.finish(SHARDS_FILE, json.dumps(index_content(rank_shards(config), tp, files), indent=2))


def quantise(
    directory: Path,
    out: Path,
    weights: Weights = "float",
    kv_dtype: KV = "model",
    dtype: str | torch.dtype | None = None,
    calibration: Sequence[int] = (),
    progress: bool = False,
) -> None:
    """Writes the checkpoint in `directory` to the folder `out` with 8-bit weights or caches.

    Files and names stay as they are; a projection's tensor is joined by its `weight_scale`, and
    config.json says what was done. One block of a tensor is in memory at a time, and the whole
    network if there is a calibration. An interrupted call is resumed by the same call.

    Args:
        directory: a checkpoint in Hugging Face format.
        out: a folder that is missing, empty, or left by an interrupted call.
        weights: "int8" or "fp8" quantises projections.
        kv_dtype: "fp8" holds keys and values in 8 bits.
        dtype: of all other weights, "float32" or "bfloat16"; None is the checkpoint's own.
        calibration: tokens of a text that the network is run on, to choose the factors of fp8 keys
            and values; without any they are 1.
        progress: whether to show how much is written.

    Raises:
        InputError: a wrong or quantised checkpoint, `out` holds something else, or there is nothing
            to do.
    """
    config = load_config(directory)
    torch_dtype = resolve_dtype(dtype, config)
    if is_split(directory):
        raise InputError(f"{directory} is split; quantise the checkpoint that it was made of")
    if config.weights != "float" or config.kv_dtype != "model":
        raise InputError(f"{directory} is quantised already")
    if weights == "float" and kv_dtype == "model":
        raise InputError("neither weights nor keys and values are to be quantised")
    tensors = check_tensors(config, rank_shards(config), directory)
    files: dict[str, dict[str, Source]] = {}
    for stored, parts in tensors:
        file = files.setdefault(stored.path.name, {})
        if weights != "float" and all(map(is_projection, parts)):
            file |= _quantised_sources(stored, DTYPES[weights])
        else:
            file[stored.name] = Source(stored.shape, torch_dtype, stored.blocks)
    dtype_name = str(torch_dtype).removeprefix("torch.")
    what = {"weights": weights, "kv_dtype": kv_dtype, "dtype": dtype_name,
            "calibration": list(calibration),
            "from": fingerprint([directory / "config.json", *weight_files(directory)])}  # fmt: skip
    save = Save(out, what)
    if calibration and kv_dtype != "model":
        family = FAMILIES[config.family]
        scales = calibrate(load(directory, dtype=torch_dtype, progress=progress), calibration)
        first = next(iter(files.values()))
        first |= {family.stored_name(name): Source.of(scale) for name, scale in scales.items()}
    total = sum(source.nbytes for file in files.values() for source in file.values())
    with tqdm(
        total=total,
        desc="quantise",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not progress,
    ) as bar:
        written = [save.file(name, file, bar.update) for name, file in files.items()]
    raw = _config_of(directory, dtype_name)
    raw["quantization_config"] = {
        "quant_method": QUANT_METHOD,
        "weights": weights,
        "kv_dtype": kv_dtype,
        "kv_scales": bool(calibration) and kv_dtype != "model",
    }
    save.accompany(directory, raw)
    if set(files) != {SINGLE_FILE}:
        weight_map = {name: file for file, sources in files.items() for name in sources}
        write_json(out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    save.finish(SUMS_FILE, "".join(f"{file['sha256']}  {file['name']}\n" for file in written))


def _quantised_sources(weight: Stored, dtype: torch.dtype) -> dict[str, Source]:
    """A projection's tensor in 8 bits and its factors."""
    scale = functools.cache(lambda: channel_scales(weight, dtype))
    return {
        weight.name: Source(weight.shape, dtype, lambda: encoded_blocks(weight, scale(), dtype)),
        f"{weight.name}_scale": Source(weight.shape[:1], torch.float32, lambda: iter([scale()])),
    }


def calibrate(model: CausalLM, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    """The factors of keys and values with which those of a text fit into fp8 twice over.

    Args:
        model: with keys and values that are not quantised.
        tokens: of the text; as many of the first as the model takes.

    Returns:
        fp32 [g] by name: powers of two.
    """
    tokens = list(tokens)[: model.config.max_position - 1]
    model.allocate(CacheShape(G=1, r=1, S_ctx=len(tokens), S_dec=1))
    prompt, length = torch.tensor([tokens]), torch.tensor([len(tokens)])
    nothing, group = torch.zeros(1, 1), torch.zeros(1)
    model(*(each.to(model.device, torch.int32) for each in (prompt, length, nothing, group)))
    return {
        f"layers.{layer}.self_attn.cache.{name}": power_of_two_scales(kept.abs().amax((1, 2))).cpu()
        for layer, cache in enumerate(model.caches())
        for name, kept in (("k_scale", cache.k_ctx), ("v_scale", cache.v_ctx))
    }


def _config_of(directory: Path, dtype: str) -> dict[str, Any]:
    """config.json, with another dtype."""
    raw = {**read_json(directory / "config.json"), "dtype": dtype}
    raw.pop("torch_dtype", None)
    return raw
