"""The shapes that references and kernels are both held to, and an oracle that shares no code with
either. Tests draw from here, and so do the scripts that prove the kernels on other machines.

Buffers are larger than what lives in them, and every dead slot holds ±1e4: finite, so that it must
not change one bit, and large, so that a stray one is seen at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import torch

M_C = (1, 127, 128, 129, 1000, 2048)
M_D = (1, 5, 64, 130)
B = (1, 3, 16, 130)
HEADS = ((8, 8), (8, 2), (4, 1))
D = (64, 80, 128)
DTYPES = ("float32", "bfloat16")
SHORT = {"float32": "fl", "bfloat16": "bf", "float16": "ha"}
BITS = {"bfloat16": 7, "float16": 10}  # of a fraction

POISON = 1.0e4
FP8_LARGEST = 240.0
FP8_STEP = 1 / 40  # six times the deviation of keys and values fits


@dataclass(frozen=True)
class Case:
    """One call of bifurcated attention: G prompts of up to m_c tokens, b samples of up to m_d."""

    m_c: int
    m_d: int
    b: int
    h: int
    g: int
    d: int
    dtype: str = "float32"
    G: int = 1
    n: int = 1
    gap: int = 3  # dead slots behind each buffer's longest content
    logit_scale: float = 1.0
    empty: str = ""  # "context", "suffix", "both": rows of that kind in the first group
    fp8: bool = False  # keys and values in fp8, with factors
    window: int | None = None
    position: bool = False  # queries stand where `query_position` says
    softcap: float | None = None
    sinks: bool = False
    seed: int = 0

    def __str__(self) -> str:
        name = f"c{self.m_c}-d{self.m_d}-b{self.b}-h{self.h}g{self.g}-k{self.d}"
        name += f"-{SHORT[self.dtype]}"
        extra = f"-G{self.G}" * (self.G > 1) + f"-n{self.n}" * (self.n > 1)
        extra += (f"-no-{self.empty}" if self.empty else "") + "-kv8" * self.fp8
        extra += f"-w{self.window}" * (self.window is not None) + "-at" * self.position
        extra += f"-cap{self.softcap}" * (self.softcap is not None) + "-sinks" * self.sinks
        return name + extra + f"-x{self.logit_scale}" * (self.logit_scale != 1)

    @property
    def work(self) -> int:
        """Rough count of kernel instructions, to tell slow cases."""
        p = self.h // self.g
        tiles = -(-self.b * self.n * p // 128)
        context = -(-self.m_c // 512) * tiles
        suffix = -(-self.b * self.m_d // 512)
        return self.G * self.g * 20 * (context + suffix)


@dataclass(frozen=True)
class FlashCase:
    """One call of flash attention: S queries of each of B prompts, behind `start` stored keys."""

    B: int
    S: int
    h: int
    g: int
    d: int
    dtype: str = "float32"
    start: int = 0
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    gap: int = 0  # dead slots behind each prompt
    logit_scale: float = 1.0
    seed: int = 0

    def __str__(self) -> str:
        name = f"B{self.B}-S{self.S}-h{self.h}g{self.g}-k{self.d}-{SHORT[self.dtype]}"
        name += f"-at{self.start}" * (self.start > 0)
        name += f"-w{self.window}" * (self.window is not None)
        name += f"-cap{self.softcap}" * (self.softcap is not None)
        return name + "-sinks" * self.sinks + f"-x{self.logit_scale}" * (self.logit_scale != 1)

    @property
    def work(self) -> int:
        """Rough count of kernel instructions, to tell slow cases."""
        tiles = -(-self.S // 128)
        past = -(-self.start // 512)
        return self.B * self.h * sum(15 * (past + -(-(i + 1) // 4)) for i in range(tiles))


def cross() -> list[Case]:
    """Every combination of the sizes that the kernels must hold on."""
    return [
        Case(m_c, m_d, b, h, g, d, dtype)
        for m_c, m_d, b, (h, g), d, dtype in itertools.product(M_C, M_D, B, HEADS, D, DTYPES)
    ]


def pairwise() -> list[Case]:
    """A small set in which every two sizes of different kinds meet at least once (greedy cover)."""
    axes: Sequence[Sequence[Any]] = (M_C, M_D, B, HEADS, D, DTYPES)
    missing = {
        (i, x, j, y)
        for i, j in itertools.combinations(range(len(axes)), 2)
        for x, y in itertools.product(axes[i], axes[j])
    }
    chosen = []
    rows = list(itertools.product(*axes))
    while missing:
        best = max(rows, key=lambda row: len(_pairs(row) & missing))
        missing -= _pairs(best)
        m_c, m_d, b, (h, g), d, dtype = best
        chosen.append(Case(m_c, m_d, b, h, g, d, dtype))
    return chosen


def _pairs(row: Sequence[Any]) -> set[tuple[Any, ...]]:
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


_SMALL = Case(m_c=37, m_d=9, b=3, h=4, g=2, d=16)
FEATURES = [
    replace(_SMALL, G=3),
    replace(_SMALL, G=2, n=3, dtype="bfloat16"),
    replace(_SMALL, G=4, b=1),  # ordinary decoding: a group a sample
    replace(_SMALL, n=4, b=5, m_d=70),
    replace(_SMALL, gap=0, m_c=128, m_d=32, b=4),  # buffers exactly full
    replace(
        _SMALL, h=6, g=1, n=5, b=7, m_c=600, m_d=90
    ),  # tiles of 4 samples, blocks across samples
    replace(_SMALL, h=40, g=1, n=4, b=2),  # n·p > 128: a sample spans row tiles
    replace(_SMALL, h=130, g=1, n=2, b=2),  # p > 128: a token spans row tiles
    replace(_SMALL, G=2, empty="suffix"),
    replace(_SMALL, G=2, empty="context"),
    replace(_SMALL, G=2, n=2, empty="both"),
    replace(_SMALL, m_c=1, m_d=1, b=1, h=1, g=1, d=1),
    replace(_SMALL, m_c=700, logit_scale=30.0),  # sharp softmax: maxima move between blocks
    replace(_SMALL, m_c=513, b=140, m_d=2, dtype="bfloat16"),  # one key in the last block
]

FLASH = [
    FlashCase(1, 1, 1, 1, 1),
    FlashCase(1, 5, 4, 2, 16),
    FlashCase(2, 127, 4, 2, 64, "bfloat16"),
    FlashCase(1, 128, 4, 4, 80),
    FlashCase(3, 129, 2, 1, 128),
    FlashCase(1, 350, 4, 2, 64),
    FlashCase(1, 513, 3, 1, 64, "bfloat16"),
    FlashCase(1, 640, 2, 2, 128),
    FlashCase(1, 1000, 8, 2, 64, "bfloat16"),
    FlashCase(1, 2300, 2, 1, 80),  # two passes of queries
]

_FLASH_AXES: dict[str, Sequence[Any]] = {
    "B": (1, 2),
    "S": (1, 96, 128, 300),
    "heads": ((2, 2), (6, 2), (4, 1)),
    "d": (16, 64, 128, 200),
    "dtype": ("float32", "bfloat16", "float16"),
    "start": (0, 128, 203),
    "window": (None, 1, 100, 128, 257),
    "softcap": (None, 5.0, 80.0),
    "sinks": (False, True),
    "gap": (0, 5),
    "logit_scale": (1.0, 30.0),
}


def flash_pairwise() -> list[FlashCase]:
    """A small set in which every two settings of different kinds meet at least once."""
    cases = []
    for row in _cover(tuple(_FLASH_AXES.values()), np.random.default_rng(5)):
        settings = dict(zip(_FLASH_AXES, row, strict=True))
        h, g = settings.pop("heads")
        cases.append(FlashCase(h=h, g=g, **settings))
    return cases


def _cover(axes: Sequence[Sequence[Any]], rng: np.random.Generator) -> list[tuple[Any, ...]]:
    """Rows that hold every pair of settings: the best of some random rows around a missing pair."""
    missing = {
        (i, x, j, y)
        for i, j in itertools.combinations(range(len(axes)), 2)
        for x, y in itertools.product(axes[i], axes[j])
    }
    chosen: list[tuple[Any, ...]] = []
    while missing:
        i, x, j, y = min(missing, key=repr)
        best: tuple[Any, ...] = ()
        for _ in range(60):
            row = [axis[int(rng.integers(len(axis)))] for axis in axes]
            row[i], row[j] = x, y
            if not best or len(_pairs(tuple(row)) & missing) > len(_pairs(best) & missing):
                best = tuple(row)
        missing -= _pairs(best)
        chosen.append(best)
    return chosen


_DECODE_AXES: dict[str, Sequence[Any]] = {
    "dtype": ("float32", "bfloat16", "float16"),
    "fp8": (False, True),
    "window": (None, 1, 5, 40, 300),
    "position": (False, True),
    "softcap": (None, 2.0, 50.0),
    "sinks": (False, True),
    "d": (64, 128, 192, 256),
    "n": (1, 3),
    "G": (1, 2),
    "heads": ((4, 4), (4, 1), (6, 2)),
    "m_c": (20, 130, 400),
    "m_d": (1, 9, 40),
    "b": (1, 5, 33),
    "gap": (0, 3),
    "empty": ("", "context", "suffix", "both"),
    "logit_scale": (1.0, 30.0),
}
"""Settings of decode that must hold in every pair, and that random cases are drawn from."""


def decode_pairwise() -> list[Case]:
    """A small set in which every two settings of different kinds meet at least once."""
    rows = _cover(tuple(_DECODE_AXES.values()), np.random.default_rng(7))
    return [_decode_case(dict(zip(_DECODE_AXES, row, strict=True)), seed=0) for row in rows]


def random_case(seed: int) -> Case:
    """A decode call at random: any settings together, sizes that are multiples of nothing."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Any] = {
        name: axis[int(rng.integers(len(axis)))] for name, axis in _DECODE_AXES.items()
    }
    g = int(rng.integers(1, 5))
    drawn |= {
        "heads": (g * int(rng.integers(1, 4)), g),
        "d": int(rng.choice([int(rng.integers(1, 33)), int(rng.integers(33, 257)), 64, 128, 256])),
        "n": int(rng.integers(1, 5)),
        "G": int(rng.integers(1, 4)),
        "m_c": int(rng.choice([1, int(rng.integers(1, 140)), int(rng.integers(140, 700)), 1100])),
        "m_d": int(rng.choice([1, int(rng.integers(1, 20)), int(rng.integers(20, 90))])),
        "b": int(rng.choice([1, int(rng.integers(2, 8)), int(rng.integers(8, 24))])),
        "gap": int(rng.integers(0, 6)),
        "logit_scale": float(rng.choice([1.0, 20.0, 3000.0])),
    }
    if drawn["window"] is not None:
        drawn["window"] = int(rng.integers(1, drawn["m_c"] + drawn["m_d"] + 5))
    return _decode_case(drawn, seed)


def _decode_case(settings: dict[str, Any], seed: int) -> Case:
    h, g = settings.pop("heads")
    settings["position"] = settings["position"] and settings["window"] is not None
    return Case(h=h, g=g, seed=seed, **settings)


def make(case: Case, poison: float = POISON) -> dict[str, Any]:
    """Tensors and scale of a case, by argument name; dead slots hold ±`poison`, at random."""
    rng = np.random.default_rng(case.seed)
    G, r, n, h, g, d = case.G, case.b, case.n, case.h, case.g, case.d
    S_ctx, S_dec = case.m_c + case.gap, max(case.m_d, n) + case.gap
    context_len = rng.integers(1, case.m_c + 1, G)
    context_len[-1] = case.m_c
    suffix_len = rng.integers(min(n, case.m_d), case.m_d + 1, (G, r))
    suffix_len[-1, -1] = case.m_d
    if case.empty in ("context", "both"):
        context_len[0] = 0
    if case.empty in ("suffix", "both"):
        suffix_len[0, ::2] = 0

    signs = np.random.default_rng(case.seed + 1)

    def buffer(live: np.ndarray, slots_first: bool) -> torch.Tensor:
        # live: bool [slots]; K and V of dead slots are poison.
        values = rng.standard_normal((g, len(live), d))
        dead = poison * signs.choice([-1.0, 1.0], values.shape)
        if case.fp8:
            values, dead = values / FP8_STEP, np.clip(dead, -FP8_LARGEST, FP8_LARGEST)
        values = np.where(live[None, :, None], values, dead)
        dtype = "float8_e4m3fn" if case.fp8 else case.dtype
        return _tensor(values if slots_first else values.transpose(0, 2, 1), dtype)

    context_live = (np.arange(S_ctx) < context_len[:, None]).reshape(-1)
    suffix_live = (np.arange(S_dec) < suffix_len[..., None]).reshape(-1)
    arguments: dict[str, Any] = {
        "q": _tensor(rng.standard_normal((G, r, n, h, d)) * case.logit_scale, case.dtype),
        "k_ctx": buffer(context_live, False),
        "v_ctx": buffer(context_live, True),
        "k_suf": buffer(suffix_live, True),
        "v_suf": buffer(suffix_live, True),
        "context_len": torch.tensor(context_len, dtype=torch.int32),
        "suffix_len": torch.tensor(suffix_len, dtype=torch.int32),
        "scale": d**-0.5,
    }
    if case.window is not None:
        arguments["window"] = case.window
    if case.position:
        last = rng.integers(0, case.m_c + case.m_d + (case.window or 0) // 2, (G, r))
        arguments["query_position"] = torch.tensor(last, dtype=torch.int32)
    if case.softcap is not None:
        arguments["softcap"] = case.softcap
    if case.sinks:
        arguments["sinks"] = _tensor(4 * rng.standard_normal(h), "float32")
    if case.fp8:
        for name in ("k_scale", "v_scale"):
            arguments[name] = _tensor(FP8_STEP * rng.uniform(0.6, 1.4, g), "float32")
    return arguments


def make_flash(case: FlashCase, poison: float = POISON) -> dict[str, Any]:
    """Tensors and options of a case, by argument name; dead slots hold ±`poison`, at random."""
    rng = np.random.default_rng(case.seed)
    live = case.start + case.S
    signs = np.random.default_rng(case.seed + 1)

    def buffer() -> np.ndarray:
        values = rng.standard_normal((case.g, case.B, live, case.d))
        dead = poison * signs.choice([-1.0, 1.0], (case.g, case.B, case.gap, case.d))
        return np.concatenate([values, dead], axis=2).reshape(case.g, -1, case.d)

    q = rng.standard_normal((case.B, case.S, case.h, case.d)) * case.logit_scale
    arguments: dict[str, Any] = {
        "q": _tensor(q, case.dtype),
        "k": _tensor(buffer().transpose(0, 2, 1), case.dtype),
        "v": _tensor(buffer(), case.dtype),
        "scale": case.d**-0.5,
    }
    if case.start:
        arguments["start"] = case.start
    if case.window is not None:
        arguments["window"] = case.window
    if case.softcap is not None:
        arguments["softcap"] = case.softcap
    if case.sinks:
        arguments["sinks"] = _tensor(2 * rng.standard_normal(case.h), "float32")
    return arguments


def make_rows(b: int, width: int, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a residual stream of very different size, and a norm's gain."""
    rng = np.random.default_rng(b)
    x = rng.standard_normal((b, width)) * 10.0 ** rng.integers(-2, 3, (b, 1))
    return _tensor(x, dtype), _tensor(rng.standard_normal(width), dtype)


def make_weights(*shape: int, dtype: str, seed: int) -> torch.Tensor:
    """A projection whose outputs are about as large as its inputs."""
    made = np.random.default_rng(seed).standard_normal(shape) / shape[0] ** 0.5
    return _tensor(made, dtype)


def oracle(arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(o, max, sum) in fp64 NumPy: per sample, one softmax over its context and suffix joined."""
    q, k_ctx, v_ctx, k_suf, v_suf = _operands(arguments)
    window, softcap = arguments.get("window"), arguments.get("softcap")
    sinks = arguments.get("sinks")
    context_len = arguments["context_len"].numpy()
    suffix_len = arguments["suffix_len"].numpy()
    G, r, n, h, _ = q.shape
    p = h // k_ctx.shape[0]
    S_ctx, S_dec = k_ctx.shape[2] // G, k_suf.shape[1] // (G * r)
    o, top, total = np.zeros_like(q), np.full(q.shape[:-1], -3.0e38), np.zeros(q.shape[:-1])
    for j, i, t in itertools.product(range(G), range(r), range(n)):
        behind = n - 1 - t  # tokens of the step that this one does not see
        own = suffix_len[j, i] - 1 - behind  # its row in the suffix
        position = context_len[j] + own
        if "query_position" in arguments:
            position = int(arguments["query_position"][j, i]) - behind
        oldest, oldest_own = 0, 0
        if window is not None:
            oldest = min(max(0, position - window + 1), context_len[j])
            oldest_own = max(0, own - window + 1)
        c = slice(j * S_ctx + oldest, j * S_ctx + context_len[j])
        first = (j * r + i) * S_dec
        s = slice(first + oldest_own, first + max(0, own + 1))
        keys = np.concatenate([k_ctx[:, :, c].transpose(0, 2, 1), k_suf[:, s]], axis=1)
        values = np.concatenate([v_ctx[:, c], v_suf[:, s]], axis=1)
        if keys.shape[1] == 0 and sinks is None:
            continue
        rows = q[j, i, t].reshape(-1, p, q.shape[-1])  # [g, p, d]
        logits = (rows @ keys.transpose(0, 2, 1) * arguments["scale"]).reshape(h, keys.shape[1])
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        highest = logits.max(-1, initial=-3.0e38)
        if sinks is not None:
            highest = np.maximum(highest, _double(sinks))
        top[j, i, t] = highest
        weights = np.exp(logits - highest[:, None])
        total[j, i, t] = weights.sum(-1)
        if sinks is not None:
            total[j, i, t] += np.exp(_double(sinks) - highest)
        mixed = weights.reshape(h // p, p, keys.shape[1]) @ values
        o[j, i, t] = mixed.reshape(h, -1) / total[j, i, t][:, None]
    return o, top, total


def _operands(arguments: dict[str, Any]) -> list[np.ndarray]:
    """q, k_ctx, v_ctx, k_suf and v_suf in fp64, times the factors of what is in 8 bits."""
    operands = [_double(arguments["q"])]
    for name in ("k_ctx", "v_ctx", "k_suf", "v_suf"):
        factors = arguments.get(f"{name[0]}_scale")
        wide = _double(arguments[name])
        operands.append(wide if factors is None else wide * _double(factors)[:, None, None])
    return operands


def largest_logit(arguments: dict[str, Any]) -> float:
    """The size of a decode call's largest logit, before a soft-cap; of live slots alone."""
    q, k_ctx, _, k_suf, _ = _operands(arguments)
    context_len, suffix_len = arguments["context_len"], arguments["suffix_len"]
    G, r, n, h, d = q.shape
    g = k_ctx.shape[0]
    slots, rows = k_ctx.shape[2] // G, k_suf.shape[1] // (G * r)
    most = 0.0
    for j in range(G):
        mine = q[j].reshape(r * n, g, h // g, d).transpose(1, 0, 2, 3).reshape(g, -1, d)
        keys = k_ctx[:, :, j * slots : j * slots + int(context_len[j])]
        most = max(most, float(np.abs(mine @ keys).max(initial=0.0)))
        for i in range(r):
            first = (j * r + i) * rows
            own = k_suf[:, first : first + int(suffix_len[j, i])].transpose(0, 2, 1)
            mine = q[j, i].reshape(n, g, h // g, d).transpose(1, 0, 2, 3).reshape(g, -1, d)
            most = max(most, float(np.abs(mine @ own).max(initial=0.0)))
    return most * float(arguments["scale"])


def flash_oracle(arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(o, max, sum) in fp64 NumPy, query head by query head."""
    q, k, v = (_double(arguments[name]) for name in ("q", "k", "v"))
    start, window = arguments.get("start", 0), arguments.get("window")
    softcap, sinks = arguments.get("softcap"), arguments.get("sinks")
    B, S, h, _ = q.shape
    g = k.shape[0]
    p = h // g
    slots = k.shape[2] // B
    own, key = start + np.arange(S)[:, None], np.arange(start + S)[None, :]
    hidden = key > own
    if window is not None:
        hidden = hidden | (key <= own - window)
    o, top, total = np.zeros_like(q), np.zeros(q.shape[:-1]), np.zeros(q.shape[:-1])
    for prompt, kv in itertools.product(range(B), range(g)):
        seen = slice(prompt * slots, prompt * slots + start + S)
        for head in range(kv * p, (kv + 1) * p):
            logits = q[prompt, :, head] @ k[kv][:, seen] * arguments["scale"]
            if softcap is not None:
                logits = softcap * np.tanh(logits / softcap)
            logits[hidden] = -np.inf
            highest = logits.max(-1)
            if sinks is not None:
                highest = np.maximum(highest, float(sinks[head]))
            weights = np.exp(logits - highest[:, None])
            whole = weights.sum(-1)
            if sinks is not None:
                whole += np.exp(float(sinks[head]) - highest)
            top[prompt, :, head] = highest
            total[prompt, :, head] = whole
            o[prompt, :, head] = weights @ v[kv, seen] / whole[:, None]
    return o, top, total


def flash_largest_logit(arguments: dict[str, Any]) -> float:
    """The largest logit's size, of which the tolerance takes account."""
    q, k = _double(arguments["q"]), _double(arguments["k"])
    B, S, h, _ = q.shape
    slots = k.shape[2] // B
    live = arguments.get("start", 0) + S
    p = h // k.shape[0]
    return (
        max(
            float(np.abs(q[b, :, i] @ k[i // p][:, b * slots : b * slots + live]).max())
            for b in range(B)
            for i in range(h)
        )
        * arguments["scale"]
    )


def tolerance(expected: np.ndarray, dtype: str, largest_logit: float = 0.0) -> float:
    """The largest error allowed: 1e-5 of the largest output in fp32, two ulp of it in 16 bits.

    Large logits add what their rounding in fp32 does to a weight: 4·2^-24·max|logit| of it.
    """
    largest = float(np.abs(expected).max())
    more = 4 * 2.0**-24 * largest_logit * largest
    if dtype == "float32":
        return 1e-5 * largest + more
    ulp = 2.0 ** (np.floor(np.log2(max(largest, 1e-30))) - BITS[dtype])
    return float(2 * ulp) + more


def error(actual: torch.Tensor, expected: np.ndarray) -> float:
    """The largest absolute difference; NaN counts as infinite."""
    difference = np.abs(_double(actual) - expected)
    return float(np.where(np.isnan(difference), np.inf, difference).max())


def _tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    exact = torch.tensor(np.asarray(values), dtype=torch.float64)
    return exact.to(getattr(torch, dtype)).contiguous()


def _double(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16).astype(np.float64)
    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    return tensor.numpy().astype(np.float64)
