"""What a run of one prompt reports: how it goes, what it gave, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from models.causal_lm import CacheShape
from models.generation import traffic
from models.generation.requests import Sample


@dataclass(frozen=True)
class Timings:
    """Seconds on the host's clock, each ending with the tokens on the host.

    Attributes:
        prefill: the prompt and the first token of every sample.
        decode: all steps after it.
        steps: how many.
        decoded: tokens drawn in them, of samples still going on.
    """

    prefill: float
    decode: float
    steps: int
    decoded: int

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second, first tokens left out; 0 where there was no step."""
        return self.decoded / self.decode if self.steps else 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for the callback.

    Attributes:
        phase: "prefill", before the prompt is read; "decode", after each token of the samples.
        step: tokens drawn so far by the longest samples.
        max_new_tokens: the most there can be.
        unfinished: samples that go on.
        samples: all of them.
    """

    phase: Literal["prefill", "decode"]
    step: int
    max_new_tokens: int
    unfinished: int
    samples: int


@dataclass(frozen=True)
class Generation:
    """The answers to a prompt and what they cost."""

    samples: list[Sample]
    shape: CacheShape
    timings: Timings
    traffic: traffic.Traffic


ProgressCallback = Callable[[Progress], None]
