"""Schedules that the tuner found, and when a call may take one.

`tuned.json` is written by `python -m nki_kernels.tune schedules`. An entry holds for the shape that
it was found at, and for shapes whose every size is at most that and more than half of it: they ask
for no more memory. It says only what differs from the kernel's own rule.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

FILE = Path(__file__).with_name("tuned.json")
DTYPES = {"bfloat16": (2, False), "float32": (4, False), "float8_e4m3fn": (2, True)}
"""dtype of the caches -> (bytes of a number of q, whether the caches' are in 8 bits)."""

Plan = TypeVar("Plan")


@cache
def entries() -> list[dict[str, Any]]:
    """Each with kernel, generation, dtype, shape, changes, us and rule_us."""
    if not FILE.exists():
        return []
    found: list[dict[str, Any]] = json.loads(FILE.read_text())["entries"]
    return found


def holds(found_at: dict[str, int], shape: dict[str, int]) -> bool:
    """Whether a schedule found at one shape may serve another.

    Sizes that `found_at` does not name leave the schedule as it is.
    """
    return all(
        shape[name] == most or most // 2 < shape[name] < most for name, most in found_at.items()
    )


def improve(
    kernel: str, plan: Plan, shape: Any, element_bytes: int, target: str, narrow: bool = False
) -> Plan:
    """A kernel's schedule with what the tuner found for shapes like this one, if anything.

    Args:
        kernel: "bifurcated_attention", "ordinary_attention" or "flash_attention".
        plan: what the kernel's own rule says, a dataclass.
        shape: the call's sizes, a dataclass of ints.
        element_bytes: of q.
        target: trn1, inf2, gen2, trn2, gen3, trn3 or gen4.
        narrow: whether keys and values are in 8 bits.
    """
    from nki_sim.targets import get_target

    about = (kernel, get_target(target).generation)
    numbers = (element_bytes, narrow)
    sizes = {name: size for name, size in vars(shape).items() if isinstance(size, int)}
    for entry in entries():
        if (
            (entry["kernel"], entry["generation"]) == about
            and DTYPES[entry["dtype"]] == numbers
            and holds(entry["shape"], sizes)
        ):
            changed: Plan = replace(plan, **entry["changes"])  # type: ignore[type-var]
            return changed
    return plan
