"""Perplexity of a text: every token but the first is scored once, in windows that overlap.

A window's first part is context, read by a prefill; its last `stride` tokens are scored by decode
steps of many query tokens. So it is the two phases of generation that are measured, whatever
kernels, dtypes or caches they run with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.causal_lm import CacheShape, ModelConfig
from models.generation import Network
from models.generation.network import call
from nki_kernels.errors import InputError

CHUNK = 128  # query tokens a step, so that logits stay small


@dataclass(frozen=True)
class Perplexity:
    """The result.

    Attributes:
        tokens: scored.
        nats: their negative log-probability, summed.
        window: tokens that a prediction saw at most, the one it predicts included.
        stride: tokens scored a window.
    """

    tokens: int
    nats: float
    window: int
    stride: int

    @property
    def nats_per_token(self) -> float:
        """Cross entropy."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the cross entropy."""
        return math.exp(self.nats_per_token)


@torch.no_grad()
def perplexity(
    model: Network,
    tokens: Sequence[int],
    *,
    window: int | None = None,
    stride: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Scores a text.

    Args:
        model: the network; its cache is allocated here.
        tokens: of the text, the model's first token (BOS) included where it expects one.
        window: by default all positions that the model takes, and no more than the text.
        stride: by default half a window.
        progress: called with the number of tokens scored, as they are.

    Raises:
        InputError: fewer than two tokens, one outside the vocabulary, or a window or stride that
            the model or each other cannot hold.
    """
    window, stride = check_text(model.config, tokens, window, stride)
    model.allocate(CacheShape(1, 1, window - stride, stride))
    nats = 0.0
    for begin in range(1, len(tokens), stride):
        end = min(begin + stride, len(tokens))
        context = tokens[max(end - window, 0) : begin][stride - window :]
        nats += _score(model, context, tokens[begin:end], window - stride)
        if progress is not None:
            progress(end - begin)
    return Perplexity(len(tokens) - 1, nats, window, stride)


def check_text(
    config: ModelConfig, tokens: Sequence[int], window: int | None, stride: int | None
) -> tuple[int, int]:
    """Window and stride of `perplexity`, what is left open filled in; needs no weights.

    Raises:
        InputError: as `perplexity` does.
    """
    if len(tokens) < 2:
        raise InputError(f"the text has {len(tokens)} tokens; perplexity needs at least 2")
    unknown = [token for token in tokens if not 0 <= token < config.vocab_size]
    if unknown:
        raise InputError(
            f"the text has token {unknown[0]}, but the model's vocabulary ends at "
            f"{config.vocab_size - 1}; the tokenizer belongs to another model"
        )
    window = min(config.max_position, len(tokens)) if window is None else window
    if not 2 <= window <= config.max_position:
        raise InputError(
            f"window is {window}; it must be 2 to {config.max_position} (max_position_embeddings)"
        )
    stride = max(window // 2, 1) if stride is None else stride
    if not 1 <= stride < window:
        raise InputError(f"stride is {stride}; it must be 1 to {window - 1}, less than the window")
    return window, stride


def _score(model: Network, context: Sequence[int], scored: Sequence[int], S_ctx: int) -> float:
    """Nats of `scored` behind `context`."""
    tokens = torch.zeros(1, S_ctx, dtype=torch.int32)
    tokens[0, : len(context)] = _int32(context)
    context_len = _int32([len(context)])
    logits = call(model, tokens, context_len, _int32([[0]]), 0)  # [1, vocab]
    nats = _nats(logits, scored[:1])
    fed = scored[:-1]
    for at in range(0, len(fed), CHUNK):
        chunk = fed[at : at + CHUNK]
        suffix_len = _int32([[at + len(chunk)]])
        logits = call(model, _int32(chunk)[None, None], context_len, suffix_len, 0)
        nats += _nats(logits[0, 0], scored[at + 1 : at + 1 + len(chunk)])
    return nats


def _nats(logits: Tensor, tokens: Sequence[int]) -> float:
    index = torch.tensor(tokens, device=logits.device)
    nats = -float(logits.double().log_softmax(-1).gather(1, index[:, None]).sum())
    if not math.isfinite(nats):
        raise InputError("the model's logits are not finite; its weights are damaged")
    return nats


def _int32(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
