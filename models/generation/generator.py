"""Many prompts, many answers each, over one cache: continuous batching of a decode graph.

The generator works on a cache shape (G, r, S_ctx, S_dec) and on a model called with tensors alone,
so it does not know whether a step is eager code or a compiled graph. A prompt sits in a group and
its samples in the group's rows; a sample that ends gives its row to the next one at once. A prompt
that takes several groups is prefilled once and copied: with G = b and r = 1 that is ordinary
decoding, with G = 1 and r = b bifurcated decoding, and nothing else differs.

Which row a sample sits in, and beside whom, never changes its tokens (up to what rounding does to
its logits): they depend on the prompt, and on (seed, sample, step).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from models.causal_lm import CacheShape
from models.generation import traffic
from models.generation.drafts import Speculation
from models.generation.inside import Drawn, InGraph, Wanted
from models.generation.network import Network, call
from models.generation.requests import (
    Answers,
    FinishReason,
    Request,
    Token,
    check_fit,
    check_request,
)
from models.generation.results import Generation, Progress, ProgressCallback, Timings
from models.generation.sampling import Sampling, choose_each
from models.generation.schedule import admit
from models.generation.slots import Group, Live, Occupancy, Slots
from models.generation.stopping import Detokenise, check_stop, final_text, finish_reason
from nki_kernels.errors import InputError


class Generator:
    """Draws answers with a model over a cache of one shape.

    `submit` requests at any time and call `step` while it returns True; or `run_all` of a list; or
    `run` one prompt. Requests begin in the order in which they were submitted.

    Everything is kept per sample and per group and no step is remembered elsewhere: a step that an
    exception ends halfway (a keyboard interrupt, a callback that raises) can be taken again, and
    the tokens are the same.

    With `speculation`, a step also verifies drafts: row by row, as many tokens as the model itself
    draws, one after the other, with the random numbers of their positions. So drafts save steps and
    change no token. Each row goes on by its own number of tokens, and keys of drafts that were not
    taken are overwritten.

    Args:
        model: the network; its cache is allocated here and must not be shared with another
            generator.
        shape: of the cache. Rows that are not needed stay free.
        eos_token_ids: tokens that end an answer.
        detokenise: from tokens to text; needed for stop strings and `Sample.text`.
        speculation: where drafts come from, and how many.
    """

    def __init__(
        self,
        model: Network,
        shape: CacheShape,
        eos_token_ids: Sequence[int] = (),
        detokenise: Detokenise | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.model = model
        self.shape = shape
        self.eos = frozenset(eos_token_ids)
        self.detokenise = detokenise
        self.speculation = speculation
        self._allocate()  # first: what else depends on the shape is smaller
        self.slots = Slots(shape)
        self.occupancy = Occupancy(shape)
        self.inside = InGraph(model)
        self._queue: list[Answers] = []  # requests with samples that go on, oldest first

    def _allocate(self) -> None:
        """Makes the caches.

        Raises:
            InputError: there is no memory for them.
        """
        try:
            self.model.allocate(self.shape)
            if self.speculation is not None:
                self.speculation.drafter.allocate(self.shape)
        except RuntimeError as error:  # what torch raises, on any device
            if "memory" not in str(error):
                raise
            size = traffic.allocated_bytes(
                self.model.config, self.model.kv_dtype.itemsize, self.shape
            )
            raise InputError(
                f"no memory for the cache: {self.shape} takes {size / 2**30:.1f} GiB of keys and "
                "values; ask for fewer samples or tokens"
            ) from error

    def check(self, request: Request) -> None:
        """Refuses a request that could never be answered.

        Raises:
            InputError: see `check_request`, `check_stop` and `check_fit`; or `groups` below 1.
        """
        config = self.model.config
        check_request(config, request.prompt, request.samples, request.max_new_tokens, request.seed)
        if request.groups is not None and request.groups < 1:
            raise InputError(f"groups is {request.groups}; a request needs at least 1")
        check_stop(request.stop, self.detokenise, config.vocab_size)
        drafts = self.speculation.draft_tokens if self.speculation else 0
        check_fit(self.shape, len(request.prompt), request.max_new_tokens, drafts)

    def submit(self, request: Request) -> Answers:
        """Puts a request at the end of the queue.

        Returns:
            its answers, which grow as steps are taken.

        Raises:
            InputError: see `check`.
        """
        self.check(request)
        answers = Answers(request)
        self._queue.append(answers)
        return answers

    def cancel(self, answers: Answers) -> None:
        """Ends the samples of a request that go on, with what they have, and frees their rows."""
        for sample in answers.samples:
            sample.finish = sample.finish or "cancelled"
        for row, _, live in list(self.slots.live()):
            if live.answers is answers:
                self._finish_text(live)
                self.slots.release(row)
        self._drop_done()

    @torch.no_grad()
    def step(self) -> bool:
        """Seats what fits, then draws a token for every sample in a row; whether work is left.

        A sample that begins in this step gets two tokens: the first from its prompt's logits.
        """
        self._admit()
        self._decode()
        return bool(self._queue)

    def run_all(self, requests: Sequence[Request]) -> list[Answers]:
        """Answers to `requests`, in their order; none of them is begun if one is refused.

        Raises:
            InputError: see `check`.
        """
        for request in requests:
            self.check(request)
        submitted: list[Answers] = []
        try:
            submitted += [self.submit(request) for request in requests]
            while not all(answers.done for answers in submitted):
                self.step()
        finally:
            for answers in submitted:  # nothing is left behind by an interrupt
                if not answers.done:
                    self.cancel(answers)
        return submitted

    @torch.no_grad()
    def run(
        self,
        prompt: Sequence[int],
        *,
        samples: int,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        progress: ProgressCallback | None = None,
    ) -> Generation:
        """Draws `samples` answers to one prompt together, and measures it.

        Args:
            prompt: its tokens.
            samples: b.
            max_new_tokens: at which an answer is cut.
            sampling: how tokens are drawn; by default at temperature 1 with nothing cut off.
            seed: one, or one a sample; see `randomness.streams`.
            stop: strings that end an answer.
            progress: called with a `Progress` as the work goes on.

        Raises:
            InputError: a request that the model or the cache shape cannot hold, or other requests
                that are not done.
        """
        if self._queue:
            raise InputError(
                f"{len(self._queue)} submitted requests are not done; run measures one prompt alone"
            )
        sampling = sampling or Sampling()
        request = Request(prompt, samples, max_new_tokens, sampling, seed, stop)
        self.check(request)
        if samples > self.shape.rows:
            raise InputError(f"{samples} samples do not fit: {self.shape} holds {self.shape.rows}")

        def report(phase: Literal["prefill", "decode"], step: int) -> None:
            if progress is not None:
                unfinished = sum(sample.finish is None for sample in answers.samples)
                progress(Progress(phase, step, max_new_tokens, unfinished, samples))

        answers = self.submit(request)
        try:
            report("prefill", 0)
            start = time.perf_counter()
            self._admit()
            prefilled = time.perf_counter()
            report("decode", 1)
            step = 1
            while not answers.done:
                self._decode()
                step += 1
                report("decode", max(len(sample.tokens) for sample in answers.samples))
            ended = time.perf_counter()
        finally:
            self.cancel(answers)

        lengths = [len(sample.tokens) for sample in answers.samples]
        timings = Timings(prefilled - start, ended - prefilled, step - 1, sum(lengths) - samples)
        config, itemsize = self.model.config, self.model.kv_dtype.itemsize
        moved = traffic.measure(
            config,
            itemsize,
            len(prompt),
            lengths,
            self.shape.S_ctx,
            self.shape.S_dec,
            [sample.drafts for sample in answers.samples],
        )
        return Generation(answers.samples, self.shape, timings, moved)

    def _admit(self) -> None:
        """Fills rows, and draws first tokens, until nobody waits who could begin."""
        self._settle()
        while True:
            seated = admit(self.slots, self._queue, self._load)
            starting = [(g, live) for _, g, live in self.slots.live() if not live.sample.tokens]
            if starting:
                logits = torch.stack([g.logits for g, _ in starting if g.logits is not None])
                wanted = {i: self._wanted(live, ()) for i, (_, live) in enumerate(starting)}
                drawn = self._draw_all(logits, wanted)  # [starting, 1, vocab]
                for i, (_, live) in enumerate(starting):
                    self._take(live, drawn[i], ())
                self._settle()  # a first token may be the last
            if not seated:
                return

    def _load(self, group: Group, prompt: tuple[int, ...]) -> None:
        """Brings a prompt into an idle group: from another that holds it, or by a prefill."""
        group.prompt = group.logits = None  # until all of it is there
        source = next((each for each in self.slots.groups if each.prompt == prompt), None)
        if source is not None:
            self.model.copy_context(source.index, [group.index])
            group.logits = source.logits
            self.occupancy.copies += 1
        else:
            tokens, context_len = self.slots.prefill(prompt), self.slots.context_len()
            context_len[group.index] = len(prompt)
            group.logits = self._call(tokens, context_len, self.slots.no_suffix(), group.index)
            self.occupancy.prefills += 1
            self.occupancy.prompt_tokens += len(prompt)
        group.prompt = prompt

    def _decode(self) -> None:
        """A token for every row in use, and those of its drafts that the model draws too."""
        live = {row: live for row, _, live in self.slots.live()}
        if not live:
            return
        drafts = self._propose(live)
        context_len = self.slots.context_len()
        if drafts and self.speculation is not None:
            fed = {
                row: [each.sample.tokens[-1], *drafts.get(row, ())] for row, each in live.items()
            }
            tokens, suffix_len = self.slots.feed(
                {row: (len(live[row].sample.tokens) - 1, each) for row, each in fed.items()},
                self.speculation.draft_tokens + 1,
            )
        else:
            tokens, suffix_len = self.slots.step()
        wanted = {row: self._wanted(each, drafts.get(row, ())) for row, each in live.items()}
        drawn = self.inside.draw(tokens, context_len, suffix_len, wanted)
        if drawn is None:
            logits = self._call(tokens, context_len, suffix_len, 0)  # [G, r, n, vocab]
            drawn = self._draw_all(logits.flatten(0, 1), wanted)
        lengths = [len(each.sample.tokens) + len(drafts.get(row, ())) for row, each in live.items()]
        self.occupancy.count_step(lengths, context_len)
        for row, each in live.items():
            self._take(each, drawn[row], drafts.get(row, ()))
        self._settle()

    def _propose(self, live: Mapping[int, Live]) -> dict[int, list[int]]:
        """Drafts by row, none where the last token is about to be drawn."""
        if self.speculation is None:
            return {}
        most = {}
        for row, each in live.items():
            left = each.answers.request.max_new_tokens - len(each.sample.tokens) - 1
            most[row] = min(left, self.speculation.draft_tokens)
        return self.speculation.drafter.propose(self.slots, most)

    def _call(self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: int) -> Tensor:
        return call(self.model, tokens, context_len, suffix_len, group)

    @staticmethod
    def _wanted(live: Live, draft: Sequence[int]) -> Wanted:
        """A sample's next token, and one behind each draft."""
        length = len(live.sample.tokens)
        u = live.u[length : length + 1 + len(draft)].tolist()
        return Wanted(u, live.answers.request.sampling)

    def _draw_all(self, logits: Tensor, wanted: Mapping[int, Wanted]) -> Drawn:
        """Draws from `logits` fp32 [rows, n, vocab] on the host."""
        at = [row * logits.shape[1] + t for row, each in wanted.items() for t in range(len(each.u))]
        logits = logits.flatten(0, 1)
        if len(at) < len(logits):
            logits = logits[torch.tensor(at, device=logits.device)]
        tokens, logprobs = choose_each(
            logits,
            [number for each in wanted.values() for number in each.u],
            [each.sampling for each in wanted.values() for _ in each.u],
        )
        drawn = iter(zip(tokens, logprobs, strict=True))
        return {row: list(itertools.islice(drawn, len(each.u))) for row, each in wanted.items()}

    def _take(self, live: Live, drawn: Sequence[tuple[int, float]], draft: Sequence[int]) -> None:
        """Adds to a sample the tokens drawn for it up to the first that its draft did not foresee.

        Those behind it were computed after other tokens than the sample has.
        """
        sample, accepted = live.sample, 0
        for t, (token, logprob) in enumerate(drawn):
            if not math.isfinite(logprob):
                raise InputError(
                    f"the model's logits are not finite at token {len(sample.tokens)} of sample "
                    f"{sample.index}; its weights are damaged or {self.model.dtype} is too narrow"
                )
            # The token last: it is what says how far the sample has come.
            sample.logprobs[len(sample.tokens) :] = [logprob]
            sample.tokens.append(token)
            if t == len(draft) or token != draft[t]:
                break
            accepted += 1
            sample.finish = self._finish_reason(live)
            if sample.finish is not None:
                break
        if self.speculation is not None and len(sample.tokens) > 1:
            sample.drafts.append((len(draft), accepted))
            self.occupancy.proposed += len(draft)
            self.occupancy.accepted += accepted

    def _finish_reason(self, live: Live) -> FinishReason | None:
        request = live.answers.request
        return finish_reason(
            live.sample.tokens, request.max_new_tokens, self.eos, request.stop, self.detokenise
        )

    def _settle(self) -> None:
        """Ends samples that are complete, hands tokens on, and frees rows.

        What was done already is not done twice, so an interrupted call is made good by the next.
        """
        for row, group, live in list(self.slots.live()):
            sample = live.sample
            if group.rows[row % self.shape.r] is not live:
                continue  # a callback has cancelled it just now
            if not sample.tokens and sample.finish is None:
                continue  # about to begin
            if sample.finish is None:
                sample.finish = self._finish_reason(live)
            if sample.finish is not None:
                self._finish_text(live)
            while live.delivered < len(sample.tokens):
                self._deliver(live)
            if sample.finish is not None:
                self.slots.release(row)
        self._drop_done()

    def _deliver(self, live: Live) -> None:
        """Hands the next token to the callback: once, even if that raises."""
        sample, position = live.sample, live.delivered
        live.delivered += 1
        if live.answers.request.on_token is not None:
            last = live.delivered == len(sample.tokens)
            live.answers.request.on_token(
                Token(
                    sample.index,
                    position,
                    sample.tokens[position],
                    sample.logprobs[position],
                    sample.finish if last else None,
                )
            )

    def _finish_text(self, live: Live) -> None:
        if self.detokenise is not None:
            sample = live.sample
            sample.text = final_text(sample.tokens, live.answers.request.stop, self.detokenise)

    def _drop_done(self) -> None:
        """Takes finished requests off the queue.

        When nothing is left the contexts are forgotten, so that a model whose weights are changed
        between requests never meets keys of the former ones.
        """
        self._queue = [answers for answers in self._queue if not answers.done]
        if not self._queue:
            self.slots.forget()
            if self.speculation is not None:
                self.speculation.drafter.forget()
