"""A checkpoint written anew: split into one file a rank."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tqdm import tqdm

from models.causal_lm.checkpoint import find_weights, rank_shards
from models.causal_lm.directory import (
    SHARDS_FILE,
    load_config,
    read_json,
    resolve_dtype,
    weight_files,
)
from models.causal_lm.saving import Save, fingerprint
from models.causal_lm.sharding import check_degree
from models.causal_lm.shards import file_name, index_content
from models.causal_lm.storage import Source
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
    if (directory / SHARDS_FILE).is_file():
        raise InputError(f"{directory} is split already; split the checkpoint that it was made of")
    check_degree(config, tp)
    shards = [rank_shards(config, tp, rank) for rank in range(tp)]
    ranks = [find_weights(directory, config, shards[rank], tp, rank) for rank in range(tp)]
    dtype_name = str(torch_dtype).removeprefix("torch.")
    source = fingerprint([directory / "config.json", *weight_files(directory)])
    save = Save(out, {"split": tp, "dtype": dtype_name, "from": source})
    count = sum(math.prod(part.shape) for parts in ranks for part in parts.values())
    with tqdm(
        total=count * torch_dtype.itemsize,
        desc=f"split {tp}",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not progress,
    ) as bar:
        files = [
            save.file(
                file_name(tp, rank),
                {name: Source(p.shape, torch_dtype, p.blocks) for name, p in parts.items()},
                bar.update,
            )
            for rank, parts in enumerate(ranks)
        ]
    raw = {**read_json(directory / "config.json"), "dtype": dtype_name}
    raw.pop("torch_dtype", None)
    save.accompany(directory, raw)
    save.finish(SHARDS_FILE, index_content(shards[0], tp, files))
