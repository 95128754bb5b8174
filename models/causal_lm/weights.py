"""Every weight of a network: its name, its whole shape, and which part of it a rank holds.

The one description of both, from the config alone: loading, saving, sharding and accounting follow
it, and a test holds the layers of `network` to it. The split is that of neuronx-distributed's
parallel layers (AWS Neuron SDK, neuronx-distributed API guide): a column-parallel projection splits
its outputs, a row-parallel one its inputs, and what follows the outputs (biases, scales) goes with
them. Key/value heads are split while there are enough of them and repeated beyond that; query heads
then still lie with the key/value head that they read. The vocabulary and the feed-forward layer are
padded with zeros where tp does not divide them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from models.causal_lm.config import ModelConfig
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Weight:
    """A weight as a checkpoint means it, before it is split.

    Attributes:
        shape: of the whole.
        dim: the dimension that ranks split; None when each holds all of it.
        units: how many equal pieces of that dimension may not be cut (heads); 0 is its length.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    units: int = 0

    def part(self, tp: int, rank: int) -> tuple[slice, ...]:
        """What rank `rank` of `tp` holds of it, without padding.

        Units go to the ranks in order. Where there are fewer of them than ranks, consecutive ranks
        hold the same one. Elements that are no units are padded to a multiple of tp, so the last
        ranks may hold fewer of them, or none.

        >>> Weight((64, 48), dim=0, units=2).part(4, 3)
        (slice(32, 64, None), slice(0, 48, None))
        >>> Weight((7,), dim=0).part(4, 3)
        (slice(6, 7, None),)
        """
        slices = [slice(0, size) for size in self.shape]
        if self.dim is not None:
            length, step = self.shape[self.dim], self.part_shape(tp)[self.dim]
            holders = min(tp, self.units) if self.units else tp  # of different parts
            start = min(rank * holders // tp * step, length)
            slices[self.dim] = slice(start, min(start + step, length))
        return tuple(slices)

    def part_shape(self, tp: int) -> tuple[int, ...]:
        """The shape of each rank's part, with padding.

        Raises:
            InputError: the units can be neither dealt to so many ranks nor repeated.
        """
        shape = list(self.shape)
        if self.dim is not None:
            if self.units and self.units % tp and tp % self.units:
                raise InputError(f"{self.units} heads cannot be split over tp = {tp} ranks")
            parts = min(tp, self.units) if self.units else tp
            shape[self.dim] = -(-self.shape[self.dim] // parts)
        return tuple(shape)


def all_weights(config: ModelConfig) -> dict[str, Weight]:
    """All weights of a network, by their names in it; a tied head is the embedding."""
    size, vocab = config.hidden_size, config.vocab_size
    found = {"embed_tokens.weight": Weight((vocab, size), dim=0)}
    for layer in range(config.layers):
        found |= {f"layers.{layer}.{name}": weight for name, weight in _layer(config)}
    found["norm.weight"] = Weight((size,))
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = Weight((vocab, size), dim=0)
    return found


def _layer(config: ModelConfig) -> Iterator[tuple[str, Weight]]:
    size, d = config.hidden_size, config.d
    q_size, kv_size = config.h * d, config.g * d
    yield "attention_norm.weight", Weight((size,))
    yield from _column("self_attn.q_proj", size, q_size, config.qkv_bias, config.h)
    yield from _column("self_attn.k_proj", size, kv_size, config.qkv_bias, config.g)
    yield from _column("self_attn.v_proj", size, kv_size, config.qkv_bias, config.g)
    yield from _row("self_attn.o_proj", q_size, size, config.o_bias, config.h)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", Weight((d,))
        yield "self_attn.k_norm.weight", Weight((d,))
    if config.output_norms:
        yield "attention_output_norm.weight", Weight((size,))
    yield "mlp_norm.weight", Weight((size,))
    if config.experts:
        yield "mlp.router.weight", Weight((config.experts, size))
        for expert in range(config.experts):
            yield from _mlp(config, f"mlp.experts.{expert}")
    else:
        yield from _mlp(config, "mlp")
    if config.output_norms:
        yield "mlp_output_norm.weight", Weight((size,))


def _mlp(config: ModelConfig, name: str) -> Iterator[tuple[str, Weight]]:
    size, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    yield from _column(f"{name}.gate_proj", size, wide, bias)
    yield from _column(f"{name}.up_proj", size, wide, bias)
    yield from _row(f"{name}.down_proj", wide, size, bias)


def _column(
    name: str, inputs: int, outputs: int, bias: bool, units: int = 0
) -> Iterator[tuple[str, Weight]]:
    """A projection whose outputs are split."""
    yield f"{name}.weight", Weight((outputs, inputs), 0, units)
    if bias:
        yield f"{name}.bias", Weight((outputs,), 0, units)


def _row(
    name: str, inputs: int, outputs: int, bias: bool, units: int = 0
) -> Iterator[tuple[str, Weight]]:
    """A projection whose inputs are split; its outputs, and their bias, belong to all ranks."""
    yield f"{name}.weight", Weight((outputs, inputs), 1, units)
    if bias:
        yield f"{name}.bias", Weight((outputs,))


def legal_degrees(config: ModelConfig) -> list[int]:
    """The tensor-parallel degrees that a network can be split by.

    Each rank needs whole query heads, and these must all be of whole key/value heads or of one.
    """
    h, g = config.h, config.g
    return [tp for tp in range(1, h + 1) if h % tp == 0 and (g % tp == 0 or tp % g == 0)]


def check_degree(config: ModelConfig, tp: int, rank: int) -> None:
    """Refuses a degree that the network cannot be split by, naming the legal ones."""
    legal = legal_degrees(config)
    if tp not in legal:
        raise InputError(f"tp is {tp}; this model can be split by {', '.join(map(str, legal))}")
    if not 0 <= rank < tp:
        raise InputError(f"rank is {rank}; it must be in 0..{tp - 1}")


def part_bytes(config: ModelConfig, tp: int, itemsize: int) -> int:
    """Bytes of each rank's weights at `itemsize` bytes each, from the config alone."""
    return sum(
        itemsize * math.prod(weight.part_shape(tp)) for weight in all_weights(config).values()
    )
