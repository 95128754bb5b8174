"""What is particular to each family of checkpoints: how its fields and tensor names map to ours.

There is one network, and `ModelConfig` describes it. A family adds nothing to it: it is a row of
the table at the end of this file, which says what transformers assumes where a `config.json` is
silent, which options of the network the family's fields stand for, and what its checkpoints call
the network's weights. Each row was read off the family's configuration and modeling files in
transformers (https://github.com/huggingface/transformers, src/transformers/models/).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.causal_lm.fields import Fields

Windows = tuple[int | None, ...]

FULL, SLIDING = "full_attention", "sliding_attention"  # the words of `layer_types`


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        architecture: the class named in config.json.
        model_type: of config.json.
        defaults: values of config.json's fields where it does not have them.
        options: makes fields of ModelConfig from those of config.json.
        names: part of a weight's dotted name in the network -> in the checkpoint.
        fused: a name in the checkpoint -> the network's weights whose rows it stacks.
        partial_rotary: whether `partial_rotary_factor` means something.
        activation: the field that names the activation.
    """

    architecture: str
    model_type: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Callable[[Fields], dict[str, Any]] = lambda fields: {}
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    partial_rotary: bool = False
    activation: str = "hidden_act"

    def stored_name(self, ours: str) -> str:
        """The tensor of a checkpoint that holds the network's weight `ours`, or holds it in part.

        >>> FAMILIES["phi3"].stored_name("layers.0.self_attn.k_proj.weight")
        'model.layers.0.self_attn.qkv_proj.weight'
        """
        stacked = {part: whole for whole, parts in self.fused.items() for part in parts}
        names = _LLAMA_NAMES | dict(self.names) | stacked
        theirs = ".".join(names.get(part, part) for part in ours.split("."))
        return theirs if theirs.startswith("lm_head.") else f"model.{theirs}"


def attention_biases(fields: Fields) -> dict[str, Any]:
    """`attention_bias`: of all four projections."""
    bias = fields.boolean("attention_bias")
    return {"qkv_bias": bias, "o_bias": bias}


def window_everywhere(fields: Fields) -> dict[str, Any]:
    """`sliding_window` on every layer; null is none."""
    return {"windows": _windows(fields, [SLIDING] * fields.positive_int("num_hidden_layers"))}


def window_by_layer(fields: Fields, otherwise: Callable[[int], bool]) -> dict[str, Any]:
    """`sliding_window` on the layers that `layer_types` names, or those where `otherwise` holds."""
    layers = fields.positive_int("num_hidden_layers")
    types = fields.choices("layer_types", (FULL, SLIDING), layers)
    types = types or [SLIDING if otherwise(layer) else FULL for layer in range(layers)]
    if SLIDING in types and fields.raw.get("sliding_window") is None:
        raise fields.wrong("sliding_window", f"layer_types has {SLIDING}, which needs a window")
    return {"windows": _windows(fields, types)}


def _windows(fields: Fields, types: Sequence[str]) -> Windows:
    size = fields.optional_int("sliding_window")
    if size is None or size >= fields.positive_int("max_position_embeddings"):
        return ()  # no query ever has that many positions before it
    return tuple(size if kind == SLIDING else None for kind in types)


def _llama(fields: Fields) -> dict[str, Any]:
    return {**attention_biases(fields), "mlp_bias": fields.boolean("mlp_bias")}


def _mixtral(fields: Fields) -> dict[str, Any]:
    experts = fields.positive_int("num_local_experts")
    chosen = fields.positive_int("num_experts_per_tok")
    if chosen > experts:
        raise fields.wrong(
            "num_experts_per_tok", f"it must be at most num_local_experts, {experts}"
        )
    return {**window_everywhere(fields), "experts": experts, "experts_per_token": chosen}


def _qwen_windows(fields: Fields) -> dict[str, Any]:
    """A window above `max_window_layers`, and only where it is switched on."""
    if not fields.boolean("use_sliding_window"):
        return {}
    first = fields.positive_int("max_window_layers") if fields.raw["max_window_layers"] else 0
    return window_by_layer(fields, lambda layer: layer >= first)


def _gemma2(fields: Fields) -> dict[str, Any]:
    if fields.boolean("use_bidirectional_attention"):
        raise fields.wrong("use_bidirectional_attention", "only false (causal) is supported")
    return {
        **attention_biases(fields),
        **window_by_layer(fields, lambda layer: layer % 2 == 0),
        "attention_scale": fields.positive_float("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": fields.optional_float("attn_logit_softcapping"),
        "final_softcap": fields.optional_float("final_logit_softcapping"),
        "embedding_multiplier": fields.positive_int("hidden_size") ** 0.5,
        "norm_plus_one": True,
        "output_norms": True,
    }


def _granite(fields: Fields) -> dict[str, Any]:
    return {
        **_llama(fields),
        "attention_scale": fields.positive_float("attention_multiplier"),
        "embedding_multiplier": fields.positive_float("embedding_multiplier"),
        "residual_multiplier": fields.positive_float("residual_multiplier"),
        "logit_divisor": fields.positive_float("logits_scaling"),
    }


_LLAMA_NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_QWEN_DEFAULTS = {"num_key_value_heads": 32, "use_sliding_window": False, "max_window_layers": 28}

_TABLE = (
    # Llama 1 to 3.2 and CodeLlama, and the multi-query form (num_key_value_heads 1).
    Family("LlamaForCausalLM", "llama", options=_llama),
    Family(
        "MistralForCausalLM",
        "mistral",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
        options=window_everywhere,
    ),
    Family(
        "MixtralForCausalLM",
        "mixtral",
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        options=_mixtral,
        names={
            "mlp": "block_sparse_moe",
            "router": "gate",
            "gate_proj": "w1",
            "down_proj": "w2",
            "up_proj": "w3",
        },
    ),
    Family(
        "Qwen2ForCausalLM",
        "qwen2",
        defaults={**_QWEN_DEFAULTS, "sliding_window": 4096},
        options=lambda fields: {**_qwen_windows(fields), "qkv_bias": True},
    ),
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        defaults={**_QWEN_DEFAULTS, "sliding_window": 4096, "head_dim": 128},
        options=lambda fields: {
            **attention_biases(fields),
            **_qwen_windows(fields),
            "qk_norm": True,
        },
    ),
    Family(
        "Phi3ForCausalLM",
        "phi3",
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        options=window_everywhere,
        fused={
            "qkv_proj": ("q_proj", "k_proj", "v_proj"),
            "gate_up_proj": ("gate_proj", "up_proj"),
        },
        partial_rotary=True,
    ),
    Family(
        "Gemma2ForCausalLM",
        "gemma2",
        defaults={
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        options=_gemma2,
        names={
            "attention_output_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_output_norm": "post_feedforward_layernorm",
        },
        activation="hidden_activation",
    ),
    Family(
        "GraniteForCausalLM",
        "granite",
        defaults={
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        options=_granite,
    ),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _TABLE}


def find_family(raw: Mapping[str, Any]) -> Family:
    """The family of a `config.json`.

    Raises:
        InputError: an architecture that this network is not, or two fields that contradict.
    """
    fields = Fields(raw)
    supported = ", ".join(family.architecture for family in _TABLE)
    architectures, model_type = raw.get("architectures"), raw.get("model_type")
    if architectures is None:
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise fields.wrong(
                "architectures", f"it must name a supported architecture: {supported}"
            )
        return FAMILIES[model_type]
    for family in _TABLE:
        if architectures == [family.architecture]:
            if model_type != family.model_type:
                rule = f"{family.architecture} has model_type {family.model_type!r}"
                raise fields.wrong("model_type", rule)
            return family
    raise fields.wrong("architectures", f"supported: {supported}")
