"""A causal language model described by explicit fields, read from a Hugging Face `config.json`.

The file is read here and not through transformers, whose releases 4.57 and 5 spell the rope
parameters differently: a checkpoint saved by either must load on a machine with the other. What
this network does not compute is refused by name, never ignored, because a skipped scaling or bias
gives fluent and wrong answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from nki_kernels.errors import InputError

RopeKind = Literal["default", "linear", "llama3"]

# architecture in config.json -> its model_type
ARCHITECTURES = {"LlamaForCausalLM": "llama"}
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: the base and how its frequencies are scaled.

    `factor` belongs to kinds "linear" and "llama3"; the last three fields to "llama3" alone, where
    wavelengths above `original_max_position / low_freq_factor` are stretched by `factor`, those
    below `original_max_position / high_freq_factor` are kept, and those between are interpolated
    (Llama 3.1, https://github.com/meta-llama/llama-models, models/llama3/model.py `apply_scaling`).
    """

    kind: RopeKind
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Llama-style network, in the symbols of arXiv 2403.08845."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int  # l
    h: int  # query heads
    g: int  # key/value heads
    d: int  # head size
    max_position: int  # tokens, prompt and answer together
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str | None = None  # of the stored weights, as the file states it
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks what fields say of each other."""
        if self.h % self.g:
            raise InputError(
                f"{self.h} query heads cannot be shared by {self.g} key/value heads: "
                "num_attention_heads must be a multiple of num_key_value_heads"
            )
        if self.d % 2:
            raise InputError(f"head_dim is {self.d}; rotary embeddings need an even head size")

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
        fields = _Fields(raw)
        _check_supported(fields)
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
            rope=_rope(fields),
            tie_word_embeddings=fields.boolean("tie_word_embeddings"),
            attention_bias=fields.boolean("attention_bias"),
            mlp_bias=fields.boolean("mlp_bias"),
            dtype=fields.optional_str("dtype") or fields.optional_str("torch_dtype"),
            eos_token_ids=token_ids(raw.get("eos_token_id"), "config.json: eos_token_id"),
        )


def token_ids(value: object, field: str) -> tuple[int, ...]:
    """The ids in a field that holds null, one id or a list of ids.

    Raises:
        InputError: anything else.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        raise InputError(f"{field} is {value!r}; it must be a token id, a list of them, or null")
    return tuple(values)


class _Fields:
    """Typed look-ups in a JSON object, with errors that name the field."""

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        if not isinstance(raw, Mapping):
            raise InputError(f"{where} holds {type(raw).__name__}, not an object of fields")
        self.raw = raw
        self.where = where

    def wrong(self, name: str, rule: str) -> InputError:
        state = f"is {self.raw[name]!r}" if name in self.raw else "is missing"
        return InputError(f"{self.where}: {name} {state}; {rule}")

    def positive_int(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, "it must be a positive integer")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.wrong(name, "it must be a positive number")
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.raw.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "it must be true or false")
        return value

    def optional_str(self, name: str) -> str | None:
        value = self.raw.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "it must be a string")
        return value


def _check_supported(fields: _Fields) -> None:
    raw = fields.raw
    names = ", ".join(ARCHITECTURES)
    architectures = raw.get("architectures")
    if architectures is None:
        if raw.get("model_type") not in ARCHITECTURES.values():
            raise fields.wrong("architectures", f"it must name a supported architecture: {names}")
    elif (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or architectures[0] not in ARCHITECTURES
    ):
        raise fields.wrong("architectures", f"supported: {names}")
    elif raw.get("model_type") != ARCHITECTURES[architectures[0]]:
        expected = ARCHITECTURES[architectures[0]]
        raise fields.wrong("model_type", f"{architectures[0]} has model_type {expected!r}")
    if raw.get("hidden_act", "silu") != "silu":
        raise fields.wrong("hidden_act", "supported: 'silu'")
    if raw.get("quantization_config") is not None:
        raise InputError(
            "config.json: quantization_config is set; quantised checkpoints are not supported, "
            "weights must be float32, bfloat16 or float16"
        )


def _rope(fields: _Fields) -> RopeConfig:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4.57)."""
    name = "rope_parameters" if fields.raw.get("rope_parameters") is not None else "rope_scaling"
    scaling = fields.raw.get(name)
    if scaling is None:
        scaling = {}
    if not isinstance(scaling, Mapping) or any(isinstance(v, Mapping) for v in scaling.values()):
        raise fields.wrong(name, "it must be an object with rope_type and its parameters")
    rope = _Fields(scaling, where=f"config.json: {name}")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise InputError(
            f"config.json: {name} has rope_type {kind!r}; supported: {', '.join(ROPE_KINDS)}"
        )
    for owner in (rope, fields):
        if owner.raw.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise owner.wrong("partial_rotary_factor", "only 1.0 (the whole head) is supported")
    # In the older spelling the base stands beside rope_scaling; 10000 is what transformers assumes.
    theta = rope.positive_float("rope_theta", default=0.0)
    theta = theta or fields.positive_float("rope_theta", default=10000.0)
    if kind == "default":
        return RopeConfig("default", theta)
    factor = rope.positive_float("factor")
    if kind == "linear":
        return RopeConfig("linear", theta, factor)
    low, high = rope.positive_float("low_freq_factor"), rope.positive_float("high_freq_factor")
    if low >= high:
        raise rope.wrong("low_freq_factor", f"it must be below high_freq_factor, {high}")
    original = rope.positive_int("original_max_position_embeddings")
    return RopeConfig(cast(RopeKind, kind), theta, factor, low, high, original)
