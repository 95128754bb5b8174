"""Drafts from a smaller model, drawn with the random numbers that the answer itself will use.

The draft model draws a token at a position as the model will: same temperature, top-k, top-p and
the same uniform number, looked up in its own cumulative distribution. Where the two distributions
agree they draw the same token, so most drafts are accepted although the verification only compares
tokens. (A shared random number couples two draws without communication: Daliri, Musco and Suresh,
arXiv 2408.07978.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from models.causal_lm import CacheShape, ModelConfig
from models.generation.network import Network, call
from models.generation.sampling import choose_each
from models.generation.slots import Live, Slots
from nki_kernels.errors import InputError


@dataclass
class _Row:
    """What the draft model's cache holds of a sample.

    Attributes:
        live: the sample.
        fed: tokens whose keys are in the cache, drafts included, first to last.
    """

    live: Live
    fed: list[int] = field(default_factory=list)


class DraftModel:
    """Drafts from a network with the same vocabulary, over a cache of its own of the same shape.

    Its cache is rolled back by lengths: of what it was fed, the tokens that the sample has taken
    stay, and what follows is overwritten.

    Args:
        model: the draft network; its cache is allocated here.
        target: config of the network whose answers are drafted.

    Raises:
        InputError: the vocabularies differ.
    """

    def __init__(self, model: Network, target: ModelConfig) -> None:
        check_draft(model.config, target)
        self.model = model
        self._prompts: list[tuple[int, ...] | None] = []
        self._rows: dict[int, _Row] = {}

    def allocate(self, shape: CacheShape) -> None:
        """Makes the draft model's cache."""
        self.model.allocate(shape)
        self._prompts, self._rows = [None] * shape.G, {}

    @torch.no_grad()
    def propose(self, slots: Slots, most: Mapping[int, int]) -> dict[int, list[int]]:
        """See `Drafter`."""
        self._load(slots)
        self._roll_back(slots)
        drafts: dict[int, list[int]] = {row: [] for row, count in most.items() if count}
        # What each row must be fed before its next draft; more than one token where the last round
        # ended with a draft that was never fed.
        pending = {row: self._rows[row].live.sample.tokens[self._fed(row) :] for row in drafts}
        while any(pending.values()):
            width = 2 if any(len(tokens) > 1 for tokens in pending.values()) else 1
            self._step(slots, drafts, pending, most, width)
        return drafts

    def forget(self) -> None:
        """Drops all contexts: the weights may change before the next request."""
        self._prompts = [None] * len(self._prompts)
        self._rows = {}

    def _fed(self, row: int) -> int:
        return len(self._rows[row].fed)

    def _load(self, slots: Slots) -> None:
        """Brings the prompts in use into the draft model's cache."""
        for group in slots.groups:
            j, prompt = group.index, group.prompt
            if group.idle or prompt is None or self._prompts[j] == prompt:
                continue
            source = self._prompts.index(prompt) if prompt in self._prompts else None
            self._prompts[j] = None
            if source is not None:
                self.model.copy_context(source, [j])
            else:
                context_len = slots.context_len()
                call(self.model, slots.prefill(prompt), context_len, slots.no_suffix(), j)
            self._prompts[j] = prompt

    def _roll_back(self, slots: Slots) -> None:
        """Keeps of each row what its sample has taken; its last token is fed again."""
        rows = {}
        for row, _, live in slots.live():
            former = self._rows.get(row)
            kept = _Row(live)
            if former is not None and former.live is live:
                told = live.sample.tokens[:-1]
                for ours, theirs in zip(former.fed, told, strict=False):
                    if ours != theirs:
                        break
                    kept.fed.append(ours)
            rows[row] = kept
        self._rows = rows

    def _step(
        self,
        slots: Slots,
        drafts: dict[int, list[int]],
        pending: dict[int, list[int]],
        most: Mapping[int, int],
        width: int,
    ) -> None:
        """Feeds up to `width` tokens a row, and draws a draft for rows with nothing left to feed.

        A row that waits for others is fed its last token once more, which changes nothing.
        """
        feed = {}
        for row, each in self._rows.items():
            taken = pending.get(row, [])[:width]
            if taken:
                feed[row] = (len(each.fed), taken)
            elif each.fed:
                feed[row] = (len(each.fed) - 1, each.fed[-1:])
        tokens, suffix_len = slots.feed(feed, width)
        logits = call(self.model, tokens, slots.context_len(), suffix_len, 0).flatten(0, 1)
        drawing = []
        for row, rest in pending.items():
            taken = rest[:width]
            self._rows[row].fed += taken
            pending[row] = rest[width:]
            if taken and not pending[row]:
                drawing.append((row, len(taken) - 1))
        if not drawing:
            return
        lives = [self._rows[row].live for row, _ in drawing]
        drawn, _ = choose_each(
            torch.stack([logits[row, at] for row, at in drawing]),
            [live.u[self._fed(row)] for live, (row, _) in zip(lives, drawing, strict=True)],
            [live.answers.request.sampling for live in lives],
        )
        for (row, _), token in zip(drawing, drawn, strict=True):
            drafts[row].append(token)
            if len(drafts[row]) < most[row]:
                pending[row] = [token]


def check_draft(draft: ModelConfig, target: ModelConfig) -> None:
    """Refuses a draft model that speaks of other tokens; needs configs, and no weights.

    Raises:
        InputError: the sizes of the vocabularies differ, or the draft model takes fewer positions.
    """
    if draft.vocab_size != target.vocab_size:
        raise InputError(
            f"the draft model's vocabulary has {draft.vocab_size} tokens and the model's "
            f"{target.vocab_size}; they must be the same vocabulary"
        )
    if draft.max_position < target.max_position:
        raise InputError(
            f"the draft model takes {draft.max_position} positions "
            f"(max_position_embeddings) and the model {target.max_position}; it must not be fewer"
        )
