"""Bifurcated attention on NVIDIA GPUs: the algebra of the reference as three Triton kernels.

It keeps the promise on the hardware that one can measure today: a context's keys and values are
read once for all samples of its group, only live slots are read, logits never reach memory.

    _context   one program a (group, kv head, block of rows, slice of the context)
    _suffix    one program a (sample, kv head)
    _join      merges the slices and the suffix: the states of `attention_state`

The split of the keys over programs is that of Flash-Decoding (pytorch.org/blog/flash-decoding);
the joint softmax is equations 3 and 4 of arXiv 2403.08845.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from nki_kernels.attention_state.reference import MASK
from nki_kernels.attention_state.validate import FP8
from nki_kernels.bifurcated_attention.validate import Shape, validate

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PROGRAMS = 264
"""Programs of the context kernel aimed at: two for each of an H200's 132 multiprocessors."""

KEYS, WIDE_KEYS = 64, 32
"""Keys a program takes at a time, and with heads above 128: shared memory holds them twice."""

_LOG2_E = math.log2(math.e)
_LOW = tl.constexpr(-1.0e30)  # above any masked logit, below any real one


def bifurcated_attention(
    q: torch.Tensor,
    k_ctx: torch.Tensor,
    v_ctx: torch.Tensor,
    k_suf: torch.Tensor,
    v_suf: torch.Tensor,
    context_len: torch.Tensor,
    suffix_len: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    query_position: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend r samples of G prompts; see `nki_kernels.torch_ops.bifurcated_attention` for
    arguments.

    Products take the tensors' dtype and accumulate in fp32 (fp32 tensors: without TF32). Nothing
    here waits for the GPU, so the call can be captured in a CUDA graph; lengths are read there.
    Caches in fp8 are widened to q's dtype first.
    """
    shape = validate(
        q,
        k_ctx,
        v_ctx,
        k_suf,
        v_suf,
        context_len,
        suffix_len,
        scale=scale,
        window=window,
        softcap=softcap,
        query_position=query_position,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    if k_ctx.dtype == FP8:
        k_ctx, k_suf = (_widened(x, k_scale, q.dtype) for x in (k_ctx, k_suf))
        v_ctx, v_suf = (_widened(x, v_scale, q.dtype) for x in (v_ctx, v_suf))
    q, k_ctx, v_ctx, k_suf, v_suf, context_len, suffix_len = (
        x.contiguous() for x in (q, k_ctx, v_ctx, k_suf, v_suf, context_len, suffix_len)
    )
    rows = shape.r * shape.n * shape.p
    wide = shape.d > 128
    keys = WIDE_KEYS if wide else KEYS
    block = min(64 if wide else 128, max(16, triton.next_power_of_2(rows)))
    blocks = triton.cdiv(rows, block)
    slices = _slices(shape, blocks)
    chunk = triton.cdiv(triton.cdiv(shape.S_ctx, slices), keys) * keys

    # The states of all parts, the suffix last: fp32 [parts, G, r, n, h, ...].
    parts = slices + 1
    o_part = torch.empty((parts, *q.shape), dtype=torch.float32, device=q.device)
    m_part = torch.empty((parts, *q.shape[:-1]), dtype=torch.float32, device=q.device)
    l_part = torch.empty_like(m_part)

    constants = {
        "n": shape.n,
        "p": shape.p,
        "g": shape.g,
        "d": shape.d,
        "D": max(16, triton.next_power_of_2(shape.d)),  # the least a product takes
        "KEYS": keys,
        "WINDOW": window or 0,
        "SOFTCAP": softcap or 0.0,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
    _context[(blocks, slices, shape.G * shape.g)](
        q,
        k_ctx,
        v_ctx,
        context_len,
        suffix_len,
        suffix_len if query_position is None else query_position.contiguous(),
        o_part,
        m_part,
        l_part,
        o_part.stride(0),
        m_part.stride(0),
        scale * _LOG2_E,
        shape.G,
        shape.r,
        shape.S_ctx,
        chunk,
        POSITION=query_position is not None,
        BLOCK=block,
        num_warps=8 if block >= 64 else 4,
        num_stages=2 if wide else 3,
        **constants,
    )
    _suffix[(shape.G * shape.r, shape.g)](
        q,
        k_suf,
        v_suf,
        suffix_len,
        o_part[slices],
        m_part[slices],
        l_part[slices],
        scale * _LOG2_E,
        shape.G,
        shape.r,
        shape.S_dec,
        BLOCK=max(16, triton.next_power_of_2(shape.n * shape.p)),
        num_warps=4,
        num_stages=2,
        **constants,
    )
    o = torch.empty_like(q)
    peak, total = torch.empty_like(m_part[0]), torch.empty_like(l_part[0])
    heads = peak.numel()
    _join[(heads,)](
        o_part,
        m_part,
        l_part,
        o,
        peak,
        total,
        total if sinks is None else sinks.contiguous(),
        heads,
        parts,
        shape.h,
        mask=MASK,
        d=shape.d,
        D=triton.next_power_of_2(shape.d),
        PARTS=triton.next_power_of_2(parts),
        SINKS=sinks is not None,
        num_warps=1,
    )
    return (o, peak, total) if return_state else o


def _widened(cache: torch.Tensor, factors: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    wide = cache.to(dtype)
    return wide if factors is None else wide * factors.to(dtype).view(-1, 1, 1)


def _slices(shape: Shape, blocks: int) -> int:
    """Into how many slices the context is cut: enough programs to fill the GPU, none too short."""
    wanted = triton.cdiv(PROGRAMS, shape.G * shape.g * blocks)
    longest = max(1, shape.S_ctx // (4 * KEYS))
    return min(wanted, longest)


@triton.jit
def _absorb(
    q, k, v, valid, peak, total, o, scale, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """One block of keys more: logits in units of log2(e), maximum, sum, weighted values."""
    s = tl.dot(q, k, input_precision=PRECISION) * scale
    if SOFTCAP > 0.0:
        # c·tanh(s / c), in the same units; tanh through the exponential of a negative number.
        cap = SOFTCAP * 1.4426950408889634
        e = tl.exp2(tl.abs(s) * (-2.0 / SOFTCAP))
        bent = cap * (1.0 - e) / (1.0 + e)
        s = tl.where(s < 0.0, -bent, bent)
    s = tl.where(valid, s, _LOW)
    top = tl.maximum(peak, tl.max(s, 1))
    weights = tl.where(valid, tl.exp2(s - top[:, None]), 0.0)
    faded = tl.exp2(peak - top)
    total = total * faded + tl.sum(weights, 1)
    o = tl.dot(weights.to(v.dtype), v, o * faded[:, None], input_precision=PRECISION)
    return top, total, o


@triton.jit
def _context(
    q_ptr, k_ptr, v_ptr, context_len, suffix_len, position, o_part, m_part, l_part, o_stride,
    m_stride, scale, G, r, S_ctx, chunk,
    n: tl.constexpr, p: tl.constexpr, g: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    POSITION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The r·n·p rows of a (group, kv head) against one slice of its context."""
    part = tl.program_id(1).to(tl.int64)
    group, head = tl.program_id(2) // g, tl.program_id(2) % g
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live_row = rows < r * n * p
    token = group * r * n + rows // p  # of [G·r·n]
    at = (token * (g * p) + head * p + rows % p).to(tl.int64)  # of [G·r·n·h]
    column = tl.arange(0, D)
    live_column = column < d
    element = at[:, None] * d + column[None, :]
    live = live_row[:, None] & live_column[None, :]
    q = tl.load(q_ptr + element, mask=live, other=0.0)

    length = tl.load(context_len + group)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, length)
    if WINDOW > 0:
        if POSITION:  # of the query
            own = tl.load(position + token // n, mask=live_row, other=0) + 1 - (n - token % n)
        else:
            suffix = tl.load(suffix_len + token // n, mask=live_row, other=0)
            own = length + suffix - (n - token % n)
        seen = own - WINDOW + 1
    k_base = k_ptr + (head.to(tl.int64) * d * G + group) * S_ctx
    v_base = v_ptr + (head.to(tl.int64) * G + group) * S_ctx * d
    peak = tl.full([BLOCK], _LOW, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    o = tl.zeros([BLOCK, D], tl.float32)
    for start in range(first, last, KEYS):
        slot = start + tl.arange(0, KEYS)
        live_slot = slot < last
        # Keys lie along the row: a mask by the buffer's end, not by a length read at run time,
        # leaves the loads 16 bytes wide. What a dead slot holds is masked in the logits.
        k = tl.load(
            k_base + column[:, None].to(tl.int64) * (G * S_ctx) + slot[None, :],
            mask=live_column[:, None] & (slot < S_ctx)[None, :],
            other=0.0,
        )  # [D, KEYS]
        v = tl.load(
            v_base + slot[:, None].to(tl.int64) * d + column[None, :],
            mask=live_slot[:, None] & live_column[None, :],
            other=0.0,
        )  # [KEYS, D]
        valid = live_slot[None, :]
        if WINDOW > 0:
            valid = valid & (slot[None, :] >= seen[:, None])
        peak, total, o = _absorb(q, k, v, valid, peak, total, o, scale, SOFTCAP, PRECISION)
    tl.store(o_part + part * o_stride + element, o, mask=live)
    tl.store(m_part + part * m_stride + at, peak, mask=live_row)
    tl.store(l_part + part * m_stride + at, total, mask=live_row)


@triton.jit
def _suffix(
    q_ptr, k_ptr, v_ptr, suffix_len, o_part, m_part, l_part, scale, G, r, S_dec,
    n: tl.constexpr, p: tl.constexpr, g: tl.constexpr, d: tl.constexpr, D: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The n·p rows of a (sample, kv head) against the sample's own tokens."""
    sample, head = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, BLOCK)
    live_row = rows < n * p
    token = sample * n + rows // p
    at = (token * (g * p) + head * p + rows % p).to(tl.int64)
    column = tl.arange(0, D)
    live_column = column < d
    element = at[:, None] * d + column[None, :]
    live = live_row[:, None] & live_column[None, :]
    q = tl.load(q_ptr + element, mask=live, other=0.0)

    length = tl.load(suffix_len + sample)
    own = length - n + rows // p  # the suffix row of each query token
    base = ((head.to(tl.int64) * G * r) + sample) * S_dec * d
    peak = tl.full([BLOCK], _LOW, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    o = tl.zeros([BLOCK, D], tl.float32)
    for start in range(0, length, KEYS):
        slot = start + tl.arange(0, KEYS)
        inside = base + slot[:, None].to(tl.int64) * d + column[None, :]
        live_key = (slot < length)[:, None] & live_column[None, :]
        k = tl.load(k_ptr + inside, mask=live_key, other=0.0)  # [KEYS, D]
        v = tl.load(v_ptr + inside, mask=live_key, other=0.0)
        valid = slot[None, :] <= own[:, None]
        if WINDOW > 0:
            valid = valid & (slot[None, :] > own[:, None] - WINDOW)
        peak, total, o = _absorb(
            q, tl.trans(k), v, valid, peak, total, o, scale, SOFTCAP, PRECISION
        )
    tl.store(o_part + element, o, mask=live)
    tl.store(m_part + at, peak, mask=live_row)
    tl.store(l_part + at, total, mask=live_row)


@triton.jit
def _join(
    o_part, m_part, l_part, o_ptr, m_ptr, l_ptr, sinks, heads, parts, h, mask,
    d: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Merge the states of all parts of a row, and its sink, and divide.

    No key at all gives (0, MASK, 0), or (0, sink, 1).
    """
    row = tl.program_id(0).to(tl.int64)
    part, column = tl.arange(0, PARTS), tl.arange(0, D)
    live_part, live_column = part < parts, column < d
    state = part.to(tl.int64) * heads + row
    peaks = tl.load(m_part + state, mask=live_part, other=_LOW)
    sums = tl.load(l_part + state, mask=live_part, other=0.0)
    live = live_part[:, None] & live_column[None, :]
    values = tl.load(o_part + state[:, None] * d + column[None, :], mask=live, other=0.0)
    peak = tl.max(peaks, 0)
    if SINKS:
        sink = tl.load(sinks + row % h) * 1.4426950408889634
        peak = tl.maximum(peak, sink)
    weights = tl.exp2(peaks - peak)
    total = tl.sum(sums * weights, 0)
    if SINKS:
        total += tl.exp2(sink - peak)
    o = tl.sum(values * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(o_ptr + row * d + column, o.to(o_ptr.dtype.element_ty), mask=live_column)
    tl.store(m_ptr + row, tl.where(total > 0.0, peak * 0.6931471805599453, mask))
    tl.store(l_ptr + row, total)
