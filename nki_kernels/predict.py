"""Predicted times of our decode kernels by the timeline, at any size within reach of a laptop.

A call too long to record instruction by instruction is predicted from shorter ones: samples are
worked on alike, and so are blocks of the context, so beyond some size time grows by the same amount
for each. `Prediction.extrapolated` says where that was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nki_kernels import launch, tuned
from nki_kernels.attention_state.validate import validate_for_kernels
from nki_kernels.bifurcated_attention import tuning as bifurcated_tuning
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.errors import InputError, require
from nki_kernels.ordinary_attention import tuning as ordinary_tuning
from nki_kernels.ordinary_attention.validate import validate_for_kernel
from nki_kernels.speed_of_light import Decode

if TYPE_CHECKING:
    import nki_sim

PATHS = ("bifurcated", "ordinary")
CORES = {"gen2": "trn1", "gen3": "trn2", "gen4": "trn3"}

SHORT_CONTEXT = {"bifurcated": (16384, 32768), "ordinary": (4096, 8192)}
"""Context lengths from which longer ones are extrapolated; all fill rows of DMA."""

WORK = {"bifurcated": 4_000_000, "ordinary": 600_000}
"""Sizes up to this many (sample, kv head, key) triples of the ordinary kernel, and this many logits
by 64 of the bifurcated one, are recorded whole. Ordinary decoding does the same for every sample:
a second or two show it. In bifurcated decoding loads of suffixes hide the compute of the context,
until that is long enough: 1,024 samples of 32,768 keys are recorded as they are, in a minute."""


@dataclass(frozen=True)
class Prediction:
    """One kernel at one shape on one core.

    Attributes:
        us, low_us, high_us: first instruction to last, launch apart.
        limited_by: the engine with most time on the critical path (of the longest recorded call).
        instructions: executed, of the longest recorded call.
        extrapolated: whether `us` is a sum of shorter calls' times and growth.
    """

    us: float
    low_us: float
    high_us: float
    limited_by: str
    instructions: int
    extrapolated: bool


def shape_of(work: Decode) -> Shape:
    """The operator's shape whose buffers are exactly full."""
    return Shape(
        G=work.G, r=work.r, n=work.n, h=work.h, g=work.g, d=work.d,
        S_ctx=max(1, work.m_c), S_dec=max(1, work.m_d),
    )  # fmt: skip


def dtype_of(element_bytes: int) -> Any:
    """What a profile takes for floats of so many bytes: bf16 or fp32."""
    import ml_dtypes

    return {2: ml_dtypes.bfloat16, 4: np.float32}[element_bytes]


def arrays(shape: Shape, dtype: Any, narrow: bool = False) -> list[np.ndarray]:
    """Unwritten arguments of a decode kernel, in order; for `shapes_only` profiles."""
    import ml_dtypes

    s = shape
    stored = ml_dtypes.float8_e4m3fn if narrow else dtype
    context, suffix = s.G * s.S_ctx, s.G * s.r * s.S_dec
    return [
        np.empty((s.G, s.r, s.n, s.h, s.d), dtype),
        np.empty((s.g, s.d, context), stored),
        np.empty((s.g, context, s.d), stored),
        np.empty((s.g, suffix, s.d), stored),
        np.empty((s.g, suffix, s.d), stored),
        np.empty(s.G, np.int32),
        np.empty((s.G, s.r), np.int32),
    ]


def rule_of(path: str, shape: Shape, element_bytes: int, target: str) -> Any:
    """The schedule that the kernel's own rule chooses, before what the tuner found."""
    if path == "ordinary":
        return ordinary_tuning.schedule(shape, element_bytes)
    return bifurcated_tuning.schedule(shape, element_bytes, CORES.get(target, target))


def options_of(
    path: str, shape: Shape, element_bytes: int, target: str, narrow: bool = False
) -> dict[str, Any]:
    """The schedule that the operator would choose, as the kernel's keyword arguments."""
    plan = rule_of(path, shape, element_bytes, target)
    name = f"{path}_attention"
    return dict(vars(tuned.improve(name, plan, shape, element_bytes, target, narrow)))


def profile(
    path: str, work: Decode, target: str, options: Mapping[str, Any] | None = None
) -> nki_sim.Profile:
    """The profile of one call, recorded whole.

    Args:
        path: "bifurcated" or "ordinary".
        work: sizes; all slots live.
        target: trn1, inf2, gen2, trn2, gen3, trn3 or gen4.
        options: the kernel's keyword arguments; by default those of its schedule.

    Raises:
        InputError: an unknown path, or a shape that the kernel does not take.
    """
    import nki_sim

    require(path in PATHS, f"path must be one of {', '.join(PATHS)}, got {path!r}")
    require(not work.narrow or path == "bifurcated", "8-bit caches have the bifurcated path alone")
    shape = shape_of(work)
    if path == "ordinary":
        validate_for_kernel(shape)
    else:
        validate_for_kernels(work.d)
    name = f"{path}_attention"
    kernel = launch.load(f"nki_kernels.{name}.kernel", f"{name}_kernel")
    if options is None:
        chosen = options_of(path, shape, work.element_bytes, target, work.narrow)
    else:
        chosen = dict(options)
    if work.narrow:
        factors = np.empty(work.g, np.float32)
        chosen |= {"k_scale": factors, "v_scale": factors, "with_scales": True}
    return nki_sim.profile(
        kernel,
        *arrays(shape, dtype_of(work.element_bytes), work.narrow),
        work.d**-0.5,
        target=target,
        shapes_only=True,
        **chosen,
    )


def predict(
    path: str, work: Decode, target: str, options: Mapping[str, Any] | None = None
) -> Prediction:
    """The time of one call; long ones from shorter ones with the same schedule.

    Args: as `profile`. With "ordinary", samples beyond what is recorded cost what the ones before
        them did (their contexts are their own: `G` prompts of one sample, or `r` of a shared one).

    Raises:
        InputError: as `profile`.
    """
    require(path in PATHS, f"path must be one of {', '.join(PATHS)}, got {path!r}")
    if options is None:
        options = options_of(path, shape_of(work), work.element_bytes, target, work.narrow)
    short, long = SHORT_CONTEXT[path]
    if work.m_c > long and _size(path, work) > WORK[path]:
        near = predict(path, replace(work, m_c=long), target, options)
        far = predict(path, replace(work, m_c=short), target, options)
        return _grow(near, far, (work.m_c - long) / (long - short))
    samples = work.G * work.r
    unit = _samples_alike(path, work)
    if samples >= 3 * unit and _size(path, work) > WORK[path]:
        times = 2
        while (
            times * 2 * unit < samples and _size(path, _with(work, times * 2 * unit)) <= WORK[path]
        ):
            times *= 2
        near = _recorded(path, _with(work, times * unit), target, options)
        far = _recorded(path, _with(work, times // 2 * unit), target, options)
        return _grow(near, far, (samples - times * unit) / (unit * (times - times // 2)))
    return _recorded(path, work, target, options)


def _samples_alike(path: str, work: Decode) -> int:
    """A number of samples after which the kernel's work repeats.

    Bifurcated: a whole tile of query rows. Ordinary: every sample does; eight of them even out
    where steps and tiles begin.
    """
    if path == "ordinary":
        return 8
    return max(1, 128 // (work.n * work.h // work.g))


def _with(work: Decode, samples: int) -> Decode:
    """The same work with another number of samples, prompts of their own where they had them."""
    if work.r == 1:
        return replace(work, G=samples)
    if samples % work.G:
        raise InputError(f"G must divide {samples} samples, got {work.G}")
    return replace(work, r=samples // work.G)


def _size(path: str, work: Decode) -> float:
    samples = work.G * work.r
    if path == "ordinary":
        return samples * work.g * (work.m_c + work.m_d)
    rows = samples * work.n * work.h
    return (rows * work.m_c + rows * work.m_d * 64) / 64


def _recorded(path: str, work: Decode, target: str, options: Mapping[str, Any]) -> Prediction:
    p = profile(path, work, target, options)
    return Prediction(p.total_us, p.low_us, p.high_us, p.bound, p.instructions, False)


def _grow(near: Prediction, far: Prediction, times: float) -> Prediction:
    """`near`, and `times` what it is longer than `far`."""
    us, low, high = (
        getattr(near, name) + times * (getattr(near, name) - getattr(far, name))
        for name in ("us", "low_us", "high_us")
    )
    return Prediction(us, min(us, low), max(us, high), near.limited_by, near.instructions, True)


@dataclass(frozen=True)
class Layer:
    """A decode layer's sizes on one core.

    h query and g kv heads of size d; rows of the residual stream are `H` wide, the gated MLP's
    share `I`.
    """

    h: int
    g: int
    d: int
    H: int
    I: int  # noqa: E741 - the usual name of the MLP's width


def predict_rest(layer: Layer, b: int, target: str) -> dict[str, float]:
    """us of what a decode layer does besides attention, by kernel of `decode_layer`.

    More than 128 rows go in calls of 128, each of which reads the weights again.

    Returns:
        "norm_qkv_rope", "write_kv", "projection" and "gated_mlp" in bf16.
    """
    import ml_dtypes

    import nki_sim

    def empty(*shape: int, dtype: Any = ml_dtypes.bfloat16) -> np.ndarray:
        return np.empty(shape, dtype)

    y = layer
    found: dict[str, float] = {}
    calls = -(-b // 128)
    rows = -(-b // calls)
    table = empty(rows, y.d // 2, dtype=np.float32)
    x, gain = empty(rows, y.H), empty(y.H)
    step, caches = empty(rows, y.g, y.d), [empty(y.g, rows * 128, y.d) for _ in range(2)]
    work: dict[str, tuple[tuple[np.ndarray, ...], dict[str, Any]]] = {
        "norm_qkv_rope": (
            (x, gain, empty(y.H, (y.h + 2 * y.g) * y.d), table, table),
            {"h": y.h, "eps": 1e-5},
        ),
        "write_kv": ((step, step, *caches, empty(rows, dtype=np.int32)), {}),
        "projection": ((empty(rows, y.h * y.d), empty(y.h * y.d, y.H)), {}),
        "gated_mlp": (
            (x, gain, empty(y.H, y.I), empty(y.H, y.I), empty(y.I, y.H)),
            {"eps": 1e-5},
        ),
    }
    for name, (arguments, options) in work.items():
        kernel = launch.load("nki_kernels.decode_layer.kernel", f"{name}_kernel")
        p = nki_sim.profile(kernel, *arguments, target=target, shapes_only=True, **options)
        found[name] = calls * p.total_us
    return found
