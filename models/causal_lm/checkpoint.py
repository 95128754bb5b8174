"""From a directory or a hub id to a network with weights.

Only data is read, never code: JSON and safetensors. Every tensor's name and shape is checked
against the network before the first weight is loaded, so that a wrong checkpoint fails in a moment
and with everything that is wrong with it; weights are then read one tensor at a time from a memory
map.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.causal_lm.config import ModelConfig
from models.causal_lm.families import FAMILIES
from models.causal_lm.network import CausalLM
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

# What old checkpoints store beside the weights and the network computes itself.
_COMPUTED = re.compile(r"(.*\.)?rotary_emb\.inv_freq")

_STORED_DTYPES = {"F64", "F32", "F16", "BF16"}
_SHOWN = 8  # names listed of each kind of mismatch


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


def load_config(directory: Path) -> ModelConfig:
    """The config of a checkpoint directory; InputError where it is missing or unsupported."""
    return ModelConfig.from_hf(read_json(directory / "config.json"))


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: torch.device | str = "cpu",
    kernels: str = "auto",
    target: str = "trn1",
) -> CausalLM:
    """Loads a checkpoint directory or hub id.

    Args:
        name: a directory in Hugging Face format, or a hub id.
        dtype: "float32" or "bfloat16"; None is the checkpoint's own, with float16 widened to
            float32.
        device: where the weights go.
        kernels: which attention kernels run, "auto", "nki" or "torch".
        target: core generation simulated when NKI kernels run on a CPU.

    Raises:
        InputError: whatever is wrong with the name, the files or the arguments, in one sentence.
    """
    directory = find_checkpoint(name)
    config = load_config(directory)
    torch_dtype = resolve_dtype(dtype, config)
    with _opened(weight_files(directory)) as stored:
        model = CausalLM(config, dtype=torch_dtype, device="meta", kernels=kernels, target=target)
        weights = {
            ours: part.read().to(device=device, dtype=torch_dtype, copy=True)
            for ours, part in _match(model, stored, directory).items()
        }
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(False)


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
        raise InputError(
            f"{index} names files that are missing: {_listed(missing) or 'none named'}"
        )
    return files


@dataclass(frozen=True)
class _Stored:
    """A tensor in an open file, or some of its rows, not read yet."""

    file: Any  # safetensors.safe_open
    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    first: int = 0  # row

    def rows(self, start: int, stop: int) -> _Stored:
        """Rows `start` to `stop` of it."""
        return replace(self, first=start, shape=(stop - start, *self.shape[1:]))

    def read(self) -> Tensor:
        try:
            return self.file.get_tensor(self.name)[self.first : self.first + self.shape[0]]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path}: tensor {self.name} cannot be read: {error}") from error


@contextmanager
def _opened(files: list[Path]) -> Iterator[dict[str, _Stored]]:
    """The tensors of memory-mapped files, by name, read on demand."""
    stored: dict[str, _Stored] = {}
    for path in files:
        try:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                stored[name] = _Stored(file, path, name, shape, str(part.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    yield stored


def _match(model: CausalLM, stored: Mapping[str, _Stored], directory: Path) -> dict[str, _Stored]:
    """Checks names, shapes, dtypes; returns each of the network's weights as it is stored."""
    wanted = _wanted(model)
    ignored = {name for name in stored if _COMPUTED.fullmatch(name)}
    if model.config.tie_word_embeddings:
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
    problems = [f"{len(found)} {kind} ({_listed(found)})" for kind, found in kinds.items() if found]
    if problems:
        raise InputError(f"{directory}: the tensors do not fit config.json: " + "; ".join(problems))
    found = {}
    for name, parts in wanted.items():
        start = 0
        for ours, weight in parts.items():
            found[ours] = stored[name].rows(start, start + weight.shape[0])
            start += weight.shape[0]
    return found


def _wanted(model: CausalLM) -> dict[str, dict[str, Tensor]]:
    """Each tensor that the checkpoint must hold -> the weights whose rows it stacks, in order."""
    family = FAMILIES[model.config.family]
    order = {part: i for parts in family.fused.values() for i, part in enumerate(parts)}

    def place(ours: str) -> int:
        return max(order.get(part, 0) for part in ours.split("."))

    # named_parameters gives a tied weight once, under its first name.
    weights = dict(model.named_parameters())
    wanted: dict[str, dict[str, Tensor]] = {family.stored_name(ours): {} for ours in weights}
    for ours in sorted(weights, key=place):
        wanted[family.stored_name(ours)][ours] = weights[ours]
    return wanted


def _stacked(parts: Mapping[str, Tensor]) -> tuple[int, ...]:
    first, *rest = [tuple(weight.shape) for weight in parts.values()]
    return (first[0] + sum(shape[0] for shape in rest), *first[1:])


def _listed(names: list[str]) -> str:
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
