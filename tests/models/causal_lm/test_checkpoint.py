from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.causal_lm import find_checkpoint, load, load_config
from models.causal_lm.directory import HUB_FILES
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda d: (d / "config.json").unlink(), "has no config.json"),
    ("config cut off", lambda d: truncate(d / "config.json", 0.5), "config.json is not valid JSON"),
    (
        "config is not text",
        lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json is not valid JSON",
    ),
    ("config is a list", lambda d: (d / "config.json").write_text("[1]"), "JSON list"),
    (
        "unknown architecture",
        lambda d: edit_json(d / "config.json", architectures=["FooForCausalLM"]),
        "FooForCausalLM.*supported: LlamaForCausalLM",
    ),
    ("no weights", lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
    (
        "weights cut off",
        lambda d: truncate(d / "model.safetensors", 0.7),
        "model.safetensors is not a whole safetensors file",
    ),
    (
        "header cut off",
        lambda d: truncate(d / "model.safetensors", 0.001),
        "model.safetensors is not a whole safetensors file",
    ),
    (
        "empty weights",
        lambda d: (d / "model.safetensors").write_bytes(b""),
        "model.safetensors is not a whole safetensors file",
    ),
    (
        "not safetensors",
        lambda d: (d / "model.safetensors").write_bytes(b"PK\x03\x04" * 100),
        "model.safetensors is not a whole safetensors file",
    ),
    (
        "missing tensor",
        lambda d: edit_weights(d, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        r"1 missing \(model.layers.1.mlp.up_proj.weight\)",
    ),
    (
        "unexpected tensor",
        lambda d: edit_weights(
            d, lambda w: w.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(12)})
        ),
        r"1 unexpected \(model.layers.0.self_attn.q_norm.weight\)",
    ),
    (
        "wrong shape",
        lambda d: edit_weights(d, lambda w: w.update({"model.norm.weight": torch.ones(47)})),
        r"1 of another shape \(model.norm.weight \[47\] instead of \[48\]\)",
    ),
    (
        "integer weights",
        lambda d: edit_weights(
            d, lambda w: w.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)})
        ),
        r"not floating point \(model.norm.weight I8\)",
    ),
    (
        "another size in config",
        lambda d: edit_json(d / "config.json", num_hidden_layers=3),
        r"9 missing .*layers.2.* and 1 more",
    ),
    (
        "unstored biases",
        lambda d: edit_json(d / "config.json", mlp_bias=True),
        r"6 missing .*gate_proj.bias",
    ),
]


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damaged_checkpoint(saved: Path, change: Callable[[Path], object], message: str) -> None:
    change(saved)
    with pytest.raises(InputError, match=message) as error:
        load(saved)
    one_sentence(error)


def test_missing_untied_head(make_llama: Any, tmp_path: Path) -> None:
    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"1 missing \(lm_head.weight\)"):
        load(tmp_path)


def test_stored_but_needless_tensors_are_accepted(make_llama: Any, tmp_path: Path) -> None:
    theirs = make_llama(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    edit_weights(
        tmp_path,
        lambda w: w.update(
            {
                "lm_head.weight": torch.zeros(50, 48),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
            }
        ),
    )
    ours = load(tmp_path)
    assert torch.equal(ours.lm_head.weight, theirs.model.embed_tokens.weight)


SHARD_DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("shard missing", lambda d: shards(d)[1].unlink(), "names files that are missing: model-00002"),
    (
        "shard cut off",
        lambda d: truncate(shards(d)[1], 0.9),
        "model-00002.*not a whole safetensors",
    ),
    ("index cut off", lambda d: truncate(index(d), 0.9), "index.json is not valid JSON"),
    ("index without map", lambda d: index(d).write_text("{}"), "weight_map must map"),
    ("index empty", lambda d: index(d).write_text('{"weight_map": {}}'), "none named"),
    (
        "index leaves the folder",
        lambda d: index(d).write_text('{"weight_map": {"lm_head.weight": "../x.safetensors"}}'),
        "weight_map must map each tensor to a file beside the index",
    ),
]


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("model-*.safetensors"))


def index(directory: Path) -> Path:
    return directory / "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("change", "message"), [d[1:] for d in SHARD_DAMAGE], ids=[d[0] for d in SHARD_DAMAGE]
)
def test_damaged_shards(
    make_llama: Any, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    make_llama().save_pretrained(tmp_path, max_shard_size="40KB")
    change(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path)
    one_sentence(error)


def test_weights_do_not_depend_on_the_files_afterwards(saved: Path) -> None:
    model = load(saved)
    before = model.lm_head.weight.clone()
    shutil.rmtree(saved)
    assert torch.equal(model.lm_head.weight, before)
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("bfloat16", None, torch.bfloat16),
        ("float16", None, torch.float32),
        (None, None, torch.float32),
        ("bfloat16", "float32", torch.float32),
        ("float32", torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype(saved: Path, stored: Any, asked: Any, expected: torch.dtype) -> None:
    edit_json(saved / "config.json", dtype=stored, torch_dtype=None)
    model = load(saved, dtype=asked)
    assert {weight.dtype for weight in model.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["float16", "int8", torch.float64])
def test_unsupported_dtype(saved: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match="supported: float32, bfloat16"):
        load(saved, dtype=dtype)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c", "so, what?"])
def test_neither_directory_nor_hub_id(name: str) -> None:
    with pytest.raises(InputError, match="there is no directory"):
        find_checkpoint(name)


@pytest.mark.parametrize("name", ["", " "])
def test_empty_name(name: str) -> None:
    with pytest.raises(InputError, match="is empty"):
        find_checkpoint(name)


def test_file_instead_of_directory(saved: Path) -> None:
    with pytest.raises(InputError, match="is a file"):
        find_checkpoint(str(saved / "config.json"))


class TestHub:
    """Downloads, with huggingface_hub's one entry point replaced."""

    def test_download(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def snapshot_download(name: str, **options: Any) -> str:
            asked.update(options, name=name)
            return str(saved)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        assert load("someone/tiny-llama").config == load_config(saved)
        assert asked == {
            "name": "someone/tiny-llama",
            "allow_patterns": HUB_FILES,
            "ignore_patterns": ["*/*"],
        }

    def test_only_data_is_asked_for(self) -> None:
        from huggingface_hub.utils import filter_repo_objects

        repository = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "modeling_evil.py",
            "pytorch_model.bin",
            "consolidated.safetensors",
            "original/consolidated.00.pth",
            "original/params.json",
            "onnx/model.safetensors",
            "README.md",
        ]
        kept = filter_repo_objects(repository, allow_patterns=HUB_FILES, ignore_patterns=["*/*"])
        assert list(kept) == repository[:8]

    def test_offline_without_a_copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(InputError, match="not in the local hub cache") as error:
            load("someone/tiny-llama")
        one_sentence(error)

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            ("GatedRepoError", "gated.*HF_TOKEN"),
            ("RepositoryNotFoundError", "neither a directory here nor a model"),
            ("HfHubHTTPError", "could not be downloaded from the hub: 500 of the hub"),
        ],
    )
    def test_refused_by_the_hub(
        self, monkeypatch: pytest.MonkeyPatch, error: str, message: str
    ) -> None:
        kind = getattr(huggingface_hub.errors, error)

        def snapshot_download(name: str, **options: Any) -> str:
            # Its constructor wants a response, of another library in each major version.
            failure = kind.__new__(kind)
            Exception.__init__(failure, "500 of the hub\nand more lines")
            raise failure

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(InputError, match=message) as raised:
            load("someone/tiny-llama")
        one_sentence(raised)
