"""What is asked of a generator and what comes back: a request, its samples, and a token of one.

Nothing here knows of rows, groups or models in motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.causal_lm import CacheShape, ModelConfig
from models.generation import randomness
from models.generation.sampling import Sampling
from nki_kernels.errors import InputError

FinishReason = Literal["eos", "stop", "length", "cancelled"]


@dataclass
class Sample:
    """One answer.

    Attributes:
        index: which sample it is.
        tokens: drawn, the end-of-sequence token and those of a stop string included.
        logprobs: of each token under the model's own distribution (see `sampling.choose`).
        finish: "eos"; "stop" for a stop string; "length" when max_new_tokens came first;
            "cancelled"; or None while it goes on.
        text: of the tokens, cut before the first stop string; None until it has finished, and
            where the generator has no way to turn tokens into text.
        drafts: of each decode step of a generator that speculates: drafts that were verified, and
            how many of them became tokens; the model draws one more itself.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    text: str | None = None
    drafts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens; NaN where it has none."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan


@dataclass(frozen=True)
class Token:
    """A token as it is drawn, for the callback of its request.

    Attributes:
        sample: index of the sample it continues.
        position: how many tokens of the sample came before.
        token: its id.
        logprob: see `Sample`.
        finish: why the sample ends with it, or None.
    """

    sample: int
    position: int
    token: int
    logprob: float
    finish: FinishReason | None


@dataclass(frozen=True)
class Request:
    """A prompt and how to answer it.

    Attributes:
        prompt: its tokens.
        samples: how many answers (n of other APIs).
        max_new_tokens: at which an answer is cut.
        sampling: how tokens are drawn.
        seed: one, or one a sample; see `randomness.streams`.
        stop: an answer ends with the token that completes one of these in its text.
        groups: the most groups of the cache that it may hold at once. With 1 the prompt is stored
            once and samples beyond the rows of a group take turns; None takes what is free.
        on_token: called with each token as it is drawn.
    """

    prompt: Sequence[int]
    samples: int = 1
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | Sequence[int] = 0
    stop: Sequence[str] = ()
    groups: int | None = None
    on_token: Callable[[Token], None] | None = None


class Answers:
    """The answers to a request, as they grow; made by `Generator.submit`."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt = tuple(request.prompt)
        self.samples = [Sample(index) for index in range(request.samples)]
        self.streams = randomness.streams(request.seed, request.samples)

    @property
    def done(self) -> bool:
        """Whether every sample has finished."""
        return all(sample.finish is not None for sample in self.samples)


def check_request(
    config: ModelConfig,
    prompt: Sequence[int],
    samples: int,
    max_new_tokens: int,
    seed: int | Sequence[int] = 0,
) -> None:
    """Refuses, before anything is allocated, what a model cannot answer.

    Raises:
        InputError: an empty or too long prompt, a token outside the vocabulary, n < 1, a seed that
            is none.
    """
    if samples < 1:
        raise InputError(f"samples (n) is {samples}; it must be 1 or more")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
    if not prompt:
        raise InputError("the prompt is empty; it must have at least one token")
    if len(prompt) + max_new_tokens > config.max_position:
        raise InputError(
            f"the prompt has {len(prompt)} tokens and {max_new_tokens} new ones are asked for, but "
            f"this model takes {config.max_position} together (max_position_embeddings)"
        )
    unknown = [token for token in prompt if not 0 <= token < config.vocab_size]
    if unknown:
        raise InputError(
            f"the prompt has token {unknown[0]}, but the model's vocabulary ends at "
            f"{config.vocab_size - 1}; the tokenizer belongs to another model"
        )
    randomness.streams(seed, samples)


def check_fit(
    shape: CacheShape, prompt_tokens: int, max_new_tokens: int, draft_tokens: int = 0
) -> None:
    """Refuses what a cache has no slots for, however long it waited.

    The last token drawn is never read back, so it needs no slot; drafts behind it do.

    Raises:
        InputError: a prompt longer than S_ctx, or answers longer than S_dec + 1 - draft_tokens.
    """
    drafts = f" ({draft_tokens} of them for drafts)" if draft_tokens else ""
    for what, needed, there in (
        ("prompt tokens", prompt_tokens, shape.S_ctx),
        (f"suffix positions{drafts}", max_new_tokens - 1 + draft_tokens, shape.S_dec),
    ):
        if needed > there:
            raise InputError(f"{needed} {what} do not fit: {shape} holds {there}")
