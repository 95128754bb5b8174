"""Which prompt is in which group and which sample in which row; the inputs of a decode step.

All inputs are made anew for each step from the samples themselves (a row's suffix length is the
number of tokens that its sample has), so nothing of a row's former sample can survive in them, and
a step that was interrupted halfway can be run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.causal_lm import CacheShape
from models.generation.requests import Answers, Sample


@dataclass
class Live:
    """A sample in a row.

    Attributes:
        answers: of its request.
        sample: the sample itself.
        u: its random numbers, fp32 [max_new_tokens].
        delivered: tokens that the callback has had.
    """

    answers: Answers
    sample: Sample
    u: npt.NDArray[np.float32]
    delivered: int = 0


@dataclass
class Group:
    """A context in the cache and the rows that read it.

    Attributes:
        index: j, its place in the cache.
        rows: r places, None where free.
        prompt: tokens of the context; None where there is none.
        logits: fp32 [1, vocab] after the prompt, from which every sample draws its first token.
    """

    index: int
    rows: list[Live | None]
    prompt: tuple[int, ...] | None = None
    logits: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether nobody reads it."""
        return all(row is None for row in self.rows)

    def holds(self, answers: Answers) -> bool:
        """Whether a sample of `answers` is in one of its rows."""
        return any(row is not None and row.answers is answers for row in self.rows)


@dataclass
class Slots:
    """The groups of a cache."""

    shape: CacheShape
    groups: list[Group] = field(init=False)

    def __post_init__(self) -> None:
        """All free."""
        self.groups = [Group(j, [None] * self.shape.r) for j in range(self.shape.G)]

    def live(self) -> Iterator[tuple[int, Group, Live]]:
        """Rows in use: index in 0 to G*r - 1, group, and sample."""
        for group in self.groups:
            for i, row in enumerate(group.rows):
                if row is not None:
                    yield group.index * self.shape.r + i, group, row

    def release(self, row: int) -> None:
        """Frees a row; the context of its group stays."""
        j, i = divmod(row, self.shape.r)
        self.groups[j].rows[i] = None

    def forget(self) -> None:
        """Drops the contexts that nobody reads."""
        for group in self.groups:
            if group.idle:
                group.prompt = group.logits = None

    def held(self, answers: Answers) -> int:
        """Groups in which `answers` has a sample."""
        return sum(group.holds(answers) for group in self.groups)

    def waiting(self, answers: Answers) -> list[Sample]:
        """Samples of `answers` that have not begun."""
        seated = {live.sample.index for _, _, live in self.live() if live.answers is answers}
        return [
            sample
            for sample in answers.samples
            if sample.finish is None and sample.index not in seated
        ]

    def context_len(self) -> Tensor:
        """Prompt tokens of each group in use, i32[G]; 0 for one that nobody reads."""
        lengths = [0 if group.idle else len(group.prompt or ()) for group in self.groups]
        return torch.tensor(lengths, dtype=torch.int32)

    def step(self) -> tuple[Tensor, Tensor]:
        """Each row's last token, i32[G, r, 1], and its suffix length with that, i32[G, r].

        A free row has length 0.
        """
        return self.feed(
            {
                row: (len(live.sample.tokens) - 1, live.sample.tokens[-1:])
                for row, _, live in self.live()
            },
            1,
        )

    def feed(self, new: Mapping[int, tuple[int, Sequence[int]]], n: int) -> tuple[Tensor, Tensor]:
        """Inputs of a decode step of n query tokens a row.

        A row with fewer is filled up with its last one: what that writes lies behind the row's
        tokens, where the next step writes again.

        Args:
            new: row -> the suffix position of the first of its tokens, and 1 to n tokens. Rows that
                are left out have length 0.
            n: query tokens a row.

        Returns:
            tokens i32[G, r, n], and the suffix lengths with them, i32[G, r].
        """
        shape = self.shape
        tokens = torch.zeros(shape.rows, n, dtype=torch.int32)
        lengths = torch.zeros(shape.rows, dtype=torch.int32)
        for row, (first, each) in new.items():
            filled = [*each, *[each[-1]] * (n - len(each))]
            tokens[row] = torch.tensor(filled, dtype=torch.int32)
            lengths[row] = first + n
        return tokens.view(shape.G, shape.r, n), lengths.view(shape.G, shape.r)

    def prefill(self, prompt: Sequence[int]) -> Tensor:
        """A prompt and padding, i32[1, S_ctx]."""
        tokens = torch.zeros(1, self.shape.S_ctx, dtype=torch.int32)
        tokens[0, : len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
        return tokens

    def no_suffix(self) -> Tensor:
        """The suffix lengths of a prefill, which does not read them: i32[G, r] of 0."""
        return torch.zeros(self.shape.G, self.shape.r, dtype=torch.int32)


@dataclass
class Occupancy:
    """How much of the work of static shapes was for something, summed over all steps so far.

    A graph of static shape computes every row, and may read every slot, of the cache; a prefill
    computes S_ctx tokens whatever the prompt's length.

    Attributes:
        shape: of the cache.
        steps: decode steps.
        live_rows: rows with a sample, summed over the steps.
        live_context: context slots that hold a token of a prompt in use, likewise.
        live_suffix: suffix slots that hold a token of a sample in use, likewise, drafts included.
        prefills: prompts read.
        prompt_tokens: in them.
        copies: contexts copied from another group in place of a prefill.
        proposed: drafts that were verified.
        accepted: drafts that became tokens.
    """

    shape: CacheShape
    steps: int = 0
    live_rows: int = 0
    live_context: int = 0
    live_suffix: int = 0
    prefills: int = 0
    prompt_tokens: int = 0
    copies: int = 0
    proposed: int = 0
    accepted: int = 0

    def count_step(self, suffix_len: Sequence[int], context_len: Tensor) -> None:
        """Adds a decode step; `suffix_len` of the rows in use, without what fills them up."""
        self.steps += 1
        self.live_rows += len(suffix_len)
        self.live_context += int(context_len.sum())
        self.live_suffix += sum(suffix_len)

    @property
    def rows(self) -> float:
        """Live rows / rows, mean over the steps; 1 before the first."""
        return self.live_rows / (self.steps * self.shape.rows) if self.steps else 1.0

    @property
    def slots(self) -> float:
        """Live slots / slots, of context and suffix together, mean over the steps."""
        there = self.steps * (self.shape.context_slots + self.shape.suffix_slots)
        return (self.live_context + self.live_suffix) / there if there else 1.0

    @property
    def prefill(self) -> float:
        """Prompt tokens / tokens computed by the prefills."""
        there = self.prefills * self.shape.S_ctx
        return self.prompt_tokens / there if there else 1.0
