"""Search what the kernels leave open with the timeline, and write it down as data.

    python -m nki_kernels.tune switch        when bifurcation pays: ordinary_attention/switch.json
    python -m nki_kernels.tune schedules     fields of the kernels' schedules: tuned.json

Both go on where an earlier run was stopped, and write whole files. Numbers are predictions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nki_kernels import launch, tuned
from nki_kernels.errors import InputError
from nki_kernels.flash_attention import tuning as flash_tuning
from nki_kernels.flash_attention.validate import Shape as PrefillShape
from nki_kernels.ordinary_attention import switch
from nki_kernels.predict import dtype_of, predict, profile, rule_of, shape_of
from nki_kernels.speed_of_light import Decode

GENERATIONS = ("gen2", "gen3")
G_SIZES = (1, 4)
ROWS = (1, 4, 8)
SAMPLES = (1, 2, 4, 16)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
SUFFIX = 128
"""m_d at which break-even is found: early in an answer, where the suffix weighs least."""


def find_break_even(work: Decode, target: str) -> int | None:
    """The least of CONTEXTS from which bifurcated is faster, by bisection; None for none."""

    def pays(index: int) -> bool:
        at = Decode(**{**vars(work), "m_c": CONTEXTS[index]})
        return predict("bifurcated", at, target).us < predict("ordinary", at, target).us

    low, high = 0, len(CONTEXTS)  # pays from `high` on, not at `low - 1`
    while low < high:
        middle = (low + high) // 2
        if pays(middle):
            high = middle
        else:
            low = middle + 1
    return CONTEXTS[low] if low < len(CONTEXTS) else None


def switch_rows() -> Iterator[tuple[tuple[str, str, str, str, str], Decode]]:
    """Path into the table, and the work behind each of its numbers but for the context."""
    for generation in GENERATIONS:
        for element_bytes, dtype in switch.DTYPES.items():
            for g in G_SIZES:
                for rows in ROWS:
                    for r in SAMPLES:
                        work = Decode(1, r, 1, g * rows, g, 128, 0, SUFFIX, element_bytes)
                        yield (generation, dtype, str(g), str(rows), str(r)), work


def tune_switch(path: Path, fresh: bool) -> None:
    """Fill the table of `path`; what is not whole yet stands beside it. `fresh` starts over."""
    beside = path.with_suffix(".part")
    found: dict[str, Any] = {}
    if beside.exists() and not fresh:
        found = json.loads(beside.read_text())
    for keys, work in tqdm(list(switch_rows()), desc="switch", unit="row"):
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        if keys[-1] not in place:
            place[keys[-1]] = find_break_even(work, keys[0])
            write(beside, found)
    write(
        path,
        {
            "what": "S_ctx from which the bifurcated kernel is predicted faster than the ordinary"
            " one; null: at none of `contexts`",
            "keys": ["generation", "dtype", "g", "n·p", "r"],
            "contexts": CONTEXTS,
            "m_d": SUFFIX,
            "d": 128,
            "written_by": "python -m nki_kernels.tune switch",
            "break_even": found,
        },
    )
    beside.unlink(missing_ok=True)


# --- schedules

Shape = Any
Time = Callable[[Any], float]
"""us of a schedule; raises where it is not legal."""

MHA, GQA, WIDE = (4, 4), (4, 1), (8, 1)
"""(h, g) of a core: a 7B model, an 8B one and a 70B one at tp = 8."""

REPEATED = {
    "bifurcated_attention": ("G",),
    "ordinary_attention": ("G", "r"),
    "flash_attention": ("B",),
}
"""Sizes that only repeat what a kernel does: they change neither its best schedule nor its memory.
"""

LEAST_GAIN = 0.01
"""What a schedule must gain over the rule's to be written down."""


class Illegal(Exception):
    """A schedule that breaks a rule of the hardware or does not fit its memories."""


@dataclass(frozen=True)
class Task:
    """A search: how long a schedule of `kernel` takes at one shape, and which the rule chooses.

    `time` raises Illegal where a schedule breaks a rule.
    """

    kernel: str
    generation: str
    dtype: str
    shape: Shape
    plan: Any
    time: Time

    @property
    def about(self) -> dict[str, Any]:
        """What an entry of tuned.json says of the task."""
        sizes = {k: v for k, v in vars(self.shape).items() if k not in REPEATED[self.kernel]}
        return {
            "kernel": self.kernel,
            "generation": self.generation,
            "dtype": self.dtype,
            "shape": sizes,
        }


def tasks() -> Iterator[Task]:
    """All that is to be tuned."""
    for generation, (dtype, numbers) in product(GENERATIONS, tuned.DTYPES.items()):
        element_bytes, narrow = numbers
        samples = (16, 32, 64, 128) if element_bytes == 2 else (16, 64)
        for (h, g), r in product((MHA, GQA, WIDE), samples):
            work = Decode(1, r, 1, h, g, 128, 8192, SUFFIX, element_bytes, narrow)
            found = _decode("bifurcated", work, generation)
            yield Task("bifurcated_attention", generation, dtype, *found)
        if narrow:  # the other kernels refuse it
            continue
        for (h, g), m_c in product((MHA, GQA), (1024, 8192, 32768)):
            work = Decode(4, 1, 1, h, g, 128, m_c, SUFFIX, element_bytes)
            found = _decode("ordinary", work, generation)
            yield Task("ordinary_attention", generation, dtype, *found)
        shape = PrefillShape(B=1, S=2048, h=4, g=1, d=128, S_ctx=2048, start=0)
        found = _prefill(shape, element_bytes, generation)
        yield Task("flash_attention", generation, dtype, *found)


def _decode(path: str, work: Decode, generation: str) -> tuple[Shape, Any, Time]:
    shape = shape_of(work)
    rule = rule_of(path, shape, work.element_bytes, generation)

    def time(plan: Any) -> float:
        if path == "bifurcated":
            if plan.dma_turns or plan.turn_share:
                check_turns(generation, work.element_bytes)
            if plan.suffix_slots < rule.suffix_slots:
                raise Illegal("what a short run of HBM costs is where documents differ most")
        return checked(lambda: profile(path, work, generation, vars(plan)))

    return shape, rule, time


def _prefill(shape: PrefillShape, element_bytes: int, generation: str) -> tuple[Shape, Any, Time]:
    import numpy as np

    import nki_sim

    target = {"gen2": "trn1", "gen3": "trn2"}[generation]
    kernel = launch.load("nki_kernels.flash_attention.kernel", "flash_attention_kernel")
    slots = shape.B * shape.S_ctx
    arrays = [
        np.empty(size, dtype_of(element_bytes))
        for size in (
            (shape.B, shape.S, shape.h, shape.d),
            (shape.g, shape.d, slots),
            (shape.g, slots, shape.d),
        )
    ]

    def time(plan: Any) -> float:
        if plan.dma_share:
            check_turns(generation, element_bytes)
        options = flash_tuning.kernel_options(plan, shape.start)
        return checked(
            lambda: nki_sim.profile(
                kernel, *arrays, shape.d**-0.5, target=target, shapes_only=True, **options
            )
        )

    return shape, flash_tuning.schedule(shape, element_bytes, target), time


def check_turns(generation: str, element_bytes: int) -> None:
    """Whether DMA may turn tiles.

    Raises:
        Illegal: no document says how fast a NeuronCore-v2 does, or any with numbers of 4 bytes.
    """
    if generation == "gen2" or element_bytes != 2:
        raise Illegal(f"no rate for DMA turning {element_bytes}-byte numbers on {generation}")


def checked(run: Callable[[], Any]) -> float:
    """us of a profile.

    Raises:
        Illegal: the simulator refuses or warns of the kernel, or it does not fit SBUF or PSUM.
    """
    import nki_sim

    try:
        found = run()
    except (nki_sim.RuleError, nki_sim.SimulatorError, AssertionError, ValueError) as error:
        raise Illegal(str(error)) from error
    except (ArithmeticError, LookupError, TypeError) as error:  # sizes that the kernel cannot cut
        raise Illegal(f"{type(error).__name__}: {error}") from error
    if found.sbuf_peak > found.sbuf_capacity or found.psum_peak > found.psum_capacity:
        raise Illegal(f"needs {found.sbuf_peak} bytes of SBUF, {found.psum_peak} of PSUM")
    return float(found.total_us)


def neighbours(plan: Any) -> Iterator[tuple[str, Any]]:
    """(field, other value): half, double and one less or more of a number, the other of a flag."""
    for field in fields(plan):
        value = getattr(plan, field.name)
        if isinstance(value, bool):
            yield field.name, not value
        elif isinstance(value, int):
            for other in dict.fromkeys((value // 2, value * 2, value - 1, value + 1)):
                if other >= 0 and other != value:
                    yield field.name, other


def climb(plan: Any, time: Time, rounds: int = 2) -> tuple[Any, float, float, int, int]:
    """Change one field at a time for the better, round after round, until nothing helps.

    Returns:
        (best schedule, its us, us of `plan`, schedules tried, of them illegal).
    """
    first = best_us = time(plan)
    best, tried, illegal = plan, 0, 0
    for _ in range(rounds):
        start = best
        for name, value in list(neighbours(start)):
            candidate = replace(best, **{name: value})
            tried += 1
            try:
                us = time(candidate)
            except Illegal:
                illegal += 1
                continue
            if us < best_us * (1 - LEAST_GAIN / 4):
                best, best_us = candidate, us
        if best == start:
            break
    return best, best_us, first, tried, illegal


def tune_schedules(path: Path, fresh: bool, kernel: str | None) -> None:
    """Search each task that `path` does not know yet; `fresh` forgets what it knows."""
    known: list[dict[str, Any]] = []
    if path.exists():
        known = json.loads(path.read_text())["entries"]
    if fresh:
        known = [e for e in known if kernel is not None and e["kernel"] != kernel]
    done = [{key: e[key] for key in ("kernel", "generation", "dtype", "shape")} for e in known]
    bar = tqdm([task for task in tasks() if kernel in (None, task.kernel)], unit="shape")
    for task in bar:
        if task.about in done:
            continue
        bar.set_description(f"{task.kernel} {task.generation} {task.dtype}")
        best, us, rule_us, tried, illegal = climb(task.plan, task.time)
        gained = us <= rule_us * (1 - LEAST_GAIN)
        known.append(
            {
                **task.about,
                "changes": {
                    key: value
                    for key, value in vars(best).items()
                    if gained and value != getattr(task.plan, key)
                },
                "us": round(us if gained else rule_us, 2),
                "rule_us": round(rule_us, 2),
                "tried": tried,
                "illegal": illegal,
            }
        )
        write(
            path,
            {"written_by": "python -m nki_kernels.tune schedules", "entries": known},
        )
    for e in known:
        shape = " ".join(f"{key}={value}" for key, value in e["shape"].items())
        print(
            f"{e['kernel']:22} {e['generation']} {e['dtype']} {shape}: {e['rule_us']:.1f} ->"
            f" {e['us']:.1f} us {e['changes'] or ''} ({e['tried']} tried, {e['illegal']} illegal)"
        )


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def main() -> None:
    """Run one search."""
    parser = argparse.ArgumentParser(
        prog="python -m nki_kernels.tune", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("what", choices=("switch", "schedules"))
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--kernel", help="schedules: this kernel alone, as flash_attention")
    options = parser.parse_args()
    try:
        if options.what == "switch":
            tune_switch(switch.FILE, options.fresh)
        else:
            tune_schedules(tuned.FILE, options.fresh, options.kernel)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
