"""Many answers from one prompt: prefill once, then decode all samples together.

The generator works on a cache shape (G, r, S_ctx, S_dec) and on a model called with tensors alone,
so it does not know whether a step is eager code or a compiled graph. Sample s sits in row s: group
s // r, place s % r. A prompt that takes several groups is prefilled once and copied: with G = b and
r = 1 that is ordinary decoding, with G = 1 and r = b bifurcated decoding, and nothing else differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from models.causal_lm import CacheShape, ModelConfig
from models.generation import randomness, traffic
from models.generation.sampling import Sampling, choose
from nki_kernels.errors import InputError

AttentionWay = Literal["auto", "bifurcated", "ordinary"]
FinishReason = Literal["eos", "length"]


class Network(Protocol):
    """What the generator needs of a model; `models.causal_lm.CausalLM` has it."""

    @property
    def config(self) -> ModelConfig:
        """Sizes."""

    @property
    def device(self) -> torch.device:
        """Where inputs go."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the cache."""

    def allocate(self, shape: CacheShape) -> None:
        """Makes the cache."""

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Copies a group's context."""

    def __call__(
        self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: Tensor
    ) -> Tensor:
        """Prefill or decode; see `CausalLM.forward`."""


@dataclass
class Sample:
    """One answer.

    Attributes:
        index: which sample it is.
        tokens: drawn, the end-of-sequence token included where there is one.
        logprobs: of each token under the model's own distribution (see `sampling.choose`).
        finish: "eos", or "length" when max_new_tokens came first, or None while it goes on.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens."""
        return sum(self.logprobs) / len(self.logprobs)


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


def plan_shape(
    prompt_tokens: int, samples: int, max_new_tokens: int, attention: AttentionWay = "auto"
) -> CacheShape:
    """The smallest cache for one prompt.

    "auto" takes bifurcated attention for two samples or more; for one sample the two are the same.
    The last token drawn is never read back, so a suffix needs max_new_tokens - 1 slots.

    Raises:
        InputError: an unknown way, or a size below 1.
    """
    if attention not in ("auto", "bifurcated", "ordinary"):
        raise InputError(f"attention is {attention!r}; it must be auto, bifurcated or ordinary")
    S_dec = max(max_new_tokens - 1, 1)
    if attention == "ordinary":
        return CacheShape(G=samples, r=1, S_ctx=prompt_tokens, S_dec=S_dec)
    return CacheShape(G=1, r=samples, S_ctx=prompt_tokens, S_dec=S_dec)


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


class Generator:
    """Draws answers with a model over a cache of one shape, prompt after prompt.

    Args:
        model: the network; its cache is allocated here and must not be shared with another
            generator.
        shape: of the cache. Rows that a prompt does not use stay free.
        eos_token_ids: tokens that end an answer.
    """

    def __init__(
        self, model: Network, shape: CacheShape, eos_token_ids: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.shape = shape
        self.eos = frozenset(eos_token_ids)
        model.allocate(shape)

    @torch.no_grad()
    def run(
        self,
        prompt: Sequence[int],
        *,
        samples: int,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        progress: ProgressCallback | None = None,
    ) -> Generation:
        """Draws `samples` answers to one prompt.

        Args:
            prompt: its tokens.
            samples: b.
            max_new_tokens: at which an answer is cut.
            sampling: how tokens are drawn; by default at temperature 1 with nothing cut off.
            seed: one, or one a sample; see `randomness.streams`.
            progress: called with a `Progress` as the work goes on.

        Raises:
            InputError: a request that the model or the cache shape cannot hold.
        """
        sampling = sampling or Sampling()
        check_request(self.model.config, prompt, samples, max_new_tokens, seed)
        self._check_fit(len(prompt), samples, max_new_tokens)
        u = self._uniforms(seed, samples, max_new_tokens)  # [max_new_tokens, samples]
        answers = [Sample(index) for index in range(samples)]

        def report(phase: Literal["prefill", "decode"], step: int) -> None:
            if progress is not None:
                unfinished = sum(answer.finish is None for answer in answers)
                progress(Progress(phase, step, max_new_tokens, unfinished, samples))

        report("prefill", 0)
        start = time.perf_counter()
        rows = _Rows(self.shape, samples, len(prompt))
        logits = self._prefill(prompt, rows).expand(samples, -1)
        self._draw(answers, logits, u[0], sampling, max_new_tokens)
        prefilled = time.perf_counter()
        report("decode", 1)
        step = 1
        while any(answer.finish is None for answer in answers):
            rows.advance(answers)
            logits = self._decode(rows)[:samples]
            self._draw(answers, logits, u[step], sampling, max_new_tokens)
            step += 1
            report("decode", step)
        ended = time.perf_counter()

        lengths = [len(answer.tokens) for answer in answers]
        timings = Timings(prefilled - start, ended - prefilled, step - 1, sum(lengths) - samples)
        config, itemsize = self.model.config, self.model.dtype.itemsize
        moved = traffic.measure(
            config, itemsize, len(prompt), lengths, self.shape.S_ctx, self.shape.S_dec
        )
        return Generation(answers, self.shape, timings, moved)

    def _prefill(self, prompt: Sequence[int], rows: _Rows) -> Tensor:
        """Reads the prompt into every group in use; logits [1, vocab] after its last token."""
        tokens = torch.zeros(1, self.shape.S_ctx, dtype=torch.int32)
        tokens[0, : len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
        logits = self._call(tokens, rows)
        self.model.copy_context(0, range(1, rows.groups))
        return logits

    def _decode(self, rows: _Rows) -> Tensor:
        """One step of all rows: logits [G*r, vocab]."""
        return self._call(rows.tokens, rows).flatten(0, 2)

    def _call(self, tokens: Tensor, rows: _Rows) -> Tensor:
        device = self.model.device
        return self.model(
            tokens.to(device),
            rows.context_len.to(device),
            rows.suffix_len.to(device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )

    def _uniforms(self, seed: int | Sequence[int], samples: int, steps: int) -> Tensor:
        """u of every step and sample, fp32 [steps, samples]."""
        streams = randomness.streams(seed, samples)
        table = np.stack([randomness.uniforms(stream, 0, steps) for stream in streams], axis=1)
        return torch.from_numpy(table).to(self.model.device)

    def _draw(
        self,
        answers: Sequence[Sample],
        logits: Tensor,
        u: Tensor,
        sampling: Sampling,
        max_new_tokens: int,
    ) -> None:
        """Gives every unfinished answer its next token, from `logits` [samples, vocab]."""
        tokens, logprobs = choose(logits, u, sampling)
        drawn = zip(answers, tokens.tolist(), logprobs.tolist(), strict=True)
        for answer, token, logprob in drawn:
            if answer.finish is not None:
                continue
            if not np.isfinite(logprob):
                raise InputError(
                    f"the model's logits are not finite at token {len(answer.tokens)} of sample "
                    f"{answer.index}; its weights are damaged or {self.model.dtype} is too narrow"
                )
            answer.tokens.append(token)
            answer.logprobs.append(logprob)
            if token in self.eos:
                answer.finish = "eos"
            elif len(answer.tokens) == max_new_tokens:
                answer.finish = "length"

    def _check_fit(self, prompt_tokens: int, samples: int, max_new_tokens: int) -> None:
        for what, needed, there in (
            ("samples", samples, self.shape.rows),
            ("prompt tokens", prompt_tokens, self.shape.S_ctx),
            ("suffix positions", max_new_tokens - 1, self.shape.S_dec),
        ):
            if needed > there:
                raise InputError(f"{needed} {what} do not fit: {self.shape} holds {there}")


class _Rows:
    """The inputs of a decode step, on the host."""

    def __init__(self, shape: CacheShape, samples: int, m_c: int) -> None:
        self.samples = samples
        self.groups = -(-samples // shape.r)  # that hold a sample
        self.context_len = torch.zeros(shape.G, dtype=torch.int32)
        self.context_len[: self.groups] = m_c
        self.suffix_len = torch.zeros(shape.G, shape.r, dtype=torch.int32)
        self.tokens = torch.zeros(shape.G, shape.r, 1, dtype=torch.int32)

    def advance(self, answers: Sequence[Sample]) -> None:
        """Feeds the last token of each answer; one that has ended repeats the same step."""
        tokens, lengths = self.tokens.view(-1), self.suffix_len.view(-1)
        tokens[: self.samples] = torch.tensor([answer.tokens[-1] for answer in answers])
        lengths[: self.samples] = torch.tensor([len(answer.tokens) for answer in answers])


def generate(
    model: Network,
    prompt: Sequence[int],
    *,
    samples: int = 1,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    attention: AttentionWay = "auto",
    eos_token_ids: Sequence[int] = (),
    progress: ProgressCallback | None = None,
) -> Generation:
    """Draws answers to one prompt over the smallest cache that holds them.

    See `plan_shape` for `attention` and `Generator.run` for the rest.
    """
    check_request(model.config, prompt, samples, max_new_tokens, seed)
    shape = plan_shape(len(prompt), samples, max_new_tokens, attention)
    return Generator(model, shape, eos_token_ids).run(
        prompt,
        samples=samples,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        progress=progress,
    )
