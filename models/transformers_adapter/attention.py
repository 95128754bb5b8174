"""Bifurcated attention behind transformers' attention interface.

A decode step over a `SharedContextCache` goes to the project's operator. Any other call (a prompt,
training, another cache) is answered as transformers itself would: with its sdpa function, or with
the model's eager one where attention has a soft-cap or sinks. So the setting can stay on.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from models.transformers_adapter.cache import SharedContextCache, layer_of
from nki_kernels.errors import InputError

NAME = "bifurcated"

# Layers whose keys a query sees are decided by causality and a window.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def register() -> None:
    """Makes `attn_implementation="bifurcated"` known to transformers."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, eager_mask)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls for each layer; see its `AttentionInterface`.

    Args:
        module: the attention layer.
        query: [b, h, n, d].
        key: [b, g, m, d]; of a decode step over a `SharedContextCache` the suffixes.
        value: likewise.
        attention_mask: [b, 1, n, m], 0 where a key is seen.
        scaling: factor of the logits; None is d ** -0.5.
        dropout: refused over a `SharedContextCache`.
        sliding_window: positions that a query sees.
        softcap: of the logits.
        kwargs: passed on to transformers' functions; `s_aux` [h] are the heads' sinks.

    Returns:
        [b, n, h, d], and no weights.
    """
    layer = layer_of(key)
    if layer is None:
        if softcap is not None:
            kwargs["softcap"] = softcap
        if softcap is None and kwargs.get("s_aux") is None:
            forward = sdpa_attention_forward
        else:
            forward = sys.modules[type(module).__module__].eager_attention_forward
        found: tuple[Tensor, Tensor | None] = forward(
            module, query, key, value, attention_mask,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            dropout=dropout, sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
        return found
    if dropout:
        raise InputError("bifurcated attention has no dropout")
    if attention_mask is not None and layer is layer.cache.layers[0]:
        _check_mask(attention_mask, layer.cache, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layer.attend(query, scale, sliding_window, softcap, kwargs.get("s_aux")), None


def _check_mask(mask: Tensor, cache: SharedContextCache, window: int | None) -> None:
    """Refuses a step whose last token does not see what the cache holds of its prompt."""
    seen = (mask[:, 0, -1] == 0).sum(-1)  # [b]
    m_d = cache.get_seq_length() - cache.padded
    held = torch.tensor(cache.lengths, device=mask.device) + m_d  # [G]
    held = held if window is None else held.clamp(max=window)
    held = held.repeat_interleave(len(seen) // len(held))
    if not torch.equal(seen, held):
        row = int((seen != held).nonzero()[0])
        raise InputError(
            f"attention_mask lets row {row} see {int(seen[row])} positions where its prompt and "
            f"answer have {int(held[row])}; give generate the attention_mask of share_context"
        )


@torch.no_grad()
def share_context(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None
) -> SharedContextCache:
    """Reads prompts once, for `model.generate(..., past_key_values=...)`.

        model.generate(**inputs, num_return_sequences=16, do_sample=True,
                       past_key_values=share_context(model, **inputs))

    All of a prompt but its last token is read here; `generate` feeds that to every sample. The
    model's attention is set to "bifurcated" if it is not.

    Args:
        model: a transformers causal language model whose attention goes through transformers'
            attention interface.
        input_ids: i64[G, S], prompts, padded at the left.
        attention_mask: [G, S], 0 on padding; None where there is none.

    Raises:
        InputError: padding elsewhere than at the left, or a model with layers that this attention
            does not compute.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        raise InputError(f"{model.config.model_type} has layers of type {', '.join(others)}; "
                         f"supported: {', '.join(sorted(_LAYER_TYPES))}")  # fmt: skip
    if input_ids.dim() != 2 or not input_ids.numel():
        raise InputError(
            f"input_ids has shape {list(input_ids.shape)}; it must be [prompts, tokens]"
        )
    G, S = input_ids.shape
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise InputError(f"attention_mask has shape {list(mask.shape)}, input_ids {[G, S]}")
    live = mask.bool()
    if not live[:, -1].all() or (live[:, :-1] & ~live[:, 1:]).any():
        raise InputError("attention_mask has zeros that are no padding at the left")
    if config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    lengths = (live.sum(1) - 1).tolist()  # without the last token
    cache = SharedContextCache(config, lengths, S - 1)
    for j, length in enumerate(lengths):
        if length:
            cache.loading = j
            model(
                input_ids[j : j + 1, S - 1 - length : S - 1], past_key_values=cache, use_cache=True
            )
    cache.loading = None
    return cache
