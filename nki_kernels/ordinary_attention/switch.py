"""Which decode kernel pays: bifurcated or ordinary, from a table that the timeline made.

`switch.json` holds break-even lengths: for a core generation, element type, kv heads g, query rows
n·p of a kv head and samples r of a prompt, the context slots S_ctx from which the bifurcated kernel
is the faster one (null: never). A call takes the row of the largest g, n·p and r that do not exceed
its own: each of them favours bifurcation. One sample shares nothing; where several query heads
share a kv head the bifurcated kernel is the faster one all the same, by its layout and loads.
`python -m nki_kernels.tune switch` writes the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.errors import require
from nki_kernels.ordinary_attention.validate import refusal

FILE = Path(__file__).with_name("switch.json")
WAYS = ("auto", "bifurcated", "ordinary")
DTYPES = {2: "bfloat16", 4: "float32"}


@dataclass(frozen=True)
class Choice:
    """Which kernel runs, and why in one clause."""

    path: str
    reason: str


@cache
def table() -> dict[str, Any]:
    """generation -> dtype -> g -> n·p -> r -> S_ctx or None; keys as in the file."""
    loaded: dict[str, Any] = json.loads(FILE.read_text())["break_even"]
    return loaded


def decode_path(
    shape: Shape,
    element_bytes: int,
    target: str,
    attention: str = "auto",
    features: Iterable[str] = (),
) -> Choice:
    """The NKI kernel that `bifurcated_attention` runs for a shape, and why.

    Args:
        shape: the call's sizes; S_ctx is that of the buffers, known when a graph is compiled.
        element_bytes: of q: 2 or 4.
        target: trn1, inf2, gen2, trn2, gen3, trn3 or gen4.
        attention: "auto", or the kernel that must run.
        features: names of options that the call asks for, which only the bifurcated kernel has.

    Raises:
        InputError: `attention` is unknown, or names a kernel that does not take the call.
    """
    require(attention in WAYS, f"attention must be one of {', '.join(WAYS)}, got {attention!r}")
    why = refusal(shape)
    for name in features:
        why = f"the ordinary kernel does not have {name}"
    if attention == "ordinary":
        require(why is None, f"attention is 'ordinary', but {why}")
    if attention != "auto":
        return Choice(attention, "asked for")
    if why is not None:
        return Choice("bifurcated", why)
    rows = shape.n * shape.p
    least = break_even(shape.g, rows, shape.r, element_bytes, target)
    samples = f"{shape.r} sample{'s' * (shape.r > 1)} of {rows} row{'s' * (rows > 1)}"
    if least is None:
        return Choice("ordinary", f"with {samples} bifurcation does not pay at any context")
    if shape.S_ctx < least:
        return Choice(
            "ordinary", f"with {samples} bifurcation pays from {least} slots of context on"
        )
    return Choice("bifurcated", f"with {samples} it pays from {least} slots of context on")


def break_even(g: int, rows: int, r: int, element_bytes: int, target: str) -> int | None:
    """The table's S_ctx for sizes not above these; None where bifurcation never pays."""
    from nki_sim.targets import get_target

    generation = get_target(target).generation
    entry: Any = table()["gen3" if generation == "gen4" else generation][DTYPES[element_bytes]]
    for size in (g, rows, r):
        entry = entry[max((key for key in entry if int(key) <= size), key=int)]
    found: int | None = entry
    return found
