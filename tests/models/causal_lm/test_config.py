from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from models.causal_lm import ModelConfig, RopeConfig
from models.causal_lm.families import FAMILIES, Family
from nki_kernels.errors import InputError
from tests.models.causal_lm import families

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
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported: silu, gelu_pytorch_tanh"),
        ({"hidden_act": ["silu"]}, r"hidden_act is \['silu'\]; supported"),
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
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            r"'yarn'.*default, linear, llama3, longrope",
        ),
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


# What a config.json must have in every family.
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def raw_config(family: Family, **fields: Any) -> dict[str, Any]:
    """The config.json of a family with transformers' defaults and `fields`."""
    import transformers

    made = getattr(transformers, family.architecture.replace("ForCausalLM", "Config"))(**fields)
    return {**made.to_dict(), "architectures": [family.architecture]}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_absent_fields_are_what_transformers_takes_them_for(family: Family) -> None:
    full = raw_config(family)
    sparse = {name: full[name] for name in (*REQUIRED, "architectures", "model_type")}
    expected = replace(ModelConfig.from_hf(full), eos_token_ids=(), dtype=None)
    assert ModelConfig.from_hf(sparse) == expected


@pytest.mark.parametrize("name", families.MODELS)
def test_both_spellings_of_a_whole_config(name: str) -> None:
    raw = families.make(name).config.to_dict()
    raw["architectures"] = [f"{families.MODELS[name].kind}ForCausalLM"]
    config = ModelConfig.from_hf(raw)
    for spelling in ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"):
        raw.pop(spelling, None)
    rope = dict(families.MODELS[name].rope)
    assert ModelConfig.from_hf({**raw, "rope_parameters": rope}) == config
    beside = {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = None if rope["rope_type"] == "default" else rope
    assert ModelConfig.from_hf({**raw, **beside, "rope_scaling": scaling}) == config
    assert config.rope.theta == families.MODELS[name].rope["rope_theta"]


FAMILY_FIELDS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mistral", {"sliding_window": None}, {"windows": ()}),
    ("mistral", {"sliding_window": 64, "num_hidden_layers": 2}, {"windows": (64, 64)}),
    ("mistral", {"sliding_window": 64, "max_position_embeddings": 64}, {"windows": ()}),
    ("qwen2", {"sliding_window": 64}, {"windows": (), "qkv_bias": True, "o_bias": False}),
    (
        "qwen2",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 64,
            "max_window_layers": 2,
        },
        {"windows": (None, None, 64)},
    ),
    (
        "qwen3",
        {
            "num_hidden_layers": 2,
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        {"windows": (64, None), "qk_norm": True, "d": 128},
    ),
    (
        "phi3",
        {"rope_parameters": None, "partial_rotary_factor": 0.75},
        {"rope": RopeConfig("default", 1e4, fraction=0.75)},
    ),
    (
        "phi3",
        {
            "max_position_embeddings": 131072,
            "rope_parameters": None,
            "rope_scaling": {"type": "su", "short_factor": [2.0] * 48, "long_factor": [9.0] * 48},
        },
        {
            "max_position": 4096,  # beyond it, other factors would turn what is already cached
            "rope": RopeConfig(
                "longrope",
                1e4,
                factor=32.0,
                original_max_position=4096,
                short_factors=(2.0,) * 48,
                magnitude=math.sqrt(1 + math.log(32) / math.log(4096)),
            ),
        },
    ),
    (
        "gemma2",
        {"num_hidden_layers": 3, "hidden_size": 64, "query_pre_attn_scalar": 144},
        {
            "windows": (4096, None, 4096),
            "embedding_multiplier": 8.0,
            "scale": 1 / 12,
            "attention_softcap": 50.0,
            "final_softcap": 30.0,
            "activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "d": 256,
        },
    ),
    ("gemma2", {"attn_logit_softcapping": None}, {"attention_softcap": None}),
    ("granite", {"logits_scaling": 16.0, "attention_bias": True}, {"logit_divisor": 16.0}),
    ("mixtral", {"num_local_experts": 4}, {"experts": 4, "experts_per_token": 2}),
]


@pytest.mark.parametrize(("name", "fields", "expected"), FAMILY_FIELDS)
def test_fields_of_families(name: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    config = ModelConfig.from_hf(raw_config(FAMILIES[name]) | {"layer_types": None} | fields)
    assert {field: getattr(config, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0; it must be a positive integer"),
        ("mistral", {"sliding_window": "all"}, "sliding_window is 'all'"),
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9; .*local_experts, 8"),
        ("mixtral", {"num_local_experts": None}, "num_local_experts is None"),
        ("mixtral", {"hidden_act": "relu"}, "hidden_act is 'relu'; supported: silu"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window is 1"),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": ["chunked"]},
            "layer_types is .*of 2,",
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "layer_types": ["full_attention", "chunked"]},
            "layer_types is .*each of full_attention, sliding_attention",
        ),
        (
            "gemma2",
            {"sliding_window": None},
            "sliding_window is None; layer_types has sliding_attention",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation is 'relu'; supported"),
        ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping is -1"),
        ("granite", {"logits_scaling": 0}, "logits_scaling is 0"),
        (
            "phi3",
            {"rope_parameters": None, "rope_scaling": {"type": "longrope"}},
            "rope_scaling: short_factor is missing; it must be a list of positive numbers",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 2]}},
            "short_factor has 2 numbers; .*each of 48 pairs",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, "2"]}},
            r"short_factor\[1\] is '2'; it must be a positive number",
        ),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 1.5}}, "up to 1.0 is supported for"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.01}}, "0 elements turn"),
        (
            "qwen2",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "only 1.0 .*Qwen2ForCausalLM",
        ),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_type 'yarn'; supported: default, linear, llama3, longrope",
        ),
    ],
)
def test_what_families_refuse(name: str, fields: dict[str, Any], message: str) -> None:
    raw = raw_config(FAMILIES[name]) | {"num_hidden_layers": 2, "layer_types": None}
    with pytest.raises(InputError, match=message) as error:
        ModelConfig.from_hf(raw | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": (3,)}, "windows has 1 entries; .* each of 6 layers"),
        ({"family": "gpt2"}, "family is 'gpt2'; supported: llama, mistral"),
    ],
)
def test_configs_made_by_hand(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(ModelConfig.from_hf(LLAMA), **changes)
