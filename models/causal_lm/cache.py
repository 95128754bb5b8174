"""Keys and values: the context once per group, the suffix per sample, one way to write them.

    k_ctx [g, d, G*S_ctx]      K of the context, transposed as the attention kernel reads it
    v_ctx [g, G*S_ctx, d]
    k_suf [g, G*r*S_dec, d]    row-major, so that the write of a step is contiguous
    v_suf [g, G*r*S_dec, d]

Group j holds its context in slots [j*S_ctx, (j+1)*S_ctx); sample (j, i) its suffix in rows
[(j*r+i)*S_dec, (j*r+i+1)*S_dec). Slots beyond the live length are never read, only multiplied by
exact zeros, so they must be finite.

With `kv_dtype` "fp8" the buffers hold keys and values divided by a factor of their head, `k_scale`
and `v_scale` [g], as float8_e4m3fn within ±240 (see `quantisation`).

Two worlds write them, through the same two functions below:

* On a Neuron device, PyTorch/XLA and ModelBuilder alias registered, non-persistent buffers that
  a graph rebinds out of place, and take the set of states from the first graph, so every graph
  rebinds all four (AWS Neuron SDK, ModelBuilder v2 API reference, "In-place buffer updates").
* Elsewhere writes are in place: a step moves its own tokens and not the whole cache. torch.export
  and torch.compile turn such writes into the functional form themselves. (Rebinding would be lost
  there: torch.export captures an assigned buffer of the root module only, silently.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.causal_lm.config import KV
from models.causal_lm.quantisation import FP8, encode
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class CacheShape:
    """The shape of a decode graph: G groups, r samples a group, slots of context and of suffix.

    (G=1, r=b) is bifurcated decoding of one prompt; (G=b, r=1) is ordinary decoding, where every
    sample has its own copy of the prompt.
    """

    G: int
    r: int
    S_ctx: int
    S_dec: int

    def __post_init__(self) -> None:
        """Refuses empty shapes."""
        for name in ("G", "r", "S_ctx", "S_dec"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; a cache needs at least 1")

    @property
    def rows(self) -> int:
        """Samples that fit."""
        return self.G * self.r

    @property
    def context_slots(self) -> int:
        """Context positions stored, G*S_ctx."""
        return self.G * self.S_ctx

    @property
    def suffix_slots(self) -> int:
        """Suffix positions stored, G*r*S_dec."""
        return self.G * self.r * self.S_dec


class KVCache(nn.Module):
    """The keys and values of one layer; empty until `allocate`.

    Args:
        kv_dtype: "model", or "fp8".
        g: key/value heads held here.
        device: where the factors of the heads are.
    """

    k_ctx: Tensor
    v_ctx: Tensor
    k_suf: Tensor
    v_suf: Tensor
    k_scale: Tensor
    v_scale: Tensor
    names = ("k_ctx", "v_ctx", "k_suf", "v_suf")

    def __init__(self, kv_dtype: KV, g: int, device: torch.device) -> None:
        super().__init__()
        self.fp8 = kv_dtype == "fp8"
        self.context_slots = self.suffix_slots = 0  # in use, of those that there are
        for name in self.names:
            self.register_buffer(name, None, persistent=False)
        for name in ("k_scale", "v_scale"):
            one = (
                nn.Parameter(torch.ones(g, device=device), requires_grad=False)
                if self.fp8
                else None
            )
            self.register_parameter(name, one)

    def allocate(
        self, shape: CacheShape, g: int, d: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Makes the four buffers, zeroed; whatever was there before is released first."""
        for name in self.names:
            setattr(self, name, None)
        dtype = FP8 if self.fp8 else dtype
        m_c, m_d = shape.context_slots, shape.suffix_slots
        self.k_ctx = torch.zeros(g, d, m_c, dtype=dtype, device=device)
        self.v_ctx = torch.zeros(g, m_c, d, dtype=dtype, device=device)
        self.k_suf = torch.zeros(g, m_d, d, dtype=dtype, device=device)
        self.v_suf = torch.zeros(g, m_d, d, dtype=dtype, device=device)
        self.context_slots, self.suffix_slots = m_c, m_d

    def use(self, shape: CacheShape) -> None:
        """Works in the first slots of the buffers that there are, as in a cache of `shape`."""
        self.context_slots, self.suffix_slots = shape.context_slots, shape.suffix_slots

    def write_context(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Stores `k` [g, d, S] and `v` [g, S, d] in context slots `slots` i64[S]."""
        k, v = self._encode(k, v)
        self.k_ctx = write(self.k_ctx, 2, slots, k)
        self.v_ctx = write(self.v_ctx, 1, slots, v)
        self.k_suf = rebind(self.k_suf)
        self.v_suf = rebind(self.v_suf)

    def write_suffix(self, k: Tensor, v: Tensor, rows: Tensor) -> None:
        """Stores `k` and `v` [g, G*r*n, d] in suffix rows `rows` i64[G*r*n]."""
        k, v = self._encode(k, v)
        self.k_suf = write(self.k_suf, 1, rows, k)
        self.v_suf = write(self.v_suf, 1, rows, v)
        self.k_ctx = rebind(self.k_ctx)
        self.v_ctx = rebind(self.v_ctx)

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k_ctx, v_ctx, k_suf and v_suf as attention takes them."""
        return (
            first(self.k_ctx, 2, self.context_slots),
            first(self.v_ctx, 1, self.context_slots),
            first(self.k_suf, 1, self.suffix_slots),
            first(self.v_suf, 1, self.suffix_slots),
        )

    def factors(self) -> dict[str, Any]:
        """The factors of what is stored in fp8, as attention's options; else none."""
        return {"k_scale": self.k_scale, "v_scale": self.v_scale} if self.fp8 else {}

    def _encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if not self.fp8:
            return k, v
        k_scale, v_scale = self.k_scale.view(-1, 1, 1), self.v_scale.view(-1, 1, 1)
        return encode(k, k_scale, FP8), encode(v, v_scale, FP8)

    def copy_context(self, S_ctx: int, source: int, targets: Sequence[int]) -> None:
        """Copies the context of group `source` into the slots of groups `targets`."""
        start = source * S_ctx
        k, v = self.k_ctx[:, :, start : start + S_ctx], self.v_ctx[:, start : start + S_ctx]
        for target in targets:
            start = target * S_ctx
            self.k_ctx[:, :, start : start + S_ctx] = k
            self.v_ctx[:, start : start + S_ctx] = v

    def nbytes(self) -> int:
        """Bytes of the four buffers."""
        return sum(getattr(self, name).nbytes for name in self.names)


def first(buffer: Tensor, dim: int, count: int) -> Tensor:
    """The first `count` slots of a buffer, dense; the buffer itself where it has no more."""
    if buffer.shape[dim] == count:
        return buffer
    return buffer.narrow(dim, 0, count).contiguous()


def write(buffer: Tensor, dim: int, at: Tensor, new: Tensor) -> Tensor:
    """`buffer` with `new` at the indices `at` i64 of dimension `dim`; in place where it may be."""
    if as_bytes(buffer):
        return write(buffer.view(torch.uint8), dim, at, new.view(torch.uint8)).view(FP8)
    if out_of_place(buffer):
        return torch.index_copy(buffer, dim, at, new)
    return buffer.index_copy_(dim, at, new)


def rebind(buffer: Tensor) -> Tensor:
    """`buffer` as it is; in a captured graph, as a state that the graph writes.

    The first element of each head is written with itself: that costs g elements, whatever the
    layout, needs no free slot, and changes nothing.
    """
    # Dynamo, behind torch.compile, says that it exports, too; what it captures needs no such write.
    exported = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
    if not (out_of_place(buffer) or exported):
        return buffer
    first = torch.zeros(1, dtype=torch.int64, device=buffer.device)
    heads = buffer.flatten(1)  # [g, elements], the same memory
    heads = heads.view(torch.uint8) if as_bytes(buffer) else heads
    written = write(heads, 1, first, heads.index_select(1, first))
    written = written.view(FP8) if as_bytes(buffer) else written
    return written.view_as(buffer) if out_of_place(buffer) else buffer


def as_bytes(buffer: Tensor) -> bool:
    """Whether it is written as bytes: torch does not move every 8-bit float on every device.

    XLA does; but there a view of another dtype, even of the same one, is no operation: it would be
    run on the host, in the middle of the trace, and the state behind it would be a constant.
    """
    return buffer.dtype == FP8 and buffer.device.type != "xla"


def out_of_place(buffer: Tensor) -> bool:
    """Whether writes must make a new tensor."""
    return buffer.device.type == "xla"
