"""The folder of a checkpoint: found or downloaded, its JSON read, its weight files listed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from models.causal_lm.config import ModelConfig
from models.causal_lm.storage import Advance, sha256
from nki_kernels.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# All that is ever downloaded: transformers' standard names, in the top folder of a repository.
# Other copies of the weights (pytorch_model.bin, original/consolidated.safetensors) and code stay
# behind.
HUB_FILES = [
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "vocab.txt",
    SINGLE_FILE,
    "model-*-of-*.safetensors",
]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

SHARDS_FILE = "shards.json"
"""Makes a folder a checkpoint that is split; see `shards`."""

UNFINISHED = ".unfinished.json"
"""Ending of what `saving` leaves in a folder until it is a checkpoint."""

SUMS_FILE = "SHA256SUMS"
"""Checksums of files beside it, as sha256sum writes them."""

_SHOWN = 8  # names listed where there are many
_DIGEST = re.compile(r"[0-9a-f]{64}")


def find_checkpoint(name: str | Path) -> Path:
    """The directory of a checkpoint: `name` itself, or a download of the hub id `name`.

    The download goes through huggingface_hub, with its cache, `HF_TOKEN` and `HF_HUB_OFFLINE`.

    Raises:
        InputError: no such directory, no such repository, no access, or no network and no copy.
    """
    if not str(name).strip():
        raise InputError("the name of the model is empty; give a directory or a hub id")
    path = Path(name).expanduser()
    if path.is_dir():
        if any(path.glob(f"*{UNFINISHED}")):
            raise InputError(f"{path} was not finished: give the command that writes it again")
        return path
    if path.exists():
        raise InputError(f"{path} is a file; a model is the directory that holds its config.json")
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        raise InputError(
            f"there is no directory {path}, and it is not a hub id (ORGANISATION/NAME)"
        )
    return _download(name)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: missing, unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of the encoding or of the JSON
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def is_split(directory: Path) -> bool:
    """Whether a checkpoint has one file a rank."""
    return (directory / SHARDS_FILE).is_file()


def load_config(directory: Path) -> ModelConfig:
    """The config of a checkpoint directory; InputError where it is missing or unsupported."""
    return ModelConfig.from_hf(read_json(directory / "config.json"))


def resolve_dtype(dtype: str | torch.dtype | None, config: ModelConfig) -> torch.dtype:
    """The dtype to compute in; see `load`."""
    if dtype is None:
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype is {name!r}; supported: {', '.join(DTYPES)}")
    return DTYPES[name]


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, from its index where it is sharded.

    Raises:
        InputError: there are none, the index is malformed, or a file that it names is missing.
    """
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    index = directory / INDEX_FILE
    if not index.is_file():
        raise InputError(
            f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; weights are read from "
            "safetensors only"
        )
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in names.values()
    ):
        raise InputError(f"{index}: weight_map must map each tensor to a file beside the index")
    files = [directory / file for file in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise InputError(f"{index} names files that are missing: {listed(missing) or 'none named'}")
    return files


def expected_sha256(directory: Path) -> dict[str, str]:
    """The checksums that a folder has for its files, by name.

    They stand in the index of shards or in SHA256SUMS, or are the names of the blobs that a
    download from the hub points to.

    Raises:
        InputError: the index is malformed, or a line of SHA256SUMS.
    """
    if is_split(directory):
        try:
            files = read_json(directory / SHARDS_FILE)["files"]
            return {file["name"]: file["sha256"] for file in files}
        except (KeyError, TypeError) as error:
            raise InputError(f"{directory / SHARDS_FILE} is not an index of shards") from error
    path = directory / SUMS_FILE
    if not path.is_file():
        targets = {file.name: file.resolve().name for file in directory.glob("*.safetensors")}
        return {name: target for name, target in targets.items() if _DIGEST.fullmatch(target)}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        digest, _, name = line.partition(" ")
        if not _DIGEST.fullmatch(digest) or not name.strip(" *"):
            raise InputError(f"{path}: line {number} is not a SHA-256 and a file's name")
        found[name.strip(" *")] = digest
    return found


def check_sha256(path: Path, expected: str, advance: Advance | None = None) -> None:
    """Raises InputError unless the file's SHA-256 is `expected`."""
    actual = sha256(path, advance)
    if actual != expected:
        raise InputError(
            f"{path} is damaged: its SHA-256 is {actual[:12]}..., not {expected[:12]}..."
        )


def verify_files(directory: Path, files: Iterable[Path], advance: Advance | None = None) -> None:
    """Compares weight files with the checksums that the folder has for them.

    Raises:
        InputError: a file differs, or there is no checksum for it.
    """
    expected = expected_sha256(directory)
    files = list(files)
    without = [path.name for path in files if path.name not in expected]
    if without:
        raise InputError(
            f"{directory} has no checksum for {listed(without)}: neither in {SUMS_FILE}, which "
            "`sha256sum *.safetensors > SHA256SUMS` makes, nor from the hub"
        )
    for path in files:
        check_sha256(path, expected[path.name], advance)


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        # A pattern's * also matches "/": folders are left out by the second list.
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=["*/*"]))
    except GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its licence on the hub and set HF_TOKEN to a token of yours"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{name} is neither a directory here nor a model on the hub that this token may read"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{name} is not a directory here, not in the local hub cache, and the hub cannot be "
            "reached (or HF_HUB_OFFLINE is set)"
        ) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name} could not be downloaded from the hub: {reason[0]}") from error
