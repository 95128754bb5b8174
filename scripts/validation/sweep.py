"""The shapes that are timed: what one core has of a 7B and an 8B model at tp = 8, as in the sweep.

Small ones come first: whoever stops after an hour has something from everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nki_kernels import launch, predict, tuned
from nki_kernels.bifurcated_attention.validate import Shape as DecodeShape
from nki_kernels.calls import Call
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention.validate import Shape as PrefillShape
from nki_kernels.speed_of_light import Decode, Prefill, speed_of_light
from nki_sim.rebind import rebound
from nki_sim.targets import get_target
from nki_sim.timeline.constants import timing
from scripts.decode_sweep import SHAPES
from scripts.validation.clock import Clock, profile
from scripts.validation.report import Times
from scripts.validation.runner import Found, Job

SAMPLES = (1, 16, 64)
CONTEXTS = (1024, 8192)
PREFILLS = (512, 2048)
ORDINARY_SAMPLES = 16
"""The ordinary kernel reads the context once a sample; beyond this a graph takes long to compile
and shows nothing new."""

LAYER_ROWS = 16


@dataclass(frozen=True)
class Timed:
    """A shape to time: its call, and the task's bound in us (None: no bound is defined)."""

    name: str
    kernel: str
    work: Decode | Prefill | None
    call: Call


def grid(
    target: str,
    samples: Sequence[int] = SAMPLES,
    contexts: Sequence[int] = CONTEXTS,
    prefills: Sequence[int] = PREFILLS,
    shapes: Sequence[str] = tuple(SHAPES),
    suffix: int = 128,
) -> list[Timed]:
    """All shapes of the sweep, cheapest first."""
    found = []
    for name in shapes:
        layer = SHAPES[name][1]
        for m_c in contexts:
            for b in samples:
                work = Decode(1, b, 1, layer.h, layer.g, layer.d, m_c, suffix)
                found.append((b * m_c, decode("bifurcated", name, work, target)))
                if b <= ORDINARY_SAMPLES:
                    copies = Decode(b, 1, 1, layer.h, layer.g, layer.d, m_c, suffix)
                    found.append((4 * b * m_c, decode("ordinary", name, copies, target)))
        found += [(S * S // 16, prefill(name, S, target)) for S in prefills]
        found += [(8192, timed) for timed in layer_kernels(name)]
    return [timed for _, timed in sorted(found, key=lambda pair: pair[0])]


def decode(path: str, name: str, work: Decode, target: str) -> Timed:
    """A decode kernel whose buffers are exactly full."""
    shape: DecodeShape = predict.shape_of(work)
    context, suffix = shape.G * shape.S_ctx, shape.G * shape.r * shape.S_dec
    rows = (work.G, work.r)
    call = Call(
        f"nki_kernels.{path}_attention.kernel",
        f"{path}_attention_kernel",
        (
            _zeros(*rows, work.n, work.h, work.d),
            _zeros(work.g, work.d, context),
            _zeros(work.g, context, work.d),
            _zeros(work.g, suffix, work.d),
            _zeros(work.g, suffix, work.d),
            torch.full((work.G,), work.m_c, dtype=torch.int32),
            torch.full(rows, work.m_d, dtype=torch.int32),
            work.d**-0.5,
        ),
        predict.options_of(path, shape, work.element_bytes, target),
        (),
    )
    b = work.G * work.r
    return Timed(
        f"{path}_attention/{name}-b{b}-c{work.m_c}-d{work.m_d}", f"{path}_attention", work, call
    )


def prefill(name: str, S: int, target: str) -> Timed:
    """The prefill kernel on one prompt of S positions."""
    layer = SHAPES[name][1]
    work = Prefill(1, S, layer.h, layer.g, layer.d)
    shape = PrefillShape(B=1, S=S, h=layer.h, g=layer.g, d=layer.d, S_ctx=S, start=0)
    plan = flash_tuning.schedule(shape, work.element_bytes, target)
    plan = tuned.improve("flash_attention", plan, shape, work.element_bytes, target)
    call = Call(
        "nki_kernels.flash_attention.kernel",
        "flash_attention_kernel",
        (
            _zeros(1, S, layer.h, layer.d),
            _zeros(layer.g, layer.d, S),
            _zeros(layer.g, S, layer.d),
            layer.d**-0.5,
        ),
        flash_tuning.kernel_options(plan),
        (),
    )
    return Timed(f"flash_attention/{name}-S{S}", "flash_attention", work, call)


def layer_kernels(name: str, b: int = LAYER_ROWS) -> list[Timed]:
    """The rest of a decode layer, b rows."""
    y = SHAPES[name][1]
    table = torch.zeros(b, y.d // 2)
    x, gain = _zeros(b, y.H), _zeros(y.H)
    step, caches = _zeros(b, y.g, y.d), [_zeros(y.g, b * 128, y.d) for _ in range(2)]
    slots = torch.arange(b, dtype=torch.int32) * 128
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "norm_qkv_rope": (
            (x, gain, _zeros(y.H, (y.h + 2 * y.g) * y.d), table, table),
            {"h": y.h, "eps": 1e-5},
        ),
        "write_kv": ((step, step, *caches, slots), {}),
        "projection": ((_zeros(b, y.h * y.d), _zeros(y.h * y.d, y.H)), {}),
        "gated_mlp": (
            (x, gain, _zeros(y.H, y.I), _zeros(y.H, y.I), _zeros(y.I, y.H)),
            {"eps": 1e-5},
        ),
    }
    module = "nki_kernels.decode_layer.kernel"
    return [
        Timed(f"{kernel}/{name}-b{b}", kernel, None, Call(module, f"{kernel}_kernel", *parts, ()))
        for kernel, parts in calls.items()
    ]


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def time_jobs(timed: Sequence[Timed], target: str, clock: Clock, folder: Path) -> list[Job]:
    """A job a shape."""
    return [
        Job(f"times/{each.name}", "times", each.kernel, target, clock.evidence,
            partial(take_time, each, target, clock, folder))
        for each in timed
    ]  # fmt: skip


def take_time(timed: Timed, target: str, clock: Clock, folder: Path) -> Found:
    """Time a shape, and predict it with the launch counted in, as the clock does."""
    measured = clock.measure(timed.call, target, folder / timed.name.replace("/", "_"))
    generation = get_target(target).generation
    launch_us = {
        end: timing(generation, end).launch_ns / 1000 for end in ("low", "nominal", "high")
    }
    path = timed.kernel.removesuffix("_attention")
    grown = None
    if isinstance(timed.work, Decode):
        grown = predict.predict(path, timed.work, target)
    engines, call = {"clock": measured.engines}, None
    if grown is not None and grown.extrapolated:
        low, nominal, high, bound = grown.low_us, grown.us, grown.high_us, grown.limited_by
    else:
        p = profile(timed.call, target)
        low, nominal, high, bound = p.low_us, p.total_us, p.high_us, p.bound
        engines["predicted"] = {name: lane.busy for name, lane in p.engines.items()}
        call = recordable(timed.call)
    times = Times(
        us=tuple(round(us, 3) for us in measured.us),
        low_us=round(low + launch_us["low"], 3),
        nominal_us=round(nominal + launch_us["nominal"], 3),
        high_us=round(high + launch_us["high"], 3),
        bound=bound,
        bound_us=0.0 if timed.work is None else round(speed_of_light(timed.work, target).us, 3),
        extrapolated=grown is not None and grown.extrapolated,
    )
    rounded = {
        who: {name: round(us, 3) for name, us in found.items()} for who, found in engines.items()
    }
    return Found(times=times, engines=rounded, call=call, details=measured.details)


def recordable(call: Call) -> dict[str, Any]:
    """What it takes to record the call again without its tensors: plain JSON."""
    kernel = rebound(launch.load(call.module, call.name))  # the SDK's may hide its names
    names = list(inspect.signature(kernel.func).parameters)
    arrays, keywords = [], dict(call.options)
    for name, value in zip(names, call.arguments, strict=False):
        if isinstance(value, torch.Tensor):
            arrays.append([list(value.shape), str(value.dtype).removeprefix("torch.")])
        else:
            keywords[name] = value
    return {"kernel": f"{call.module}:{call.name}", "arrays": arrays, "keywords": keywords}
