"""Where drafts come from: tokens that a step proposes and the model then verifies.

A drafter is asked before each decode step and may answer with fewer tokens than it was asked for,
or none. What it proposes changes how many steps an answer takes and never which tokens it has; see
`Generator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.causal_lm import CacheShape
from models.generation.slots import Live, Slots
from nki_kernels.errors import InputError


class Drafter(Protocol):
    """Proposes how samples go on."""

    def allocate(self, shape: CacheShape) -> None:
        """Prepares for the rows of a cache; what was known before is lost."""

    def propose(self, slots: Slots, most: Mapping[int, int]) -> dict[int, list[int]]:
        """Drafts of the rows in `most`, at most so many each; rows may be left out.

        Called again for the same samples after an interrupted step.
        """

    def forget(self) -> None:
        """Drops what is known of prompts that nobody reads any more."""


@dataclass(frozen=True)
class Speculation:
    """How a generator speculates.

    Attributes:
        drafter: where drafts come from.
        draft_tokens: the most a step verifies for a sample. Steps with drafts have
            n = draft_tokens + 1 query tokens a row, and as many suffix slots more are needed.
    """

    drafter: Drafter
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        """Refuses to draft nothing."""
        if self.draft_tokens < 1:
            raise InputError(f"draft_tokens is {self.draft_tokens}; it must be 1 or more")


class PromptLookup:
    """Drafts by copying: what followed the last tokens where they occurred before.

    The longest of the last `longest` to `shortest` tokens is looked for in the prompt and in the
    sample's own tokens, the latest occurrence first, and what followed it is proposed. It costs no
    model (Saxena, "Prompt lookup decoding", https://github.com/apoorvumang/prompt-lookup-decoding).

    Args:
        longest: tokens compared first.
        shortest: tokens compared last.
    """

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise InputError(
                f"prompt lookup compares {longest} down to {shortest} tokens; it must be at least "
                "1, and the longest not below the shortest"
            )
        self.sizes = range(longest, shortest - 1, -1)
        self._prompts: dict[tuple[int, ...], _Index] = {}
        self._rows: dict[int, tuple[Live, _Index]] = {}

    def allocate(self, shape: CacheShape) -> None:
        """Nothing is kept of another cache."""
        self._prompts, self._rows = {}, {}

    def propose(self, slots: Slots, most: Mapping[int, int]) -> dict[int, list[int]]:
        """See `Drafter`."""
        rows, drafts = {}, {}
        for row, _, live in slots.live():
            former = self._rows.get(row)
            index = former[1] if former and former[0] is live else self._begin(live)
            index.extend(live.sample.tokens[len(index.tokens) :])
            rows[row] = (live, index)
            if most.get(row):
                drafts[row] = index.continuation(most[row])
        self._rows = rows
        return {row: draft for row, draft in drafts.items() if draft}

    def forget(self) -> None:
        """See `Drafter`."""
        used = {live.answers.prompt for live, _ in self._rows.values()}
        self._prompts = {prompt: self._prompts[prompt] for prompt in used}

    def _begin(self, live: Live) -> _Index:
        prompt = live.answers.prompt
        if prompt not in self._prompts:
            self._prompts[prompt] = _Index(self.sizes)
            self._prompts[prompt].extend(prompt)
        return _Index(self.sizes, self._prompts[prompt])


class _Index:
    """Where a run of tokens last went on, in a text and in what it continues.

    Attributes:
        tokens: of this text alone.
    """

    def __init__(self, sizes: Sequence[int], before: _Index | None = None) -> None:
        self.sizes = sizes
        self.before: list[int] = before.tokens if before else []
        self.tokens: list[int] = []
        self._older = before._after if before else {}
        self._after: dict[tuple[int, ...], int] = {}  # run of tokens -> position behind it

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds tokens to the end."""
        for token in tokens:
            position = len(self.before) + len(self.tokens)
            for run in self._last():
                self._after[run] = position
            self.tokens.append(token)

    def continuation(self, most: int) -> list[int]:
        """What followed the longest run of last tokens that occurred before; at most `most`."""
        for run in self._last():
            at = self._after.get(run, self._older.get(run))
            if at is not None:
                old = self.before[at : at + most]
                start = max(at - len(self.before), 0)
                return old + self.tokens[start : start + most - len(old)]
        return []

    def _last(self) -> list[tuple[int, ...]]:
        """The runs that end the text, longest first."""
        longest = max(self.sizes)
        end = self.tokens[-longest:]
        if len(end) < longest and self.before:
            end = self.before[len(end) - longest :] + end
        return [tuple(end[-size:]) for size in self.sizes if size <= len(end)]
