"""The index of a checkpoint that is split for a tensor-parallel degree: one file a rank.

`shards.json` names the degree, each weight's whole shape, and each rank's file with its size and
SHA-256. A rank then reads its own file from end to end instead of a part of every file, and needs
no other. The tensors bear the network's own names; which part of a weight a rank's file holds is
said by `sharding`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.causal_lm.directory import SHARDS_FILE, listed, read_json
from models.causal_lm.sharding import Shard
from models.causal_lm.storage import Stored, open_files
from nki_kernels.errors import InputError

FORMAT = 1


def file_name(tp: int, rank: int) -> str:
    """The file of one rank."""
    return f"rank-{rank:05d}-of-{tp:05d}.safetensors"


def index_content(
    shards: Mapping[str, Shard], tp: int, files: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `shards.json` holds; `files` are the ranks' files in order: name, bytes, sha256."""
    return {
        "format": FORMAT,
        "tp": tp,
        "shapes": {name: list(shard.whole) for name, shard in shards.items()},
        "files": list(files),
    }


def find_shard(
    directory: Path, shards: Mapping[str, Shard], tp: int, rank: int
) -> dict[str, Stored]:
    """Where each weight of rank `rank` lies in its file.

    Raises:
        InputError: the checkpoint was split for another degree or another network, or the file is
            missing, cut off, or does not hold what the rank needs.
    """
    index = directory / SHARDS_FILE
    content = read_json(index)
    whole = {name: shard.whole for name, shard in shards.items()}
    try:
        saved_tp, form, files = int(content["tp"]), content["format"], list(content["files"])
        shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
        name, size = str(files[rank]["name"]), int(files[rank]["bytes"])
    except IndexError:
        name, size = "", 0  # another degree, as is said below
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{index} is not an index of shards: {error!r}") from error
    if form != FORMAT:
        raise InputError(f"{index} has format {form!r}; this version reads {FORMAT}")
    if saved_tp != tp or len(files) != tp:
        raise InputError(
            f"{directory} is split for tp = {saved_tp} and cannot be loaded with tp = {tp}; split "
            f"the whole checkpoint again with --tp {tp}, or load that"
        )
    other = [n for n in {**shapes, **whole} if n not in shapes or n not in whole
             or shapes[n] != whole[n]]  # fmt: skip
    if other:
        raise InputError(f"{index} and config.json are of different networks: {listed(other)}")
    path = directory / name
    if name != file_name(tp, rank):
        raise InputError(f"{index} names {name} for rank {rank}; it must be {file_name(tp, rank)}")
    if not path.is_file():
        raise InputError(f"{index} names a file that is missing: {name}")
    if path.stat().st_size != size:
        raise InputError(f"{path} has {path.stat().st_size} bytes; {SHARDS_FILE} says {size}")
    stored = open_files([path])
    wrong = [
        f"{name} {list(stored[name].shape) if name in stored else 'missing'} instead of {shape}"
        for name, shape in ((n, list(shard.shape)) for n, shard in shards.items())
        if name not in stored or list(stored[name].shape) != shape
    ]
    if wrong:
        raise InputError(f"{path} does not hold rank {rank} of {tp}: {listed(wrong)}")
    return {name: stored[name] for name in shards}
