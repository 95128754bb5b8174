"""The one description of weights: that it is the network's, and that parts make the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.causal_lm import CausalLM, ModelConfig
from models.causal_lm.weights import (
    Weight,
    all_weights,
    check_degree,
    legal_degrees,
    part_bytes,
)
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

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

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "norms": {"qk_norm": True, "output_norms": True},
    "experts": {"experts": 3, "experts_per_token": 2},
    "multi-query": {"g": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_is_the_networks(options: dict[str, Any]) -> None:
    config = replace(tiny.CONFIG, **options)
    network = {name: tuple(w.shape) for name, w in CausalLM(config).named_parameters()}
    assert {name: weight.shape for name, weight in all_weights(config).items()} == network


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_parts_make_the_whole(options: dict[str, Any], tp: int) -> None:
    config = replace(tiny.CONFIG, vocab_size=53, intermediate_size=66, **options)
    for name, weight in all_weights(config).items():
        times = torch.zeros(weight.shape, dtype=torch.int64)
        for rank in range(tp):
            times[weight.part(tp, rank)] += 1
        repeated = 1 if weight.dim is not None else tp
        if "k_proj" in name or "v_proj" in name:
            repeated = max(1, tp // config.g)
        assert (times == repeated).all(), name


def test_query_heads_lie_with_the_head_they_read() -> None:
    config = replace(tiny.CONFIG, h=8, g=2, d=4)
    found = all_weights(config)
    for tp in (1, 2, 4, 8):
        for rank in range(tp):
            queries, _ = found["layers.0.self_attn.q_proj.weight"].part(tp, rank)
            keys, _ = found["layers.0.self_attn.k_proj.weight"].part(tp, rank)
            _, outputs = found["layers.0.self_attn.o_proj.weight"].part(tp, rank)
            assert outputs == queries
            heads = range(queries.start // 4, queries.stop // 4)
            assert {head // config.p for head in heads} == set(
                range(keys.start // 4, keys.stop // 4)
            )


@pytest.mark.parametrize(
    ("sizes", "legal"),
    [
        ({"h": 4, "g": 2}, [1, 2, 4]),
        ({"h": 4, "g": 4}, [1, 2, 4]),
        ({"h": 8, "g": 1}, [1, 2, 4, 8]),
        ({"h": 6, "g": 2}, [1, 2, 6]),
        ({"h": 12, "g": 6}, [1, 2, 3, 6, 12]),
    ],
)
def test_legal_degrees(sizes: dict[str, int], legal: list[int]) -> None:
    assert legal_degrees(replace(tiny.CONFIG, **sizes)) == legal


def test_illegal_degree_names_the_legal_ones() -> None:
    with pytest.raises(InputError, match=r"tp is 3; this model can be split by 1, 2, 4$"):
        check_degree(tiny.CONFIG, 3, 0)
    with pytest.raises(InputError, match=r"rank is 2; it must be in 0..1"):
        check_degree(tiny.CONFIG, 2, 2)


def test_70b_accounting_from_its_config_alone() -> None:
    config = ModelConfig.from_hf(LLAMA_70B)
    # 70.6 billion weights: total_size of the published index is 141,107,412,992 bytes.
    whole = part_bytes(config, 1, itemsize=2)
    assert whole == 141_107_412_992
    norms = (2 * 80 + 1) * 8192 * 2
    kv = 80 * 2 * 1024 * 8192 * 2
    for tp in (8, 16, 32, 64):
        split, held = whole - norms - kv, min(tp, 8)
        assert part_bytes(config, tp, itemsize=2) == split // tp + kv // held + norms
    assert part_bytes(config, 32, itemsize=2) < 4.4 * 2**30
    assert legal_degrees(config) == [1, 2, 4, 8, 16, 32, 64]
    largest = max(w.shape[0] * w.shape[1] for w in all_weights(config).values() if len(w.shape) > 1)
    assert largest * 2 > 1.9 * 2**30  # mapped whole, one tensor would be the 2 GiB that are allowed


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w, tp, rank: replace(w, dim=0).part(tp, rank),  # o_proj along its outputs
        lambda w, tp, rank: w.part(tp, (rank + 1) % tp),  # the next rank's
        lambda w, tp, rank: replace(w, units=0).part(tp, rank),  # through heads
    ],
)
def test_a_wrong_part_is_another_part(wrong: Callable[..., Any]) -> None:
    weight = Weight((48, 96), dim=1, units=4)
    pairs = [(wrong(replace(weight, units=2), 4, r), replace(weight, units=2).part(4, r))
             for r in range(4)]  # fmt: skip
    assert any(found != right for found, right in pairs)


def test_real_index_of_the_default_model(tmp_path: Path) -> None:
    from models.causal_lm import load_config
    from models.pretrained import DEFAULT_MODEL

    config = load_config(DEFAULT_MODEL)
    header = json.loads((DEFAULT_MODEL / "config.json").read_text())
    assert config.vocab_size == header["vocab_size"]
    size = (DEFAULT_MODEL / "model.safetensors").stat().st_size
    assert 0 < size - part_bytes(config, 1, itemsize=2) < 10_000  # the file's header
