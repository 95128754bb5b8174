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
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.causal_lm import rope
from models.causal_lm.attention import Attention, ContextPart, Decode, Prefill
from models.causal_lm.cache import CacheShape, KVCache
from models.causal_lm.config import ModelConfig
from models.causal_lm.decode_step import DecodeStep
from models.causal_lm.norm import RMSNorm, norm_or_nothing
from models.causal_lm.quantisation import FP8, quantise_projections
from models.causal_lm.sharding import KVSplit, Shard, check_kv_split, shards, split_heads
from models.parallel import SINGLE, TensorParallel
from nki_kernels.attention_state.reference import MASK
from nki_kernels.attention_state.validate import validate_for_kernels
from nki_kernels.errors import InputError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    """The gated feed-forward layer, down(activation(gate(x)) * up(x)).

    Without `reduce_output` each rank gives a summand of it.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        parallel: TensorParallel,
        reduce_output: bool = True,
    ) -> None:
        super().__init__()
        wide, narrow, bias = config.intermediate_size, config.hidden_size, config.mlp_bias
        self.gate_proj = parallel.column(narrow, wide, bias, dtype, device)
        self.up_proj = parallel.column(narrow, wide, bias, dtype, device)
        self.down_proj = parallel.row(wide, narrow, bias, dtype, device, reduce_output)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., hidden] -> [..., hidden]."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """A mixture of feed-forward layers: each token takes those that its router scores highest.

    Every expert works on every token and what was not chosen counts 0, so that shapes do not depend
    on the tokens. Decoding a batch reads all experts' weights anyway; prefill computes
    experts / experts_per_token times what it needs. Every rank has the router and a part of every
    expert; the experts' summands are added up before the ranks' are.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        parallel: TensorParallel,
    ) -> None:
        super().__init__()
        self.chosen, self.parallel = config.experts_per_token, parallel
        size, experts = config.hidden_size, config.experts
        self.router = nn.Linear(size, experts, bias=False, dtype=dtype, device=device)
        # A bias is whole on every rank: then each expert's summands are added up by themselves.
        self.summed = config.mlp_bias
        self.experts = nn.ModuleList(
            MLP(config, dtype, device, parallel, reduce_output=self.summed) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., hidden] -> [..., hidden]."""
        scores = self.router(x).float().softmax(-1)
        shares = choose_experts(scores, self.chosen).to(x.dtype).unsqueeze(-1)
        parts = [expert(x) * shares[..., e, :] for e, expert in enumerate(self.experts)]
        x = functools.reduce(torch.add, parts)
        return x if self.summed else self.parallel.reduce(x)


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


class Layer(nn.Module):
    """One transformer layer, norms first, and behind too where the config says so."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        device: torch.device,
        parallel: TensorParallel,
        replicas: TensorParallel | None,
        kernels: str,
        target: str,
        attention: str,
    ) -> None:
        super().__init__()
        size, behind = config.hidden_size, config.output_norms
        self.residual_multiplier = config.residual_multiplier
        self.attention_norm = RMSNorm(config, size, dtype, device)
        self.self_attn = Attention(
            config, layer, dtype, device, parallel, replicas, kernels, target, attention
        )
        self.attention_output_norm = norm_or_nothing(behind, config, size, dtype, device)
        self.mlp_norm = RMSNorm(config, size, dtype, device)
        feed_forward = Experts if config.experts else MLP
        self.mlp = feed_forward(config, dtype, device, parallel)
        self.mlp_output_norm = norm_or_nothing(behind, config, size, dtype, device)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, step: Prefill | Decode) -> Tensor:
        """`x` [..., hidden] -> [..., hidden]."""
        attended = self.self_attn(self.attention_norm(x), cos, sin, step)
        x = x + scaled(self.attention_output_norm(attended), self.residual_multiplier)
        fed = self.mlp(self.mlp_norm(x))
        return x + scaled(self.mlp_output_norm(fed), self.residual_multiplier)


def scaled(x: Tensor, factor: float) -> Tensor:
    """`x` times `factor`; no operation at all where that is 1."""
    return x if factor == 1.0 else x * factor


class CausalLM(nn.Module):
    """The network, with the keys and values of the prompts and samples it is working on.

    For inference: no parameter asks for a gradient. Call `allocate` before the first `forward`.

    At tp ranks each holds a part of the weights (`shards`) and of the cache, and all of them call
    `forward` with the same inputs and get the same logits.

    Args:
        config: sizes and options.
        dtype: of weights, activations and cache; torch.float32 or torch.bfloat16.
        device: where it lives; "meta" gives a shape without storage.
        kernels: "auto", "nki" or "torch", handed to the attention operators.
        target: core generation that NKI kernels are simulated for on a CPU.
        attention: which NKI kernel decodes: "bifurcated", "ordinary", or "auto", which pays.
        parallel: the ranks that share the network, and which of them this is.
        kv_split: what ranks that read the same key/value head (tp above g) hold of the context:
            "positions", each a part of them, or "replicate", each all of them.

    Raises:
        InputError: heads cannot be split over that many ranks; kernels is "nki", and the NKI
            kernels do not have what the config needs.
    """

    embed_tokens: Any  # the ParallelEmbedding of one library or the other
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
        attention: str = "auto",
        parallel: TensorParallel = SINGLE,
        kv_split: KVSplit = "positions",
    ) -> None:
        super().__init__()
        check_kv_split(kv_split)
        self.heads = split_heads(config, parallel.size, parallel.rank)
        if kernels == "nki":
            validate_for_kernels(config.d)
        device = torch.device(device)
        self.config, self.parallel = config, parallel
        self.shape: CacheShape | None = None
        self.parts = self.heads.replicas if kv_split == "positions" else 1
        replicas = parallel.subgroup(self.parts) if self.parts > 1 else None
        vocab, size = config.vocab_size, config.hidden_size
        # As the checkpoint's own code rounds it: a square root, in bfloat16 (Gemma 2).
        self.embedding_multiplier = float(torch.tensor(config.embedding_multiplier, dtype=dtype))
        self.embed_tokens = parallel.embedding(vocab, size, dtype, device)
        self.layers = nn.ModuleList(
            Layer(config, layer, dtype, device, parallel, replicas, kernels, target, attention)
            for layer in range(config.layers)
        )
        self.norm = RMSNorm(config, size, dtype, device)
        self.lm_head = parallel.column(size, vocab, False, dtype, device)
        self.tie_weights()
        quantise_projections(self, config.weights, parallel.reduce)
        self.register_buffer("rope_cos", None, persistent=False)
        self.register_buffer("rope_sin", None, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def tie_weights(self) -> None:
        """Makes the head the embedding, where the config ties them."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.embed_tokens.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of weights and cache where they are not quantised."""
        dtype: torch.dtype = self.embed_tokens.weight.dtype
        return dtype

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the cache."""
        return FP8 if self.config.kv_dtype == "fp8" else self.dtype

    def shards(self) -> dict[str, Shard]:
        """The part of a checkpoint's weight that each weight here is, by its name here."""
        return shards(self, self.config, self.parallel.size, self.parallel.rank)

    def caches(self) -> list[KVCache]:
        """The cache of each layer, first to last."""
        return [layer.self_attn.cache for layer in self.layers]  # type: ignore[union-attr, misc]

    def allocate(self, shape: CacheShape) -> None:
        """Makes the cache and the rope tables for `shape`; what was cached before is lost.

        Of S_ctx context slots a rank has its part, rounded up.
        """
        self.shape = shape
        mine = replace(shape, S_ctx=self._context_slots(shape))
        for cache in self.caches():
            cache.allocate(mine, self.heads.g, self.config.d, self.dtype, self.device)
        cos, sin = rope.tables(self.config.rope, self.config.d, shape.S_ctx + shape.S_dec)
        self.rope_cos, self.rope_sin = cos.to(self.device), sin.to(self.device)
        if self.parallel.size > 1:
            rank = torch.tensor([self.parallel.rank], dtype=torch.int32, device=self.device)
            self.embed_tokens.rank_util.rank = nn.Parameter(rank, requires_grad=False)

    def use(self, shape: CacheShape) -> None:
        """Works in the first slots of the cache that was allocated, as in one of `shape`.

        So graphs of several shapes share the buffers of the largest. What was cached in another
        shape is lost.

        Raises:
            InputError: the cache has fewer slots.
        """
        mine = replace(shape, S_ctx=self._context_slots(shape))
        there = self.caches()[0]
        needs = mine.context_slots, mine.suffix_slots, shape.S_ctx + shape.S_dec
        has = there.k_ctx.shape[2], there.k_suf.shape[1], self.rope_cos.shape[0]
        if any(need > most for need, most in zip(needs, has, strict=True)):
            raise InputError(
                f"{shape} needs {needs} context slots, suffix slots and positions; the cache has "
                f"{has}"
            )
        self.shape = shape
        for cache in self.caches():
            cache.use(mine)

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Gives groups `targets` a copy of the context that group `source` was prefilled with."""
        slots = self._context_slots(self._allocated())
        for cache in self.caches():
            cache.copy_context(slots, source, targets)

    def sampled(self, candidates: int) -> DecodeStep:
        """The decode step that draws tokens itself, among so many candidates a row."""
        return DecodeStep(self, candidates)

    def cache_bytes(self) -> int:
        """Bytes that this rank's keys and values of all layers occupy, free slots included."""
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
        logits = self.local_logits(tokens, context_len, suffix_len, group)
        gathered = self.parallel.gather(logits, logits.dim() - 1)
        return gathered[..., : self.config.vocab_size]

    def local_logits(
        self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: Tensor
    ) -> Tensor:
        """This rank's part of the logits, of ceil(vocab / tp) tokens; see `forward`.

        Those of tokens that only pad the vocabulary are MASK.
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
        x = self._run(tokens, positions, self._kept(positions[0], group))  # [1, S, hidden]
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
        part = self._part(context_len, suffix_len) if self.parts > 1 else None
        step = Decode(rows.flatten().long(), context_len, suffix_len, part)
        x = self._run(tokens, positions, step)  # [G, r, n, hidden]
        return self._logits(x)

    def _kept(self, positions: Tensor, group: Tensor) -> Prefill:
        """Where the keys of prompt `positions` i32[S] go."""
        shape = self._allocated()
        if self.parts == 1:
            return Prefill((group * shape.S_ctx + positions).long())
        stored = self._context_slots(shape)
        slots = torch.arange(stored, dtype=torch.int32, device=positions.device)
        # Slots behind the prompt's end get its last key: they are dead.
        kept = (self._replica() * stored + slots).clamp(max=positions.shape[0] - 1)
        return Prefill((group * stored + slots).long(), kept.long())

    def _part(self, context_len: Tensor, suffix_len: Tensor) -> ContextPart:
        """What this rank sees, where it holds a block of the context's positions."""
        shape, replica = self._allocated(), self._replica()
        stored = self._context_slots(shape)
        behind = context_len - replica * stored  # [G], context from the block's start to its end
        row = torch.arange(shape.rows, dtype=torch.int32, device=suffix_len.device)
        mine = (row % self.parts == replica).view(shape.G, shape.r)
        heads = torch.arange(self.heads.h, dtype=torch.int32, device=suffix_len.device)
        return ContextPart(
            context_len=behind.clamp(0, stored),
            suffix_len=torch.where(mine, suffix_len, torch.zeros_like(suffix_len)),
            query_position=behind[:, None] + suffix_len - 1,
            heads=(replica * self.heads.h + heads).long(),
        )

    def _replica(self) -> Tensor:
        """Which of the ranks that share its key/value head this one is, i32[1]."""
        return torch.as_tensor(self.rank()) % self.parts

    def rank(self) -> Tensor | int:
        """Which rank this is: 0, or at tp > 1 i32[1], for Neuron's ranks all run one graph."""
        if self.parallel.size == 1:
            return 0
        rank: Tensor = self.embed_tokens.rank_util.get_rank()
        return rank

    def _context_slots(self, shape: CacheShape) -> int:
        """Context slots of a group that this rank has."""
        return -(-shape.S_ctx // self.parts)

    def _run(self, tokens: Tensor, positions: Tensor, step: Prefill | Decode) -> Tensor:
        cos = F.embedding(positions, self.rope_cos).unsqueeze(-2)  # [..., 1, rotated/2]
        sin = F.embedding(positions, self.rope_sin).unsqueeze(-2)
        x = scaled(self.embed_tokens(tokens), self.embedding_multiplier)  # [..., hidden]
        for layer in self.layers:
            x = layer(x, cos, sin, step)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.lm_head(self.norm(x)).float()  # [..., ceil(vocab / tp)]
        logits = scaled(logits, 1.0 / self.config.logit_divisor)
        if self.config.final_softcap is not None:
            cap = self.config.final_softcap
            logits = cap * torch.tanh(logits / cap)
        count = logits.shape[-1]
        if count * self.parallel.size == self.config.vocab_size:
            return logits
        tokens = self.rank() * count + torch.arange(count, dtype=torch.int32, device=logits.device)
        return torch.where(tokens < self.config.vocab_size, logits, MASK)

    def _allocated(self) -> CacheShape:
        if self.shape is None:
            raise InputError("the model has no cache yet; call allocate(CacheShape(...)) first")
        return self.shape
