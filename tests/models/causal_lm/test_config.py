from __future__ import annotations

from typing import Any

import pytest

from models.causal_lm import ModelConfig, RopeConfig
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "eos_token_id": [2, 7],
    "torch_dtype": "bfloat16",
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def test_fields() -> None:
    config = ModelConfig.from_hf(LLAMA)
    assert (config.layers, config.h, config.g, config.p, config.d) == (6, 4, 2, 2, 64)
    assert config.eos_token_ids == (2, 7)
    assert config.dtype == "bfloat16"
    assert not config.tie_word_embeddings


def test_defaults_of_absent_fields() -> None:
    raw = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rope_theta")}
    config = ModelConfig.from_hf(raw | {"head_dim": 32, "eos_token_id": None})
    assert (config.g, config.d) == (4, 32)
    assert config.rope.theta == 10000.0
    assert config.eos_token_ids == ()


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        ({"rope_scaling": None}, {"rope_type": "default"}, RopeConfig("default", 5e5)),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_type": "linear", "factor": 4.0},
            RopeConfig("linear", 5e5, 4.0),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_type": "llama3", **LLAMA3},
            RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 512),
        ),
    ],
)
def test_both_spellings_of_rope(older: Any, newer: Any, expected: RopeConfig) -> None:
    base = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    assert ModelConfig.from_hf(LLAMA | older).rope == expected
    assert ModelConfig.from_hf(base | {"rope_parameters": newer | {"rope_theta": 5e5}}).rope == (
        expected
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"GPT2LMHeadModel.*supported: LlamaForCausalLM"),
        ({"architectures": None, "model_type": "gpt2"}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'.*silu"),
        ({"num_key_value_heads": 3}, r"4 query heads.*3 key/value heads.*multiple"),
        ({"hidden_size": 258}, "258, not a multiple of num_attention_heads, 4"),
        ({"head_dim": 33}, "head_dim is 33"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; .*positive integer"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, r"'yarn'.*default, linear, llama3"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "below"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [1, -1]}, r"eos_token_id is \[1, -1\]"),
        ({"torch_dtype": 16}, "torch_dtype is 16"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelConfig.from_hf(LLAMA | changes)


def test_missing_field() -> None:
    raw = {k: v for k, v in LLAMA.items() if k != "intermediate_size"}
    with pytest.raises(InputError, match="intermediate_size is missing"):
        ModelConfig.from_hf(raw)
