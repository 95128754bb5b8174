from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_lm import CacheShape, load
from nki_kernels.errors import InputError
from tests.models import tiny
from tests.models.causal_lm.driver import check_against, check_poison, run
from tests.models.tiny import int32

pytestmark = pytest.mark.null

SHAPE = CacheShape(G=2, r=2, S_ctx=13, S_dec=9)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("g", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_logits_equal_transformers(make_llama: Any, tmp_path: Path, g: int, tied: bool) -> None:
    theirs = make_llama(num_key_value_heads=g, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == tied
    check_against(theirs, ours)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ],
    ids=["biases", "head_dim", "rope-linear", "rope-llama3"],
)
def test_options_equal_transformers(
    make_llama: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    theirs = make_llama(**fields)
    theirs.save_pretrained(tmp_path)
    check_against(theirs, load(tmp_path))


def test_sharded_checkpoint(make_llama: Any, tmp_path: Path) -> None:
    theirs = make_llama()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    check_against(theirs, load(tmp_path))


def test_bfloat16_is_close_and_logits_are_fp32(make_llama: Any, tmp_path: Path) -> None:
    theirs = make_llama().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.dtype == torch.bfloat16
    assert load(tmp_path, dtype="float32").dtype == torch.float32
    first, logits = run(ours)
    wide_first, wide = run(load(tmp_path, dtype="float32"))
    assert first[0].dtype == logits.dtype == torch.float32
    # a few of bf16's 8 significant bits, after two layers
    for narrow, reference in ((first[0], wide_first[0]), (logits.nan_to_num(), wide.nan_to_num())):
        assert (narrow - reference).abs().max() < 0.05 * reference.abs().max()


def test_dead_slots_do_not_change_a_bit() -> None:
    check_poison(tiny.model())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (int32([[0] * 14]), r"\(1, 14\).*S_ctx = 13"),
        (int32([[0], [0]]), r"\(2, 1\)"),
        (int32([[[0]], [[0]]]), r"\(2, 1, 1\).*r = 2"),
        (int32([0]), "must be"),
    ],
)
def test_tokens_of_another_shape(tokens: Tensor, message: str) -> None:
    model = tiny.model()
    model.allocate(SHAPE)
    with pytest.raises(InputError, match=message):
        model(tokens, int32([1, 1]), int32([[0, 0], [0, 0]]), int32([0]))


def test_no_cache_yet() -> None:
    with pytest.raises(InputError, match="allocate"):
        tiny.model()(int32([[1]]), int32([1]), int32([[0]]), int32([0]))


@pytest.mark.parametrize("name", ["G", "r", "S_ctx", "S_dec"])
def test_empty_shape(name: str) -> None:
    sizes = {"G": 1, "r": 1, "S_ctx": 1, "S_dec": 1}
    with pytest.raises(InputError, match=f"{name} is 0"):
        CacheShape(**(sizes | {name: 0}))
