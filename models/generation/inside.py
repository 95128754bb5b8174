"""Steps whose graph draws the tokens: what goes in and comes out, row by row.

Uniform numbers and lengths go in, tokens and log-probabilities come out: 16 bytes a row and step.
What the device has already is not sent again: the tokens that it drew in the step before, the
lengths of contexts, and the rows' settings while nobody comes or goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.generation.network import Network
from models.generation.sampling import Sampling

Drawn = dict[int, list[tuple[int, float]]]
"""Row -> a token and its log-probability for each of the row's query tokens."""


@dataclass(frozen=True)
class Wanted:
    """What a row is to draw: a token for each of `u`, in the way of `sampling`."""

    u: Sequence[float]
    sampling: Sampling


class InGraph:
    """Decode steps of a model that draw their tokens themselves.

    Attributes:
        sent: bytes from the host to the device in the last step.
        received: bytes from the device to the host.
    """

    def __init__(self, model: Network) -> None:
        self.model = model
        self.sent = self.received = 0
        self._held: dict[str, tuple[Tensor, Tensor]] = {}  # on the host, and on the device

    def forget(self) -> None:
        """Drops what the device holds; its tensors are gone, or another model's."""
        self._held = {}

    def draw(
        self,
        tokens: Tensor,
        context_len: Tensor,
        suffix_len: Tensor,
        wanted: Mapping[int, Wanted],
    ) -> Drawn | None:
        """Draws for the rows in `wanted`; None where a row needs the whole vocabulary in order.

        Args:
            tokens: i32[G, r, n], as `CausalLM.forward`'s.
            context_len: i32[G].
            suffix_len: i32[G, r].
            wanted: row -> what it draws; its tokens beyond that are not asked for.
        """
        counts = [each.sampling.candidates for each in wanted.values()]
        known = [count for count in counts if count is not None]
        step = self.model.sampled(max(known)) if len(known) == len(counts) else None
        if step is None:
            return None
        self.sent = self.received = 0
        G, r, n = tokens.shape
        u = torch.zeros(G * r, n)
        temperature, top_p = torch.zeros(G * r), torch.ones(G * r)
        top_k = torch.ones(G * r, dtype=torch.int32)
        for row, each in wanted.items():
            u[row, : len(each.u)] = torch.tensor(each.u)
            temperature[row] = each.sampling.temperature
            top_k[row] = each.sampling.candidates or 1
            top_p[row] = each.sampling.top_p
        read = (suffix_len > 0).unsqueeze(-1)  # a free row may be fed any token
        inputs = (
            self._send("tokens", tokens, read),
            self._send("context_len", context_len),
            self._send("suffix_len", suffix_len),
            self._send("group", torch.zeros(1, dtype=torch.int32)),
            self._send("u", u.view(G, r, n)),
            self._send("temperature", temperature.view(G, r)),
            self._send("top_k", top_k.view(G, r)),
            self._send("top_p", top_p.view(G, r)),
        )
        self._held.pop("tokens")  # until the step's own are known on both sides
        drawn, logprobs = step(*inputs)
        here, chances = drawn.cpu(), logprobs.cpu()
        self.received = here.nbytes + chances.nbytes
        self._held["tokens"] = (here, drawn)
        rows = zip(here.flatten(0, 1).tolist(), chances.flatten(0, 1).tolist(), strict=True)
        return {
            row: list(zip(ids, logs, strict=True))[: len(wanted[row].u)]
            for row, (ids, logs) in enumerate(rows)
            if row in wanted
        }

    def _send(self, name: str, tensor: Tensor, read: Tensor | None = None) -> Tensor:
        """`tensor` on the device; only what `read` says matters."""
        if name in self._held:
            here, there = self._held[name]
            if here.shape == tensor.shape:
                same = here == tensor
                if bool((same if read is None else same | ~read).all()):
                    return there
        self.sent += tensor.nbytes
        # The device's may be the host's own memory, and the caller's tensor may change.
        there = tensor.clone().to(self.model.device)
        self._held[name] = (tensor.clone(), there)
        return there
