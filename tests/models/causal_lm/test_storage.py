"""Reading and writing safetensors files by blocks, and the memory that it takes."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.causal_lm import storage
from models.causal_lm.checkpoint import rank_shards
from models.causal_lm.config import ModelConfig
from models.causal_lm.families import FAMILIES
from models.causal_lm.storage import Source, open_files, sha256, write_file
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8]


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{shape} {dtype}": (torch.randn(shape, generator=generator) * 50).to(dtype)
        for shape in [(7,), (13, 5), (3, 4, 2), (0, 4), ()]
        for dtype in DTYPES
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors", tensors


@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_whole_tensors(file: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BLOCK", block)
    path, tensors = file
    stored = open_files([path])
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        told: list[int] = []
        assert torch.equal(stored[name].read(advance=told.append), tensor), name
        assert sum(told) == tensor.nbytes == stored[name].nbytes
        assert torch.equal(stored[name].read(torch.float32), tensor.float())


@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_parts_of_parts(file: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "BLOCK", block)
    path, tensors = file
    name = f"(13, 5) {torch.bfloat16}"
    part = open_files([path])[name].narrow([slice(2, 12), slice(1, 5)])
    inner = part.narrow([slice(3, 9), slice(2, 3)])
    assert torch.equal(part.read(), tensors[name][2:12, 1:5])
    assert torch.equal(inner.read(), tensors[name][5:11, 3:4])
    padded = open_files([path])[name].narrow([slice(2, 12), slice(1, 5)], (12, 7))
    expected = torch.nn.functional.pad(tensors[name][2:12, 1:5], (0, 3, 0, 2))
    assert torch.equal(padded.read(), expected)
    assert padded.nbytes == expected.nbytes


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_what_is_written_is_a_safetensors_file(
    file: Any, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BLOCK", block)
    path, tensors = file
    stored = open_files([path])
    sources = {
        name: Source(s.shape, tensors[name].dtype, s.blocks) for name, s in stored.items()
    } | {"fp8": Source.of(torch.arange(9.0).to(torch.float8_e4m3fn))}
    out = tmp_path / "b.safetensors"
    digest = write_file(out, sources)
    assert digest == sha256(out) == hashlib.sha256(out.read_bytes()).hexdigest()
    written = load_file(out)
    assert torch.equal(written.pop("fp8").float(), torch.arange(9.0))
    assert set(written) == set(tensors)
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def blocks() -> Any:
        yield torch.zeros(5)
        raise KeyboardInterrupt

    (tmp_path / "a.safetensors").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.safetensors", {"x": Source((10,), torch.float32, blocks)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_text() == "before"


def test_a_source_that_gives_too_little_is_refused(tmp_path: Path) -> None:
    source = Source((10,), torch.float32, lambda: iter([torch.zeros(5)]))
    with pytest.raises(RuntimeError, match="20 bytes instead of 40"):
        write_file(tmp_path / "a.safetensors", {"x": source})
    assert not list(tmp_path.iterdir())


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"x": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(
        InputError, match=r"x is stored twice, in a\.safetensors and b\.safetensors"
    ):
        open_files(sorted(tmp_path.iterdir()))


LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}

SIZES_70B = {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672}
HEADS_70B = {"num_attention_heads": 64, "num_key_value_heads": 8}
SMALL = {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096}

# Prints what a load took beside the weights: VmHWM is the peak of all pages, mapped ones included.
LOAD = """
import sys
from pathlib import Path
import torch
from models.causal_lm import storage
from models.causal_lm.checkpoint import find_weights, read_weights
from models.causal_lm.directory import load_config

def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

directory, tp, rank, storage.BLOCK = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = load_config(directory)
torch.zeros(1000, dtype=torch.bfloat16).float()
before = kib("VmRSS")
parts = find_weights(directory, config, tp, rank)
weights = read_weights(parts, dict.fromkeys(parts, torch.bfloat16))
print(sum(w.nbytes for w in weights.values()), (kib("VmHWM") - before) * 1024)
"""


def sparse_checkpoint(directory: Path, layers: int, files: int, **sizes: int) -> ModelConfig:
    """A bf16 Llama of zeros in `files` files that take next to no room on disk."""
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "dtype": "bfloat16",
        "num_hidden_layers": layers,
        **HEADS_70B,
        **sizes,
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.from_hf(raw)
    tensors = list(rank_shards(config).items())
    weight_map = {}
    for i in range(files):
        name = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        header, offset = {}, 0
        for ours, shard in tensors[i::files]:
            theirs = FAMILIES["llama"].stored_name(ours)
            end = offset + 2 * math.prod(shard.whole)
            header[theirs] = {
                "dtype": "BF16",
                "shape": list(shard.whole),
                "data_offsets": [offset, end],
            }
            offset, weight_map[theirs] = end, name
        text = json.dumps(header).encode()
        with (directory / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + offset)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return config


def part_bytes(config: ModelConfig, tp: int, itemsize: int, rank: int = 0) -> int:
    """Bytes of a rank's weights, from the config alone."""
    return (
        sum(math.prod(shard.shape) for shard in rank_shards(config, tp, rank).values()) * itemsize
    )


def peak(directory: Path, tp: int, rank: int, block: int = storage.BLOCK) -> tuple[int, int]:
    """Bytes of the weights of a rank, and of the peak of what loading them took."""
    call = [sys.executable, "-c", LOAD, str(directory), str(tp), str(rank), str(block)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    weights, most = map(int, done.stdout.split())
    return weights, most


def test_70b_accounting_from_its_config_alone() -> None:
    config = ModelConfig.from_hf(LLAMA_70B)
    # 70.6 billion weights: total_size of the published index is 141,107,412,992 bytes.
    whole = part_bytes(config, 1, itemsize=2)
    assert whole == 141_107_412_992
    norms = (2 * 80 + 1) * 8192 * 2
    kv = 80 * 2 * 1024 * 8192 * 2
    for tp in (8, 32):
        split, holders = whole - norms - kv, min(tp, 8)
        mine = part_bytes(config, tp, itemsize=2, rank=tp - 1)
        assert mine == split // tp + kv // holders + norms
    assert mine < 4.4 * 2**30
    largest = max(math.prod(shard.whole) for shard in rank_shards(config).values())
    assert largest * 2 > 1.9 * 2**30  # mapped whole, one tensor would be the 2 GiB that are allowed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_of_a_ranks_load(tmp_path: Path) -> None:
    config = sparse_checkpoint(tmp_path, layers=12, files=3, **SMALL)
    whole = part_bytes(config, 1, itemsize=2)
    assert whole > 350 << 20
    weights, most = peak(tmp_path, tp=8, rank=3, block=8 << 20)
    assert weights == part_bytes(config, 8, itemsize=2) < whole / 7
    assert most < weights + (40 << 20)
    # The test can fail: with whole tensors mapped at once and more of them, it would.
    weights, most = peak(tmp_path, tp=1, rank=0, block=8 << 20)
    assert weights == whole
    assert whole < most < whole + (40 << 20)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_of_a_70b_ranks_load(tmp_path: Path) -> None:
    """Layers and embeddings as large as those of a 70B Llama, 11 GB of them."""
    config = sparse_checkpoint(tmp_path, layers=4, files=4, **SIZES_70B)
    weights, most = peak(tmp_path, tp=8, rank=3)
    assert weights == part_bytes(config, 8, itemsize=2)
    print(f"{part_bytes(config, 1, 2) / 1e9:.2f} GB in files, {weights / 2**20:.0f} MiB of them "
          f"rank 3 of 8; peak beside them {(most - weights) / 2**20:.0f} MiB")  # fmt: skip
    assert most < weights + (2 << 30) / 8  # an eighth of what is promised
