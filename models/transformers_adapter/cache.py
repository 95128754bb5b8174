"""A transformers cache that stores a prompt's keys and values once, for all samples of it.

Groups, rows and layouts are those of the attention operator: G prompts, r samples of each, context
K transposed. Suffixes grow by concatenation, as those of transformers' own `DynamicCache` do, so
that m_c + b·m_d positions are stored and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from nki_kernels import bifurcated_attention
from nki_kernels.errors import InputError

_LAYER = "_bifork_layer"  # attribute of the keys that a decode step hands to the attention function


class SharedContextLayer(CacheLayerMixin):
    """Keys and values of one layer.

    Attributes:
        k_ctx: [g, d, G·S_ctx], None until the first prompt is written.
        v_ctx: [g, G·S_ctx, d].
        k_suf: [g, b, m_d, d], None before the first decode step.
        v_suf: likewise.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, cache: SharedContextCache) -> None:
        super().__init__()
        self.cache = cache
        self.k_ctx: Tensor | None = None
        self.v_ctx: Tensor | None = None
        self.k_suf: Tensor | None = None
        self.v_suf: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, *args: Any) -> None:
        """Makes room for the contexts."""
        _, g, _, d = key_states.shape
        slots = len(self.cache.lengths) * self.cache.S_ctx
        self.k_ctx, self.v_ctx = (
            key_states.new_zeros(g, d, slots),
            key_states.new_zeros(g, slots, d),
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores the next positions.

        Args:
            key_states: [1, g, S, d] of a prompt, or [b, g, n, d] of a decode step.
            value_states: likewise.

        Returns:
            the prompt's keys and values as they came; or the suffixes, [b, g, m_d, d], of which the
            keys know this layer.

        Raises:
            InputError: the model's attention is not the one that reads this cache, or the rows are
                no multiple of the prompts.
        """
        self.cache.check_attention()
        if self.k_ctx is None or self.v_ctx is None:
            self.lazy_initialization(key_states)
            assert self.k_ctx is not None and self.v_ctx is not None
        j = self.cache.loading
        if j is not None:
            at = slice(j * self.cache.S_ctx, j * self.cache.S_ctx + key_states.shape[2])
            self.k_ctx[:, :, at] = key_states[0].transpose(1, 2)
            self.v_ctx[:, at] = value_states[0]
            return key_states, value_states
        self.cache.check_rows(key_states.shape[0])
        keys, values = key_states.transpose(0, 1), value_states.transpose(0, 1)  # [g, b, n, d]
        if self.k_suf is None or self.v_suf is None:
            self.k_suf, self.v_suf = keys.contiguous(), values.contiguous()
        else:
            self.k_suf = torch.cat((self.k_suf, keys), dim=2)
            self.v_suf = torch.cat((self.v_suf, values), dim=2)
        suffix = self.k_suf.transpose(0, 1)
        setattr(suffix, _LAYER, self)
        return suffix, self.v_suf.transpose(0, 1)

    def attend(
        self,
        query: Tensor,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention of `query` [b, h, n, d], whose keys were stored last: [b, n, h, d]."""
        assert self.k_ctx is not None and self.v_ctx is not None
        assert self.k_suf is not None and self.v_suf is not None
        b, m_d = self.k_suf.shape[1:3]
        G = len(self.cache.lengths)
        q = query.transpose(1, 2).unflatten(0, (G, b // G))  # [G, r, n, h, d]
        to: dict[str, Any] = {"dtype": torch.int32, "device": query.device}
        o = bifurcated_attention(
            q.contiguous(),
            self.k_ctx,
            self.v_ctx,
            self.k_suf.flatten(1, 2),
            self.v_suf.flatten(1, 2),
            torch.tensor(self.cache.lengths, **to),
            torch.full((G, b // G), m_d, **to),
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=None if sinks is None else sinks.float(),
        )
        return o.flatten(0, 1)

    def get_seq_length(self) -> int:
        """Positions that the next token follows, padding of the longest prompt included."""
        if self.cache.loading is not None:
            return 0
        return self.cache.padded + (0 if self.k_suf is None else self.k_suf.shape[2])

    def get_mask_sizes(self, new: Any) -> tuple[int, int]:
        """Positions with the new ones, and where they begin; `new` are they or their number."""
        n = new if isinstance(new, int) else new.shape[0]
        return self.get_seq_length() + n, 0

    def get_max_length(self) -> int:
        """There is none."""
        return -1

    get_max_cache_shape = get_max_length  # as transformers 4 calls it

    def reset(self) -> None:
        """Drops the suffixes; the contexts stay."""
        self.k_suf = self.v_suf = None

    def nbytes(self) -> int:
        """Bytes of keys and values."""
        held = (self.k_ctx, self.v_ctx, self.k_suf, self.v_suf)
        return sum(each.nbytes for each in held if each is not None)


class SharedContextCache(Cache):
    """Contexts of prompts, each stored once, and the suffixes of their samples.

    Rows of a decode step are ordered as `generate` orders them: the samples of the first prompt,
    then those of the second. Made by `share_context`.

    Args:
        config: of the transformers model, text part.
        lengths: context positions of each prompt.
        padded: positions of the longest, with its padding, as `input_ids` counts them.
    """

    def __init__(self, config: Any, lengths: Sequence[int], padded: int) -> None:
        self.config, self.lengths, self.padded = config, list(lengths), padded
        self.S_ctx = max(*lengths, 1)
        self.loading: int | None = None  # the prompt that is being read
        super().__init__(layers=[SharedContextLayer(self) for _ in range(config.num_hidden_layers)])

    def check_attention(self) -> None:
        """Refuses attention that would read the suffixes and miss the context."""
        name = self.config._attn_implementation
        if name != "bifurcated":
            raise InputError(
                f"attn_implementation is {name!r}; a SharedContextCache is read by 'bifurcated' "
                "attention only: model.set_attn_implementation('bifurcated')"
            )

    def check_rows(self, b: int) -> None:
        """Refuses rows that cannot be shared out among the prompts."""
        if b % len(self.lengths):
            raise InputError(
                f"{b} rows are decoded with the contexts of {len(self.lengths)} prompts; there "
                "must be as many rows of each"
            )

    def reset(self) -> None:
        """Drops the suffixes; the contexts stay, for another `generate` of the same prompts."""
        for layer in self.layers:
            layer.reset()

    def nbytes(self) -> int:
        """Bytes of keys and values of all layers."""
        return sum(layer.nbytes() for layer in self.layers)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: beams leave their prompts."""
        raise InputError("beam search is not supported with a SharedContextCache")

    def crop(self, *args: Any) -> None:
        """Refused: assisted generation rolls caches back."""
        raise InputError("assisted generation is not supported with a SharedContextCache")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused: contrastive search copies rows."""
        raise InputError("contrastive search is not supported with a SharedContextCache")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused: contrastive search picks rows."""
        raise InputError("contrastive search is not supported with a SharedContextCache")


def layer_of(keys: Tensor) -> SharedContextLayer | None:
    """The layer whose suffixes `keys` are; None for keys of any other cache."""
    return getattr(keys, _LAYER, None)
