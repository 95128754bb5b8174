"""A tiny random model of each family, made by transformers, and the errors its test must catch.

Sizes are such that what is particular to a family matters: prompts are longer than windows, and
decoding leaves the context behind them; positions pass the original RoPE length; logits exceed soft
caps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.models import tiny

WINDOW = 7
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 3.0],
    "long_factor": [1.0, 1.2, 2.0, 4.0, 8.0, 16.0],
}


@dataclass(frozen=True)
class Model:
    """A model of a family.

    Attributes:
        kind: of transformers' classes, `{kind}Config` and `{kind}ForCausalLM`.
        fields: of its config, beside or instead of SIZES.
        rope: `rope_parameters` as transformers 5 spells them.
        faults: errors by name, each as changes of the ModelConfig that was read.
        misread: errors by name, each as changes of the family's row of the table.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    rope: Mapping[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 1e4}
    )
    faults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    misread: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def rope_change(**changes: Any) -> Mapping[str, Any]:
    """A fault in fields of RopeConfig."""
    return {"rope": changes}


MODELS: dict[str, Model] = {
    "llama-2": Model(
        "Llama",
        {"num_key_value_heads": 4},
        faults={"base": rope_change(theta=2e4), "eps": {"rms_norm_eps": 1e-2}},
        misread={
            "norms swapped": {
                "names": {
                    "attention_norm": "post_attention_layernorm",
                    "mlp_norm": "input_layernorm",
                }
            }
        },
    ),
    "llama-3": Model(
        "Llama",
        {"rms_norm_eps": 1e-5},
        rope={"rope_type": "default", "rope_theta": 5e5},
        faults={"base of Llama 2": rope_change(theta=1e4)},
        misread={"k and v swapped": {"names": {"k_proj": "v_proj", "v_proj": "k_proj"}}},
    ),
    "llama-3.2": Model(
        "Llama",
        {"tie_word_embeddings": True},
        rope=LLAMA3,
        faults={
            "not scaled": rope_change(kind="default"),
            "linear": rope_change(kind="linear"),
            "factor": rope_change(factor=5.0),
            "original length": rope_change(original_max_position=17),
            "high frequencies": rope_change(high_freq_factor=3.0),
        },
    ),
    "code-llama": Model(
        "Llama",
        {"num_key_value_heads": 4},
        rope={"rope_type": "default", "rope_theta": 1e6},
        faults={"base of Llama 2": rope_change(theta=1e4)},
        misread={
            "gate and up swapped": {"names": {"gate_proj": "up_proj", "up_proj": "gate_proj"}}
        },
    ),
    "multi-query": Model(
        "Llama",
        {"num_key_value_heads": 1},
        faults={
            "scale": {"attention_scale": 1.0},
            "activation": {"activation": "gelu_pytorch_tanh"},
        },
    ),
    "mistral": Model(
        "Mistral",
        {"sliding_window": WINDOW, "head_dim": 16},
        faults={
            "no window": {"windows": ()},
            "window too long by one": {"windows": (WINDOW + 1,) * 3},
            "window too short by one": {"windows": (WINDOW - 1,) * 3},
            "window missing in one layer": {"windows": (WINDOW, None, WINDOW)},
        },
    ),
    "mixtral": Model(
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2},
        rope={"rope_type": "default", "rope_theta": 1e6},
        faults={"one expert": {"experts_per_token": 1}, "all experts": {"experts_per_token": 5}},
        misread={
            "gate and up swapped": {
                "names": {
                    "mlp": "block_sparse_moe",
                    "router": "gate",
                    "gate_proj": "w3",
                    "down_proj": "w2",
                    "up_proj": "w1",
                }
            }
        },
    ),
    "qwen2": Model("Qwen2", faults={"no bias": {"qkv_bias": False}}),
    "qwen2-window": Model(
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        faults={
            "window in every layer": {"windows": (WINDOW,) * 3},
            "window one layer late": {"windows": (None, None, WINDOW)},
        },
    ),
    "qwen3": Model(
        "Qwen3",
        {"head_dim": 16, "tie_word_embeddings": True},
        faults={"no norm of q and k": {"qk_norm": False}, "untied scale": {"attention_scale": 0.3}},
        misread={"norms swapped": {"names": {"q_norm": "k_norm", "k_norm": "q_norm"}}},
    ),
    "phi-3": Model(
        "Phi3",
        {"sliding_window": WINDOW + 4},
        rope={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        faults={
            "whole head turns": rope_change(fraction=1.0),
            "fewer elements turn": rope_change(fraction=1 / 3),
            "no window": {"windows": ()},
        },
        misread={
            "order of q, k, v": {
                "fused": {
                    "qkv_proj": ("q_proj", "v_proj", "k_proj"),
                    "gate_up_proj": ("gate_proj", "up_proj"),
                }
            },
            "order of gate and up": {
                "fused": {
                    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
                    "gate_up_proj": ("up_proj", "gate_proj"),
                }
            },
        },
    ),
    "phi-3.5": Model(
        "Phi3",
        {"original_max_position_embeddings": 90},
        rope=LONGROPE,
        faults={
            "not scaled": rope_change(kind="default"),
            "magnitude": rope_change(magnitude=1.0),
            "factors for long prompts": rope_change(short_factors=tuple(LONGROPE["long_factor"])),
        },
    ),
    "gemma-2": Model(
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 4,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
            "tie_word_embeddings": True,
        },
        faults={
            "no soft cap": {"attention_softcap": None},
            "soft cap of the logits": {"final_softcap": None},
            "windows in the other layers": {"windows": (None, WINDOW, None)},
            "window off by one": {"windows": (WINDOW + 1, None, WINDOW + 1)},
            "norm without one": {"norm_plus_one": False},
            "no norms behind": {"output_norms": False},
            "embeddings not scaled": {"embedding_multiplier": 1.0},
            "activation": {"activation": "silu"},
            "scale of the head": {"attention_scale": None},
        },
        misread={
            "norms swapped": {
                "names": {
                    "attention_output_norm": "pre_feedforward_layernorm",
                    "mlp_norm": "post_attention_layernorm",
                    "mlp_output_norm": "post_feedforward_layernorm",
                }
            }
        },
    ),
    "granite": Model(
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.5,
            "residual_multiplier": 0.4,
            "logits_scaling": 4.0,
            "attention_bias": True,
            "mlp_bias": True,
        },
        faults={
            "embedding": {"embedding_multiplier": 1.0},
            "attention": {"attention_scale": None},
            "residual": {"residual_multiplier": 1.0},
            "logits": {"logit_divisor": 1.0},
            "multiplied by the divisor": {"logit_divisor": 0.25},
            "no bias behind attention": {"o_bias": False},
        },
    ),
}


def make(name: str, seed: int = 0, **changes: Any) -> Any:
    """The model `name` with random weights, in either spelling of rope parameters."""
    import transformers

    chosen = MODELS[name]
    fields = SIZES | dict(chosen.fields) | changes
    rope = dict(fields.pop("rope_parameters", chosen.rope))
    if transformers.__version__.startswith("4."):
        for key in ("rope_theta", "partial_rotary_factor"):
            if key in rope:
                fields[key] = rope.pop(key)
        if rope["rope_type"] == "longrope":
            rope["type"] = rope.pop("rope_type")  # the only word for it in Phi3Config
        fields["rope_scaling"] = rope if rope.get("rope_type") != "default" else None
    else:
        fields["rope_parameters"] = rope
    config = getattr(transformers, f"{chosen.kind}Config")(**fields)
    model = getattr(transformers, f"{chosen.kind}ForCausalLM")(config).eval()
    tiny.randomise(model.named_parameters(), seed)
    if config.tie_word_embeddings:  # weak enough that a token does not just predict itself
        model.get_input_embeddings().weight.data *= 0.1
    return model


def stable_topk(x: torch.Tensor, k: int, dim: int = -1, **options: Any) -> Any:
    """torch.topk with a rule for equals: the lowest index first."""
    values, indices = x.sort(dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, k), indices.narrow(dim, 0, k)
