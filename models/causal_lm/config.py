"""A causal language model described by explicit fields, read from a Hugging Face `config.json`.

The file is read here and not through transformers, whose releases 4.57 and 5 spell the rope
parameters differently: a checkpoint saved by either must load on a machine with the other. What
this network does not compute is refused by name, never ignored, because a skipped scaling or bias
gives fluent and wrong answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from models.causal_lm.families import FAMILIES, Family, Windows, find_family
from models.causal_lm.fields import Fields
from nki_kernels.errors import InputError

RopeKind = Literal["default", "linear", "llama3", "longrope"]
Activation = Literal["silu", "gelu_pytorch_tanh"]

Weights = Literal["float", "int8", "fp8"]
"""How projections are stored and held."""

KV = Literal["model", "fp8"]
"""How keys and values are held: in the dtype of the network, or in fp8."""

QUANT_METHOD = "bifork"
"""What `quantization_config` of a checkpoint of ours says."""

ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3", "longrope")
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are scaled.

    `fraction` of a head's elements turn, the first ones; the rest pass.

    Kind "linear" stretches all wavelengths by `factor`. Kind "llama3" stretches those above
    `original_max_position / low_freq_factor` by `factor`, keeps those below
    `original_max_position / high_freq_factor` and interpolates between (Llama 3.1,
    https://github.com/meta-llama/llama-models, models/llama3/model.py `apply_scaling`).

    Kind "longrope" (arXiv 2402.13753) stretches each by its own one of `short_factors` and
    multiplies cosines and sines by `magnitude`. A sequence longer than `original_max_position`
    would turn every key, those already cached included, by other factors; so that is where
    `ModelConfig.max_position` ends.
    """

    kind: RopeKind
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0
    fraction: float = 1.0
    short_factors: tuple[float, ...] = ()
    magnitude: float = 1.0

    def rotated(self, d: int) -> int:
        """Elements that turn, of a head of `d`."""
        return int(d * self.fraction)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Llama-style network, in the symbols of arXiv 2403.08845.

    With every option left at its default it is Llama's.

    Attributes:
        vocab_size: tokens.
        hidden_size: of the residual stream.
        intermediate_size: of the feed-forward layer, or of each expert.
        layers: l.
        h: query heads.
        g: key/value heads; query head i reads head i // (h / g).
        d: head size.
        max_position: tokens, prompt and answer together (see RopeConfig for "longrope").
        rms_norm_eps: added to the mean square.
        rope: position embedding.
        family: of the checkpoint, whose tensor names it has (see `families`); nothing else.
        tie_word_embeddings: whether the head is the embedding.
        qkv_bias: whether q, k and v are projected with a bias.
        o_bias: the same of the attention's output.
        mlp_bias: the same of the feed-forward layer.
        qk_norm: whether each head's query and key is normalised before it is turned.
        output_norms: whether what attention and feed-forward layer give is normalised too.
        norm_plus_one: whether norms multiply by 1 + weight, in fp32.
        activation: of the feed-forward layer.
        windows: positions that a query of each layer sees, its own included, None for all of them;
            empty when no layer has a window.
        attention_scale: factor of the attention logits; None is d ** -0.5.
        attention_softcap: c bends attention logits s to c·tanh(s / c).
        final_softcap: the same of the network's logits.
        embedding_multiplier: factor of the embeddings.
        residual_multiplier: factor of what attention and feed-forward layer add.
        logit_divisor: of the network's logits.
        experts: feed-forward layers among which a router chooses token by token; 0 is one layer
            and no router.
        experts_per_token: how many it chooses.
        dtype: of the stored weights, as the file states it.
        eos_token_ids: tokens that end an answer.
        weights: how projections are stored and held; see `quantisation`.
        kv_dtype: how keys and values are held; see `quantisation`.
        kv_scales: whether the checkpoint has the factors of keys and values; otherwise they are 1.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    h: int
    g: int
    d: int
    max_position: int
    rms_norm_eps: float
    rope: RopeConfig
    family: str = "llama"
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    output_norms: bool = False
    norm_plus_one: bool = False
    activation: Activation = "silu"
    windows: Windows = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    experts: int = 0
    experts_per_token: int = 0
    dtype: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    weights: Weights = "float"
    kv_dtype: KV = "model"
    kv_scales: bool = False

    def __post_init__(self) -> None:
        """Checks what fields say of each other."""
        if self.h % self.g:
            raise InputError(
                f"{self.h} query heads cannot be shared by {self.g} key/value heads: "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )
        rotated = self.rope.rotated(self.d)
        if rotated % 2 or not 0 < rotated <= self.d:
            raise InputError(
                f"head_dim is {self.d}, of which {rotated} elements turn; rotary embeddings need "
                "an even number of them"
            )
        factors = len(self.rope.short_factors)
        if self.rope.kind == "longrope" and factors != rotated // 2:
            raise InputError(
                f"short_factor has {factors} numbers; it must have one for each of "
                f"{rotated // 2} pairs of elements that turn"
            )
        if self.windows and len(self.windows) != self.layers:
            raise InputError(
                f"windows has {len(self.windows)} entries; it must have one for each of "
                f"{self.layers} layers, or none"
            )
        if self.family not in FAMILIES:
            raise InputError(f"family is {self.family!r}; supported: {', '.join(FAMILIES)}")

    @property
    def scale(self) -> float:
        """Factor of the attention logits."""
        return self.d**-0.5 if self.attention_scale is None else self.attention_scale

    def decode_features(self, layer: int) -> list[str]:
        """What a layer's decode attention asks for beside the plain softmax, in words."""
        asked = {
            "window": self.window(layer) is not None,
            "softcap": self.attention_softcap is not None,
            "caches in fp8": self.kv_dtype == "fp8",
        }
        return [name for name, wanted in asked.items() if wanted]

    def window(self, layer: int) -> int | None:
        """Positions that a query of layer `layer` sees; None is all of them."""
        return self.windows[layer] if self.windows else None

    @property
    def p(self) -> int:
        """Query heads per key/value head."""
        return self.h // self.g

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads the dictionary of a Hugging Face `config.json`, in either rope spelling.

        Raises:
            InputError: an architecture, option or value that this network does not compute, or a
                missing or malformed field; names the field, its value and what would be right.
        """
        family = find_family(raw)
        fields = Fields(raw, defaults=family.defaults)
        hidden_size = fields.positive_int("hidden_size")
        h = fields.positive_int("num_attention_heads")
        d = fields.positive_int("head_dim", default=0)
        if not d:
            if hidden_size % h:
                raise InputError(
                    f"config.json: hidden_size is {hidden_size}, not a multiple of "
                    f"num_attention_heads, {h}, and there is no head_dim"
                )
            d = hidden_size // h
        max_position = fields.positive_int("max_position_embeddings")
        rope = _rope(fields, family)
        if rope.kind == "longrope":
            max_position = min(max_position, rope.original_max_position)
        activation = fields.raw.get(family.activation, "silu")
        if activation not in ACTIVATIONS:
            raise fields.wrong(family.activation, f"supported: {', '.join(ACTIVATIONS)}")
        return cls(
            vocab_size=fields.positive_int("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.positive_int("intermediate_size"),
            layers=fields.positive_int("num_hidden_layers"),
            h=h,
            g=fields.positive_int("num_key_value_heads", default=h),
            d=d,
            max_position=max_position,
            rms_norm_eps=fields.positive_float("rms_norm_eps", default=1e-6),
            rope=rope,
            family=family.model_type,
            tie_word_embeddings=fields.boolean("tie_word_embeddings"),
            dtype=fields.optional_str("dtype") or fields.optional_str("torch_dtype"),
            eos_token_ids=token_ids(raw.get("eos_token_id"), "config.json: eos_token_id"),
            activation=activation,
            **_quantisation(fields),
            **family.options(fields),
        )


def _quantisation(fields: Fields) -> dict[str, Any]:
    """Reads `quantization_config` as `convert` writes it."""
    raw = fields.raw.get("quantization_config")
    if raw is None:
        return {}
    inner = Fields(raw, where="config.json: quantization_config")
    if inner.raw.get("quant_method") != QUANT_METHOD:
        raise inner.wrong(
            "quant_method",
            "weights must be float32, bfloat16 or float16, or quantised by scripts/convert.py",
        )
    for name, allowed in (("weights", Weights), ("kv_dtype", KV)):
        if inner.raw.get(name) not in get_args(allowed):
            raise inner.wrong(name, f"it must be one of {', '.join(get_args(allowed))}")
    return {
        "weights": inner.raw["weights"],
        "kv_dtype": inner.raw["kv_dtype"],
        "kv_scales": inner.boolean("kv_scales"),
    }


def token_ids(value: object, field: str) -> tuple[int, ...]:
    """The ids in a field that holds null, one id or a list of ids.

    Raises:
        InputError: anything else.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise InputError(f"{field} is {value!r}; it must be a token id, a list of them, or null")
    return tuple(values)


def _rope(fields: Fields, family: Family) -> RopeConfig:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4.57)."""
    name = "rope_parameters" if fields.raw.get("rope_parameters") is not None else "rope_scaling"
    scaling = fields.raw.get(name)
    if scaling is None:
        scaling = {}
    if not isinstance(scaling, Mapping) or any(isinstance(v, Mapping) for v in scaling.values()):
        raise fields.wrong(name, "it must be an object with rope_type and its parameters")
    rope = Fields(scaling, where=f"config.json: {name}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # as the first Phi-3 checkpoints call it
    if kind not in ROPE_KINDS:
        raise InputError(
            f"config.json: {name} has rope_type {kind!r}; supported: {', '.join(ROPE_KINDS)}"
        )
    # transformers 5 states the fraction among the rope parameters, 4.57 beside them.
    owner = rope if rope.raw.get("partial_rotary_factor") is not None else fields
    fraction = owner.positive_float("partial_rotary_factor", default=1.0)
    if fraction != 1.0 and not (family.partial_rotary and fraction < 1.0):
        allowed = "a fraction up to 1.0" if family.partial_rotary else "only 1.0 (the whole head)"
        raise owner.wrong(
            "partial_rotary_factor", f"{allowed} is supported for {family.architecture}"
        )
    # In the older spelling the base stands beside rope_scaling; 10000 is what transformers assumes.
    theta = rope.positive_float("rope_theta", default=0.0)
    theta = theta or fields.positive_float("rope_theta", default=10000.0)
    if kind == "default":
        return RopeConfig("default", theta, fraction=fraction)
    if kind == "longrope":
        return _longrope(fields, rope, theta, fraction)
    factor = rope.positive_float("factor")
    if kind == "linear":
        return RopeConfig("linear", theta, factor, fraction=fraction)
    low, high = rope.positive_float("low_freq_factor"), rope.positive_float("high_freq_factor")
    if low >= high:
        raise rope.wrong("low_freq_factor", f"it must be below high_freq_factor, {high}")
    original = rope.positive_int("original_max_position_embeddings")
    return RopeConfig(cast(RopeKind, kind), theta, factor, low, high, original, fraction)


def _longrope(fields: Fields, rope: Fields, theta: float, fraction: float) -> RopeConfig:
    longest = fields.positive_int("max_position_embeddings")
    name = "original_max_position_embeddings"  # among the parameters, or beside them
    original = rope.optional_int(name) or fields.positive_int(name, default=longest)
    factor = rope.positive_float("factor", default=longest / original)
    magnitude = 1.0
    if factor > 1.0:
        magnitude = math.sqrt(1.0 + math.log(factor) / math.log(original))
    return RopeConfig(
        "longrope",
        theta,
        factor,
        original_max_position=original,
        fraction=fraction,
        short_factors=rope.positive_floats("short_factor"),
        magnitude=rope.positive_float("attention_factor", default=magnitude),
    )
