"""Runs a network as a scheduler would, group by group and ragged, and compares every logit with
transformers' own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM
from models.causal_lm.quantisation import FP8
from tests.models.tiny import int32

TOLERANCE = 1e-4  # of the largest logit


@dataclass(frozen=True)
class Script:
    """What to run: two prompts of two samples each, `steps` the new tokens of each decode step.

    Sample (1, 1) starts two tokens late: it sits out the first two steps as a free row.
    """

    prompt_lengths: tuple[int, int] = (11, 6)
    steps: tuple[int, ...] = (1, 1, 1, 2, 2)

    @property
    def tokens(self) -> int:
        """Decoded by the samples that start at once."""
        return sum(self.steps)

    @property
    def shape(self) -> CacheShape:
        """Of the cache: two slots more than live, of either kind."""
        return CacheShape(G=2, r=2, S_ctx=max(self.prompt_lengths) + 2, S_dec=self.tokens + 2)


def poison(model: CausalLM) -> None:
    """Fills every cache slot with large finite numbers of both signs."""
    for cache in model.caches():
        for name in cache.names:
            buffer = getattr(cache, name)
            high = torch.rand(buffer.shape, device=buffer.device) < 0.5
            # torch 2.9 makes NaN of what fp8 does not hold, later ones the largest number.
            most = 240.0 if buffer.dtype == FP8 else 1e4
            buffer.copy_(torch.where(high, most, -most))


def sequences(script: Script, vocab: int, seed: int = 1) -> tuple[list[list[int]], Tensor]:
    """A prompt for each group, and the further tokens of each sample [G, r, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [
        torch.randint(0, vocab, (n,), generator=generator).tolist() for n in script.prompt_lengths
    ]
    return prompts, torch.randint(0, vocab, (2, 2, script.tokens), generator=generator)


def run(
    model: CausalLM, script: Script | None = None, dirty: bool = True
) -> tuple[list[Tensor], Tensor]:
    """Prefills both groups and decodes; returns the prompts' logits, and those of decoding.

    The latter are [G, r, tokens, vocab], NaN where sample (1, 1) did not come.
    """
    script = script or Script()
    vocab = model.config.vocab_size
    prompts, suffix = sequences(script, vocab)
    model.allocate(script.shape)
    if dirty:
        poison(model)
    context_len = int32(script.prompt_lengths)
    nothing = int32([[0, 0], [0, 0]])

    def ask(*inputs: Tensor) -> Tensor:
        answer: Tensor = model(*(x.to(model.device) for x in inputs))
        return answer.cpu()

    first = []
    for group, prompt in enumerate(prompts):
        padded = prompt + [0] * (script.shape.S_ctx - len(prompt) if group == 0 else 0)
        first.append(ask(int32([padded]), context_len, nothing, int32([group]))[0])
    late = torch.tensor([[0, 0], [0, 2]])
    logits = torch.full((2, 2, script.tokens, vocab), torch.nan)
    done = torch.zeros(2, 2, dtype=torch.int64)
    for step, n in enumerate(script.steps):
        free = step < late
        new = torch.stack([suffix[j, i, done[j, i] :][:n] for j in (0, 1) for i in (0, 1)])
        done = torch.where(free, done, done + n)
        step_logits = ask(
            new.view(2, 2, n).to(torch.int32), context_len, done.to(torch.int32), int32([0])
        )
        for j, i in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if not free[j, i]:
                logits[j, i, done[j, i] - n : done[j, i]] = step_logits[j, i]
    return first, logits


def check_against(theirs: Any, ours: CausalLM, script: Script | None = None) -> None:
    """Fails unless every logit of `ours` is that of `theirs`, within TOLERANCE of the largest."""
    script = script or Script()
    prompts, suffix = sequences(script, ours.config.vocab_size)
    first, logits = run(ours, script)
    for j, prompt in enumerate(prompts):
        for i in (0, 1):
            tokens = torch.tensor([prompt + suffix[j, i].tolist()])
            with torch.no_grad():
                expected = theirs(tokens).logits[0]
            largest = float(expected.abs().max())
            assert expected.std() > 0.1 * largest  # a difference would show
            close = partial(torch.testing.assert_close, rtol=0, atol=TOLERANCE * largest)
            close(first[j], expected[len(prompt) - 1])
            known = ~logits[j, i, :, 0].isnan()
            assert known.sum() == script.tokens - (2 if (j, i) == (1, 1) else 0)
            close(logits[j, i, known], expected[len(prompt) :][known])


def check_poison(model: CausalLM, script: Script | None = None) -> None:
    """Fails unless dead slots change no bit."""
    clean, dirty = run(model, script, dirty=False), run(model, script, dirty=True)
    assert torch.equal(clean[0][0], dirty[0][0])
    assert torch.equal(clean[0][1], dirty[0][1])
    assert torch.equal(clean[1].nan_to_num(), dirty[1].nan_to_num())
