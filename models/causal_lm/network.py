"""A Llama-style network in plain torch: prefill writes the context once, decode reads it once.

One module serves both phases through one tensor-only signature, branching on the rank of `tokens`,
so that eager code, torch.export and AWS's ModelBuilder v2 see the same thing. Attention is the
project's two operators; everything else is linear layers and norms. What differs between families
of models is a field of the config, never a family's name; `families` maps parameter names to those
of checkpoints.

Shapes: G groups, r samples a group, n new tokens a sample, S prompt slots; h, g, d heads (see
config).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.causal_lm import rope
from models.causal_lm.cache import CacheShape, KVCache
from models.causal_lm.config import ModelConfig
from nki_kernels import bifurcated_attention, flash_attention
from nki_kernels.attention_state.validate import validate_for_kernels
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Prefill:
    """Where a prompt's keys go: `slots` i64[S] of the context."""

    slots: Tensor


@dataclass(frozen=True)
class Decode:
    """Where a step's keys go, `rows` i64[G*r*n] of the suffix, and what each sample sees."""

    rows: Tensor
    context_len: Tensor  # i32[G]
    suffix_len: Tensor  # i32[G, r], this step's n tokens included


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, computed in fp32.

    With `norm_plus_one` the factor is 1 + weight and applied before rounding to the dtype of x.
    """

    def __init__(
        self, config: ModelConfig, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.eps, self.plus_one = config.rms_norm_eps, config.norm_plus_one
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., size] normalised, in its own dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.plus_one:
            return (wide * (1.0 + self.weight.float())).to(x.dtype)
        return self.weight * wide.to(x.dtype)


class MLP(nn.Module):
    """The gated feed-forward layer, down(activation(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        wide, narrow, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(narrow, wide, bias=bias, dtype=dtype, device=device)
        self.up_proj = nn.Linear(narrow, wide, bias=bias, dtype=dtype, device=device)
        self.down_proj = nn.Linear(wide, narrow, bias=bias, dtype=dtype, device=device)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., hidden] -> [..., hidden]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """A mixture of feed-forward layers: each token takes those that its router scores highest.

    Every expert works on every token and what was not chosen counts 0, so that shapes do not depend
    on the tokens. Decoding a batch reads all experts' weights anyway; prefill computes
    experts / experts_per_token times what it needs.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.chosen = config.experts_per_token
        size, experts = config.hidden_size, config.experts
        self.router = nn.Linear(size, experts, bias=False, dtype=dtype, device=device)
        self.experts = nn.ModuleList(MLP(config, dtype, device) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., hidden] -> [..., hidden]."""
        scores = self.router(x).float().softmax(-1)
        shares = choose_experts(scores, self.chosen).to(x.dtype).unsqueeze(-1)
        parts = [expert(x) * shares[..., e, :] for e, expert in enumerate(self.experts)]
        return functools.reduce(torch.add, parts)


def choose_experts(scores: Tensor, chosen: int) -> Tensor:
    """The share of each expert [..., experts]: the `chosen` highest scores, scaled to sum to 1.

    An expert ranks behind those with a higher score and, among equals, behind those before it.
    Ranks come from comparing all pairs, which needs no sort and gives the same on any device, where
    the order of equals in `torch.topk` is nobody's promise.
    """
    index = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device)
    own, other = scores.unsqueeze(-1), scores.unsqueeze(-2)  # [..., experts, 1], [..., 1, experts]
    ahead = (other > own) | ((other == own) & (index < index.unsqueeze(-1)))
    kept = torch.where(ahead.sum(-1, dtype=torch.int32) < chosen, scores, 0.0)
    return kept / kept.sum(-1, keepdim=True)


class Attention(nn.Module):
    """Grouped-query attention over the shared context and each sample's suffix.

    What layer `layer` sees of them is the config's `window(layer)`.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: str,
        target: str,
    ) -> None:
        super().__init__()
        self.h, self.g, self.d = config.h, config.g, config.d
        self.attend: dict[str, Any] = {  # options of the operators
            "scale": config.scale,
            "window": config.window(layer),
            "softcap": config.attention_softcap,
            "kernels": kernels,
            "target": target,
        }
        size, bias = config.hidden_size, config.qkv_bias
        q_size, kv_size = config.h * config.d, config.g * config.d
        self.q_proj = nn.Linear(size, q_size, bias=bias, dtype=dtype, device=device)
        self.k_proj = nn.Linear(size, kv_size, bias=bias, dtype=dtype, device=device)
        self.v_proj = nn.Linear(size, kv_size, bias=bias, dtype=dtype, device=device)
        self.o_proj = nn.Linear(q_size, size, bias=config.o_bias, dtype=dtype, device=device)
        self.q_norm = norm_or_nothing(config.qk_norm, config, config.d, dtype, device)
        self.k_norm = norm_or_nothing(config.qk_norm, config, config.d, dtype, device)
        self.cache = KVCache()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, step: Prefill | Decode) -> Tensor:
        """Attends from `x` [1, S, hidden] or [G, r, n, hidden]; `cos`, `sin` as `rope.rotate`'s."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (self.h, self.d)))  # [..., h, d]
        k = self.k_norm(self.k_proj(x).unflatten(-1, (self.g, self.d)))  # [..., g, d]
        q, k = rope.rotate(q, cos, sin), rope.rotate(k, cos, sin)
        v = self.v_proj(x).unflatten(-1, (self.g, self.d))  # [..., g, d]
        k, v = k.flatten(0, -3), v.flatten(0, -3)  # [tokens, g, d]
        if isinstance(step, Prefill):
            o = self._prefill(q, k, v, step)
        else:
            o = self._decode(q, k, v, step)
        return self.o_proj(o.flatten(-2))

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, step: Prefill) -> Tensor:
        k = k.permute(1, 2, 0).contiguous()  # [g, d, S]
        v = v.transpose(0, 1).contiguous()  # [g, S, d]
        self.cache.write_context(k, v, step.slots)
        return flash_attention(q, k, v, **self.attend)  # [1, S, h, d]

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, step: Decode) -> Tensor:
        cache = self.cache
        cache.write_suffix(k.transpose(0, 1), v.transpose(0, 1), step.rows)  # [g, G*r*n, d]
        return bifurcated_attention(
            q,
            cache.k_ctx,
            cache.v_ctx,
            cache.k_suf,
            cache.v_suf,
            step.context_len,
            step.suffix_len,
            **self.attend,
        )  # [G, r, n, h, d]


class Layer(nn.Module):
    """One transformer layer, norms first, and behind too where the config says so."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        kernels: str,
        target: str,
    ) -> None:
        super().__init__()
        size, behind = config.hidden_size, config.output_norms
        self.residual_multiplier = config.residual_multiplier
        self.attention_norm = RMSNorm(config, size, dtype, device)
        self.self_attn = Attention(config, layer, dtype, device, kernels, target)
        self.attention_output_norm = norm_or_nothing(behind, config, size, dtype, device)
        self.mlp_norm = RMSNorm(config, size, dtype, device)
        feed_forward = Experts if config.experts else MLP
        self.mlp = feed_forward(config, dtype, device)
        self.mlp_output_norm = norm_or_nothing(behind, config, size, dtype, device)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, step: Prefill | Decode) -> Tensor:
        """`x` [..., hidden] -> [..., hidden]."""
        attended = self.self_attn(self.attention_norm(x), cos, sin, step)
        x = x + scaled(self.attention_output_norm(attended), self.residual_multiplier)
        fed = self.mlp(self.mlp_norm(x))
        return x + scaled(self.mlp_output_norm(fed), self.residual_multiplier)


def norm_or_nothing(
    wanted: bool, config: ModelConfig, size: int, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """A norm over `size` elements, or a module that passes its input and holds no weight."""
    return RMSNorm(config, size, dtype, device) if wanted else nn.Identity()


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x` times `factor`; no operation at all where that is 1."""
    return x if factor == 1.0 else x * factor


class CausalLM(nn.Module):
    """The network, with the keys and values of the prompts and samples it is working on.

    For inference: no parameter asks for a gradient. Call `allocate` before the first `forward`.

    Args:
        config: sizes and options.
        dtype: of weights, activations and cache; torch.float32 or torch.bfloat16.
        device: where it lives; "meta" gives a shape without storage.
        kernels: "auto", "nki" or "torch", handed to the attention operators.
        target: core generation that NKI kernels are simulated for on a CPU.

    Raises:
        InputError: kernels is "nki", and the NKI kernels do not have what the config needs.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kernels: str = "auto",
        target: str = "trn1",
    ) -> None:
        super().__init__()
        if kernels == "nki":
            for layer in range(config.layers):
                validate_for_kernels(config.d, config.window(layer), config.attention_softcap)
        device = torch.device(device)
        self.config = config
        self.shape: CacheShape | None = None
        vocab, size = config.vocab_size, config.hidden_size
        # As the checkpoint's own code rounds it: a square root, in bfloat16 (Gemma 2).
        self.embedding_multiplier = float(torch.tensor(config.embedding_multiplier, dtype=dtype))
        self.embed_tokens = nn.Embedding(vocab, size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(
            Layer(config, layer, dtype, device, kernels, target) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config, size, dtype, device)
        self.lm_head = nn.Linear(size, vocab, bias=False, dtype=dtype, device=device)
        self.tie_weights()
        self.register_buffer("rope_cos", None, persistent=False)
        self.register_buffer("rope_sin", None, persistent=False)
        self.requires_grad_(False)

    def tie_weights(self) -> None:
        """Makes the head the embedding, where the config ties them."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations and cache."""
        return self.embed_tokens.weight.dtype

    def caches(self) -> list[KVCache]:
        """The cache of each layer, first to last."""
        return [layer.self_attn.cache for layer in self.layers]  # type: ignore[union-attr, misc]

    def allocate(self, shape: CacheShape) -> None:
        """Makes the cache and the rope tables for `shape`; what was cached before is lost."""
        self.shape = shape
        for cache in self.caches():
            cache.allocate(shape, self.config.g, self.config.d, self.dtype, self.device)
        cos, sin = rope.tables(self.config.rope, self.config.d, shape.S_ctx + shape.S_dec)
        self.rope_cos, self.rope_sin = cos.to(self.device), sin.to(self.device)

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Gives groups `targets` a copy of the context that group `source` was prefilled with."""
        for cache in self.caches():
            cache.copy_context(self._allocated().S_ctx, source, targets)

    def cache_bytes(self) -> int:
        """Bytes that the keys and values of all layers occupy, free slots included."""
        return sum(cache.nbytes() for cache in self.caches())

    def forward(
        self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: Tensor
    ) -> Tensor:
        """Logits, fp32. The rank of `tokens` says which phase it is.

        Args:
            tokens: i32[1, S], a prompt and padding (prefill), or i32[G, r, n], new tokens (decode).
            context_len: i32[G], prompt tokens of each group.
            suffix_len: i32[G, r], tokens of each sample, this step's n included; 0 is a free row.
                Not read in prefill.
            group: i32[1], the group that a prefill fills. Not read in decode.

        Returns:
            [1, vocab] after the prompt's last token (prefill), or [G, r, n, vocab] (decode).

        Raises:
            InputError: tokens of another shape than the allocated cache takes.
        """
        if tokens.dim() == 2:
            return self._prefill(tokens, context_len, group)
        return self._decode(tokens, context_len, suffix_len)

    def _prefill(self, tokens: Tensor, context_len: Tensor, group: Tensor) -> Tensor:
        shape = self._allocated()
        rows, S = tokens.shape
        if rows != 1 or shape.S_ctx < S:
            raise InputError(
                f"prefill tokens have shape {tuple(tokens.shape)}; they must be [1, S] with S at "
                f"most S_ctx = {shape.S_ctx}"
            )
        positions = torch.arange(S, dtype=torch.int32, device=tokens.device)[None]  # [1, S]
        slots = (group * shape.S_ctx + positions[0]).long()  # [S]
        x = self._run(tokens, positions, Prefill(slots))  # [1, S, hidden]
        last = context_len.index_select(0, group) - 1  # [1]
        x = x.index_select(1, last.clamp(0, S - 1))[0]  # [1, hidden]
        return self._logits(x)

    def _decode(self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor) -> Tensor:
        shape = self._allocated()
        if tokens.dim() != 3 or tokens.shape[:2] != (shape.G, shape.r):
            raise InputError(
                f"decode tokens have shape {tuple(tokens.shape)}; they must be [G, r, n] with "
                f"G = {shape.G} and r = {shape.r}"
            )
        n = tokens.shape[2]
        new = torch.arange(n, dtype=torch.int32, device=tokens.device)
        # Index of each new token in its sample's suffix. A free row (length 0) writes to its own,
        # dead, slot 0.
        index = ((suffix_len - n)[:, :, None] + new).clamp(min=0)  # [G, r, n]
        row = torch.arange(shape.rows, dtype=torch.int32, device=tokens.device)
        rows = row.view(shape.G, shape.r, 1) * shape.S_dec + index  # [G, r, n]
        positions = context_len[:, None, None] + index  # [G, r, n]
        step = Decode(rows.flatten().long(), context_len, suffix_len)
        x = self._run(tokens, positions, step)  # [G, r, n, hidden]
        return self._logits(x)

    def _run(self, tokens: Tensor, positions: Tensor, step: Prefill | Decode) -> Tensor:
        cos = F.embedding(positions, self.rope_cos).unsqueeze(-2)  # [..., 1, rotated/2]
        sin = F.embedding(positions, self.rope_sin).unsqueeze(-2)
        x = scaled(self.embed_tokens(tokens), self.embedding_multiplier)  # [..., hidden]
        for layer in self.layers:
            x = layer(x, cos, sin, step)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.lm_head(self.norm(x)).float()  # [..., vocab]
        logits = scaled(logits, 1.0 / self.config.logit_divisor)
        cap = self.config.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _allocated(self) -> CacheShape:
        if self.shape is None:
            raise InputError("the model has no cache yet; call allocate(CacheShape(...)) first")
        return self.shape
