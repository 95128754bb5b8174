"""Every kernel with arguments of its own and what must come out: one call a case of `cases.py`.

A `Call` knows no machine. Who runs it (our simulator, AWS's, a NeuronCore) hands its outputs to
`margin`, which says how much of the allowed error they use up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from nki_kernels import cases, tuned
from nki_kernels.bifurcated_attention import tuning as bifurcated_tuning
from nki_kernels.bifurcated_attention import validate as bifurcated_validate
from nki_kernels.cases import Case, FlashCase
from nki_kernels.decode_layer import reference as layer_reference
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention import validate as flash_validate
from nki_kernels.ordinary_attention import tuning as ordinary_tuning

EPS = 1e-5
LAYER_TOLERANCE = {"float32": 2e-6, "bfloat16": 2 * 2.0**-7}
"""Of a row's largest element: what summing in fp32 and rounding once to the dtype may do."""


DECODE = ("q", "k_ctx", "v_ctx", "k_suf", "v_suf", "context_len", "suffix_len", "scale")
"""Positional arguments of the decode kernels, in order; what else a case has goes by keyword."""

PAIRS_WORK = 400
"""Of the cases in which settings meet in pairs, those of at most this work are in the list."""


@dataclass(frozen=True)
class Expected:
    """One output in fp64 and the largest absolute error allowed, element by element or at all."""

    value: np.ndarray
    allowed: np.ndarray | float


@dataclass(frozen=True)
class Call:
    """A kernel, its arguments and what comes out.

    Attributes:
        module, name: the kernel, for `launch.load`.
        arguments: its positional arguments, torch CPU tensors and numbers.
        options: its keyword arguments: compile-time numbers, and tensors where it has optional
            ones.
        expected: its outputs in order.
    """

    module: str
    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    expected: tuple[Expected, ...]

    def margin(self, outputs: Any) -> float:
        """The largest error as a share of what is allowed: at most 1 where the call is right.

        Args:
            outputs: what the kernel returned, tensors or arrays in any float dtype.

        Returns:
            Infinity for NaN, for another shape or another number of outputs.
        """
        found = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        if len(found) != len(self.expected):
            return float("inf")
        return max(map(_margin, found, self.expected))


@dataclass(frozen=True)
class KernelCase:
    """A named case of a kernel; `make(target)` builds its call, with that core's schedule."""

    name: str
    kernel: str
    dtype: str
    make: Callable[[str], Call]


def _margin(found: Any, expected: Expected) -> float:
    values = as_double(found)
    if values.shape != expected.value.shape:
        return float("inf")
    error = np.abs(values - expected.value)
    error = np.where(np.isnan(error), np.inf, error)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(error == 0, 0.0, error / expected.allowed)
    return float(share.max())


def as_double(found: Any) -> np.ndarray:
    """A tensor or array of any float dtype in fp64."""
    if isinstance(found, torch.Tensor):
        return found.detach().cpu().double().numpy()
    return np.asarray(found).astype(np.float64)


def tensors_of(call: Call) -> list[torch.Tensor]:
    """The call's tensors: positional ones, then those among its options."""
    return [v for v in (*call.arguments, *call.options.values()) if isinstance(v, torch.Tensor)]


def with_tensors(call: Call, tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and options with `tensors` in the places of `tensors_of`."""
    following = iter(tensors)

    def put(value: Any) -> Any:
        return next(following) if isinstance(value, torch.Tensor) else value

    arguments = [put(value) for value in call.arguments]
    return arguments, {name: put(value) for name, value in call.options.items()}


# --- attention


def _states(
    o: np.ndarray, top: np.ndarray, total: np.ndarray, dtype: str, logit: float, summing: float
) -> tuple[Expected, ...]:
    rounding = 4 * 2.0**-24 * logit
    return (
        Expected(o, cases.tolerance(o, dtype, logit)),
        Expected(top, 1e-5 * np.abs(top) + 1e-5 + rounding),
        Expected(total, (summing + rounding) * np.abs(total)),
    )


def decode_call(path: str, case: Case, return_state: bool, target: str) -> Call:
    """A decode kernel, "bifurcated" or "ordinary", on a case's tensors."""
    arguments = cases.make(case)
    o, top, total = cases.oracle(arguments)
    shape = bifurcated_validate.validate(**arguments)
    size = arguments["q"].element_size()
    features = {name: value for name, value in arguments.items() if name not in DECODE}
    if path == "ordinary":
        plan = ordinary_tuning.schedule(shape, size)
        options = asdict(tuned.improve("ordinary_attention", plan, shape, size, target)) | features
    else:
        rule = bifurcated_tuning.schedule(shape, size, target)
        rule = tuned.improve("bifurcated_attention", rule, shape, size, target, case.fp8)
        options = bifurcated_tuning.kernel_options(rule, **features)
    # The sum may be that of the weights as V meets them, rounded to the dtype.
    bits = cases.BITS.get(case.dtype)
    summing = 1e-4 if bits is None else 2.0 ** -(bits + 1)
    expected = _states(o, top, total, case.dtype, cases.largest_logit(arguments), summing)
    return Call(
        f"nki_kernels.{path}_attention.kernel",
        f"{path}_attention_kernel",
        tuple(arguments[name] for name in DECODE),
        {"return_state": return_state, **options},
        expected if return_state else expected[:1],
    )


def flash_call(case: FlashCase, return_state: bool, target: str) -> Call:
    """The prefill kernel on a case's tensors."""
    arguments = cases.make_flash(case)
    o, top, total = cases.flash_oracle(arguments)
    shape = flash_validate.validate(**arguments)
    size = arguments["q"].element_size()
    plan = flash_tuning.schedule(shape, size, target)
    plan = tuned.improve("flash_attention", plan, shape, size, target)
    given = {
        name: arguments[name]
        for name in ("start", "window", "softcap", "sinks")
        if name in arguments
    }
    expected = _states(o, top, total, case.dtype, cases.flash_largest_logit(arguments), 1e-4)
    return Call(
        "nki_kernels.flash_attention.kernel",
        "flash_attention_kernel",
        tuple(arguments[name] for name in ("q", "k", "v", "scale")),
        flash_tuning.kernel_options(plan, **given) | {"return_state": return_state},
        expected if return_state else expected[:1],
    )


# --- the rest of a decode layer


def _rows(expected: torch.Tensor, dtype: str) -> Expected:
    """Each row within the dtype's rounding of its largest element."""
    value = expected.double().numpy()
    largest = np.abs(value).reshape(len(value), -1).max(1)
    allowed = LAYER_TOLERANCE[dtype] * largest.reshape(-1, *[1] * (value.ndim - 1))
    return Expected(value, allowed)


def _layer(name: str, *arguments: Any, expected: tuple[Expected, ...], **options: Any) -> Call:
    return Call("nki_kernels.decode_layer.kernel", f"{name}_kernel", arguments, options, expected)


def norm_qkv_rope_call(b: int, H: int, h: int, g: int, d: int, dtype: str, target: str) -> Call:
    """Norm, projections and rotation of b rows."""
    x, gain = cases.make_rows(b, H, dtype)
    w = cases.make_weights(H, (h + 2 * g) * d, dtype=dtype, seed=1)
    angles = torch.tensor(np.random.default_rng(2).uniform(0, 7, (b, d // 2)), dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    outputs = layer_reference.norm_qkv_rope(x.double(), gain.double(), w.double(), cos, sin, h, EPS)
    expected = tuple(_rows(output, dtype) for output in outputs)
    return _layer("norm_qkv_rope", x, gain, w, cos, sin, expected=expected, h=h, eps=EPS)


def gated_mlp_call(b: int, H: int, width: int, dtype: str, target: str) -> Call:
    """Norm and gated MLP of b rows."""
    x, gain = cases.make_rows(b, H, dtype)
    gate, up = (cases.make_weights(H, width, dtype=dtype, seed=i) for i in (3, 4))
    down = cases.make_weights(width, H, dtype=dtype, seed=5)
    output = layer_reference.gated_mlp(
        x.double(), gain.double(), gate.double(), up.double(), down.double(), EPS
    )
    expected = (_rows(output, dtype),)
    return _layer("gated_mlp", x, gain, gate, up, down, expected=expected, eps=EPS)


def projection_call(b: int, K: int, N: int, dtype: str, target: str) -> Call:
    """The output projection of b rows."""
    x, w = cases.make_rows(b, K, dtype)[0], cases.make_weights(K, N, dtype=dtype, seed=6)
    return _layer("projection", x, w, expected=(_rows(x.double() @ w.double(), dtype),))


def write_kv_call(rows: int, g: int, target: str) -> Call:
    """A step's keys and values into the suffix caches: exact, and no other slot changes."""
    rng = np.random.default_rng(7)
    k, v = (torch.tensor(rng.standard_normal((rows, g, 16))).float() for _ in range(2))
    caches = [torch.tensor(rng.standard_normal((g, rows * 9, 16))).float() for _ in range(2)]
    slots = torch.tensor([9 * i + rng.integers(9) for i in range(rows)], dtype=torch.int32)
    after = [cache.clone() for cache in caches]
    layer_reference.write_kv(k, v, after[0], after[1], slots)
    expected = tuple(Expected(cache.double().numpy(), 0.0) for cache in after)
    return _layer("write_kv", k, v, *caches, slots, expected=expected)


# --- the list


def kernel_cases() -> list[KernelCase]:
    """One list for tests and for other people's machines: every kernel, odd sizes, both dtypes."""
    found = []
    pairs = [case for case in cases.decode_pairwise() if case.work <= PAIRS_WORK]
    for path, chosen in (("bifurcated", [*cases.FEATURES, *pairs]), ("ordinary", cases.FEATURES)):
        for case in chosen:
            if path == "ordinary" and case.n * case.h // case.g > 128:
                continue  # not accepted: rows of a sample beyond the partitions
            for state in (False, True):
                if not state or case.empty or case is chosen[0]:
                    make = partial(decode_call, path, case, state)
                    found.append(_named(f"{path}_attention", f"{case}", case.dtype, make, state))
    small = [case for case in cases.flash_pairwise() if case.work <= PAIRS_WORK]
    for flash in [*cases.FLASH, *small]:
        for state in (False, True):
            if not state or flash is cases.FLASH[1]:
                make = partial(flash_call, flash, state)
                found.append(_named("flash_attention", f"{flash}", flash.dtype, make, state))
    return found + _layer_cases()


def _layer_cases() -> list[KernelCase]:
    found = []
    for dtype in ("float32", "bfloat16"):
        end = dtype[:2]
        for b, H, h, g, d in ((1, 128, 1, 1, 2), (5, 256, 4, 4, 32), (16, 384, 26, 13, 64)):
            name = f"b{b}-H{H}-h{h}g{g}-k{d}-{end}"
            make = partial(norm_qkv_rope_call, b, H, h, g, d, dtype)
            found.append(_named("norm_qkv_rope", name, dtype, make))
        for b, H, width in ((1, 128, 1), (5, 256, 200), (128, 128, 128)):
            make = partial(gated_mlp_call, b, H, width, dtype)
            found.append(_named("gated_mlp", f"b{b}-H{H}-I{width}-{end}", dtype, make))
        for b, K, N in ((1, 1, 1), (7, 300, 2100), (128, 256, 512)):
            make = partial(projection_call, b, K, N, dtype)
            found.append(_named("projection", f"b{b}-K{K}-N{N}-{end}", dtype, make))
    for rows, g in ((1, 1), (5, 3), (128, 2)):
        make = partial(write_kv_call, rows, g)
        found.append(_named("write_kv", f"rows{rows}-g{g}", "float32", make))
    return found


def _named(
    kernel: str, case: str, dtype: str, make: Callable[[str], Call], state: bool = False
) -> KernelCase:
    return KernelCase(f"{kernel}/{case}{'-state' * state}", kernel, dtype, make)


def wrong(call: Call) -> Call:
    """The call with its first expected value moved further than is allowed: it must fail.

    A run that does not report it as failing proves nothing.
    """
    first = call.expected[0]
    moved = replace(first, value=first.value + 1 + 2 * first.allowed)
    return replace(call, expected=(moved, *call.expected[1:]))
