"""The decode step that draws its tokens itself: what a compiled decode graph is.

Random numbers come in as tensors and tokens go out, so a step moves 16 bytes a sample between host
and device: its number and its length in, its token and its log-probability out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from models.causal_lm.draw import MOST_CANDIDATES, Settings, draw, find_candidates
from nki_kernels.errors import InputError

if TYPE_CHECKING:
    from models.causal_lm.network import CausalLM


class DecodeStep(nn.Module):
    """A network, and tokens drawn from its logits among the `candidates` most likely ones.

    As `CausalLM`, it is one module with one tensor-only signature for both phases: a prefill gives
    the logits after the prompt, from which each of its samples draws its first token.

    Args:
        model: the network.
        candidates: the largest top_k that a row may ask for.

    Raises:
        InputError: candidates is out of range.
    """

    def __init__(self, model: CausalLM, candidates: int) -> None:
        super().__init__()
        if not 1 <= candidates <= MOST_CANDIDATES:
            raise InputError(f"candidates is {candidates}; it must be 1 to {MOST_CANDIDATES}")
        self.model, self.candidates = model, candidates

    def forward(
        self,
        tokens: Tensor,
        context_len: Tensor,
        suffix_len: Tensor,
        group: Tensor,
        u: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Logits [1, vocab] of a prefill, or tokens and log-probabilities of a decode step.

        Args:
            tokens, context_len, suffix_len, group: as `CausalLM.forward`'s.
            u: f32[G, r, n], a uniform number for each new token, a multiple of 2**-24 in [0, 1).
            temperature: f32[G, r]; 0 is greedy.
            top_k: i32[G, r], 1 to `candidates`.
            top_p: f32[G, r].

        Returns:
            after decoding, i32[G, r, n] and f32[G, r, n]: the token drawn behind each of the n, and
            its log-probability under the model's own distribution.
        """
        if tokens.dim() == 2:
            logits: Tensor = self.model(tokens, context_len, suffix_len, group)
            return logits
        model = self.model
        local = model.local_logits(tokens, context_len, suffix_len, group)
        candidates = find_candidates(
            local, self.candidates, model.config.vocab_size, model.parallel, model.rank()
        )

        def per_token(setting: Tensor) -> Tensor:
            return setting.unsqueeze(-1).expand_as(u)

        settings = Settings(per_token(temperature), per_token(top_k), per_token(top_p))
        return draw(candidates, u, settings)
