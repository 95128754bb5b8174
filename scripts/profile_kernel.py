#!/usr/bin/env python
"""Predict how long a kernel takes on a NeuronCore, and what limits it, without one.

python scripts/profile_kernel.py bifurcated_attention --target trn1 --samples 16 --context 8192
python scripts/profile_kernel.py flash_attention --target trn2 --context 4096
python scripts/profile_kernel.py sweep --samples 1,16,64 --context 1024,8192 --out sweep
python scripts/profile_kernel.py my_kernels.py:softmax --array 4096x512:fp32 --set scale=0.5
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import ast
import importlib.util

import ml_dtypes
import numpy as np

import nki_sim
from models.files import output_path, write_json
from nki_kernels import launch, tuned
from nki_kernels.bifurcated_attention import tuning as bifurcated_tuning
from nki_kernels.errors import InputError, require
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention.validate import Shape as PrefillShape
from nki_kernels.predict import arrays, shape_of
from nki_kernels.speed_of_light import Decode, Prefill, SpeedOfLight, speed_of_light
from scripts import command_line, decode_sweep
from scripts.validation.clock import ACTIVE, summary_of

DTYPES: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp32": np.float32,
    "fp8": ml_dtypes.float8_e4m3,
    "int32": np.int32,
    "uint8": np.uint8,
}

TARGETS = ("trn1", "inf2", "trn2", "trn3", "gen2", "gen3", "gen4")
FAMILIES = {"gen2": "trn1", "gen3": "trn2", "gen4": "trn3"}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = command_line.Parser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "kernel",
        help="bifurcated_attention, flash_attention, or FILE.py:FUNCTION with --array and --set;"
        " sweep has arguments of its own (sweep --help)",
    )
    add("--target", choices=TARGETS, default="trn1", help="core generation (trn1)")
    add("--lnc", type=int, default=1, help="physical cores a logical core (1)")
    add("--samples", "-n", type=int, default=16, help="samples of each prompt (16)")
    add("--prompts", type=int, default=1, help="prompts decoded or packed together (1)")
    add("--tokens", type=int, default=1, help="tokens of a sample in this step (1)")
    add("--heads", type=int, default=4, help="query heads on the core (4)")
    add("--groups", type=int, help="key/value heads on the core (as many as heads)")
    add("--head-dim", type=int, default=128, help="size of a head (128)")
    add("--context", type=int, default=8192, help="keys of the prompt; prefill: positions (8192)")
    add("--start", type=int, default=0, help="prefill: position of the first query (0)")
    add("--suffix", type=int, default=128, help="a sample's own keys, this step's included (128)")
    add("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="element type (bf16)")
    add("--window", type=int, help="positions that a query sees (all)")
    add("--softcap", type=float, help="of the logits (none)")
    add("--sinks", action="store_true", help="a logit more a head")
    add("--kv-dtype", choices=("model", "fp8"), default="model", help="decode: of the caches")
    add(
        "--array",
        action="append",
        default=[],
        metavar="SHAPE:DTYPE",
        help="an array argument of FILE.py:FUNCTION, such as 128x512:bf16; repeat in order",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a keyword argument of FILE.py:FUNCTION",
    )
    add(
        "--compute",
        action="store_true",
        help="compute values too, on zeros, for control flow that depends on data (slow)",
    )
    add(
        "--against",
        metavar="FILE",
        help="a device's profile, from `neuron-explorer view --output-format summary-json`, to"
        " hold the prediction against, engine by engine",
    )
    add("--json", metavar="FILE", help="write the result as JSON")
    add("--perfetto", metavar="FILE", help="write a trace for ui.perfetto.dev")
    add("--png", metavar="FILE", help="draw engine lanes and a roofline")
    return parser.parse_args()


def main() -> None:
    """Profile what was asked for."""
    options = parse()
    outputs = {
        name: output_path(value, f"--{name}")
        for name, value in (
            ("json", options.json), ("perfetto", options.perfetto), ("png", options.png),
        )
        if value
    }  # fmt: skip
    if "png" in outputs and importlib.util.find_spec("matplotlib") is None:
        raise InputError("--png needs matplotlib: pip install 'bifork[plot]'")
    device = None if options.against is None else read_summary(Path(options.against))
    bound: SpeedOfLight | None = None
    if options.kernel == "bifurcated_attention":
        shape, profile, bound = decode(options)
        path = "bifurcated"
    elif options.kernel == "flash_attention":
        shape, profile, bound = prefill(options)
        path = "flash"
    elif ":" in options.kernel:
        shape, profile = foreign(options)
        path = options.kernel
    else:
        raise InputError(
            f"kernel {options.kernel!r} is neither bifurcated_attention, flash_attention nor "
            "FILE.py:FUNCTION"
        )
    profile.summary()
    if bound is not None:
        print(
            f"\nspeed of light {bound.us:.2f} us ({bound.resource}; without a pass for the maximum "
            f"{bound.without_max_us:.2f} us, {bound.without_max}): this kernel reaches "
            f"{100 * bound.us / profile.total_us:.1f} % of it"
        )
    if device is not None:
        print("\n" + engine_table(profile, device))
    if "json" in outputs:
        write_json(outputs["json"], result(options, shape, profile, bound, path))
    if "perfetto" in outputs:
        profile.save_perfetto(outputs["perfetto"])
    if "png" in outputs:
        profile.plot(outputs["png"])


def result(
    options: argparse.Namespace,
    shape: dict[str, Any],
    profile: nki_sim.Profile,
    bound: SpeedOfLight | None,
    path: str,
) -> dict[str, Any]:
    """What ``--json`` holds; the bound is that of the task, None where the kernel is not ours."""
    return {
        "target": options.target,
        "shape": shape,
        "total_us": profile.total_us,
        "launch_us": profile.launch_us,
        "low_us": profile.low_us,
        "high_us": profile.high_us,
        "bound_us": None if bound is None else bound.us,
        "bound_resource": None if bound is None else bound.resource,
        "fraction": None if bound is None else bound.us / profile.total_us,
        "bytes": profile.bytes,
        "instructions": profile.instructions,
        "path": path,
        "limited_by": profile.bound,
        "limited_by_certain": profile.bound_certain,
        "busiest": profile.busiest,
        "busiest_us": profile.resources[profile.busiest],
        "engines": {name: lane.busy for name, lane in profile.engines.items()},
        "validated": profile.validated,
    }


def read_summary(path: Path) -> dict[str, Any]:
    """The summary in a profiler's output.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    try:
        return summary_of(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--against {path} cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise InputError(f"--against {path}: {error}") from error


def engine_table(profile: nki_sim.Profile, device: dict[str, Any]) -> str:
    """Predicted and measured us of the whole and of each engine; the whole has the launch."""
    whole = profile.total_us + profile.launch_us
    rows = [("whole", whole, 1e6 * device["total_time"])]
    rows += [
        (engine, profile.engines[engine].busy, 1e6 * device[name])
        for engine, name in ACTIVE.items()
        if engine in profile.engines and name in device
    ]
    lines = [f"{'':<10}{'predicted us':>14}{'device us':>12}{'ratio':>8}"]
    lines += [
        f"{name:<10}{us:>14.2f}{measured:>12.2f}{measured / us if us else float('nan'):>8.2f}"
        for name, us, measured in rows
    ]
    return "\n".join(lines)


def decode(options: argparse.Namespace) -> tuple[dict[str, Any], nki_sim.Profile, SpeedOfLight]:
    """Our decode kernel at one shape, every slot live."""
    g = options.groups or options.heads
    dtype = DTYPES[options.dtype]
    work = Decode(
        options.prompts, options.samples, options.tokens, options.heads, g, options.head_dim,
        options.context, options.suffix, np.dtype(dtype).itemsize, options.kv_dtype == "fp8",
    )  # fmt: skip
    require(
        not work.narrow or work.element_bytes == 2,
        f"--kv-dtype fp8 is profiled beside queries of 16 bits, got --dtype {options.dtype}",
    )
    bound = speed_of_light(work, options.target)
    require(options.head_dim <= 256, f"--head-dim must be at most 256, got {options.head_dim}")
    require(options.context >= 1, f"--context must be at least 1, got {options.context}")
    require(
        options.suffix >= options.tokens,
        f"--suffix {options.suffix} must hold this step's --tokens {options.tokens}",
    )
    shape = shape_of(work)
    plan = bifurcated_tuning.schedule(shape, work.element_bytes, options.target)
    plan = tuned.improve(
        "bifurcated_attention", plan, shape, work.element_bytes, options.target, work.narrow
    )
    factors = np.empty(g, np.float32) if work.narrow else None
    kernel = launch.load("nki_kernels.bifurcated_attention.kernel", "bifurcated_attention_kernel")
    profile = nki_sim.profile(
        kernel,
        *arrays(shape, dtype, work.narrow),
        work.d**-0.5,
        target=options.target,
        lnc=options.lnc,
        shapes_only=True,
        **bifurcated_tuning.kernel_options(
            plan, **features(options), k_scale=factors, v_scale=factors
        ),
    )
    return vars(work), profile, bound


def features(options: argparse.Namespace) -> dict[str, Any]:
    """What the call asks for beside the plain softmax."""
    sinks = np.empty(options.heads, np.float32) if options.sinks else None
    return {"window": options.window, "softcap": options.softcap, "sinks": sinks}


def prefill(options: argparse.Namespace) -> tuple[dict[str, Any], nki_sim.Profile, SpeedOfLight]:
    """Our prefill kernel at one shape."""
    g = options.groups or options.heads
    dtype = DTYPES[options.dtype]
    require(
        0 <= options.start < options.context,
        f"--start must be from 0 to before --context {options.context}, got {options.start}",
    )
    work = Prefill(
        options.prompts, options.context - options.start, options.heads, g, options.head_dim,
        prior=options.start, element_bytes=np.dtype(dtype).itemsize,
    )  # fmt: skip
    bound = speed_of_light(work, options.target)
    require(options.head_dim <= 256, f"--head-dim must be at most 256, got {options.head_dim}")
    keys = work.prior + work.S
    shape = PrefillShape(B=work.B, S=work.S, h=work.h, g=g, d=work.d, S_ctx=keys, start=work.prior)
    target = FAMILIES.get(options.target, options.target)
    plan = flash_tuning.schedule(shape, work.element_bytes, target)
    plan = tuned.improve("flash_attention", plan, shape, work.element_bytes, target)
    arrays = [
        np.empty((work.B, work.S, work.h, work.d), dtype),
        np.empty((g, work.d, work.B * keys), dtype),
        np.empty((g, work.B * keys, work.d), dtype),
    ]
    kernel = launch.load("nki_kernels.flash_attention.kernel", "flash_attention_kernel")
    profile = nki_sim.profile(
        kernel,
        *arrays,
        work.d**-0.5,
        target=options.target,
        lnc=options.lnc,
        shapes_only=True,
        **flash_tuning.kernel_options(plan, work.prior, **features(options)),
    )
    return vars(work), profile, bound


def foreign(options: argparse.Namespace) -> tuple[dict[str, Any], nki_sim.Profile]:
    """Anybody's kernel, from a file."""
    nki_sim.binding.bind()
    file, _, name = options.kernel.rpartition(":")
    path = Path(file)
    require(path.is_file(), f"kernel {options.kernel}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    require(spec is not None and spec.loader is not None, f"kernel {file} is not a Python file")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where the simulator looks a kernel's module up
    spec.loader.exec_module(module)
    require(hasattr(module, name), f"{file} has no {name}")
    arrays = [array(text, options.compute) for text in options.array]
    keywords = dict(setting(text) for text in options.set)
    profile = nki_sim.profile(
        getattr(module, name),
        *arrays,
        target=options.target,
        lnc=options.lnc,
        shapes_only=not options.compute,
        **keywords,
    )
    return {"arrays": options.array, **keywords}, profile


def array(text: str, zeros: bool) -> np.ndarray:
    """The array of a specification such as 128x512:bf16."""
    sizes, _, dtype = text.partition(":")
    parts = sizes.lower().split("x")
    good = all(part.isdigit() and int(part) > 0 for part in parts)
    require(good, f"--array {text}: write sizes as 128x512, then a colon and a dtype")
    require(dtype in DTYPES, f"--array {text}: dtype {dtype!r} is none of {', '.join(DTYPES)}")
    shape = [int(part) for part in parts]
    return np.zeros(shape, DTYPES[dtype]) if zeros else np.empty(shape, DTYPES[dtype])


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE with a Python literal, or else a string."""
    name, equals, value = text.partition("=")
    require(bool(equals) and name.isidentifier(), f"--set {text}: write NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def run() -> None:
    """``main`` with what stops a kernel in simulation told as a mistake of the kernel's."""
    try:
        if sys.argv[1:2] == ["sweep"]:
            decode_sweep.main(sys.argv[2:])
        else:
            main()
    except (
        nki_sim.RuleError,
        nki_sim.SimulatorError,
        NotImplementedError,
        TypeError,  # arguments that the kernel does not take
    ) as error:
        raise InputError(f"the kernel does not run: {error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(error)) from error


if __name__ == "__main__":
    command_line.run(run)
