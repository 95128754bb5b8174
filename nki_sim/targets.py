"""The NeuronCore generations that can be simulated, with the sizes that are legal on each.

The numbers and the public document behind each stand in ``data/targets.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PARTITIONS = 128
"""Partitions of SBUF and PSUM, on every generation (trainium_inferentia2_arch.rst)."""

PSUM_BANKS = 8
PSUM_BANK_BYTES = 2048
PSUM_PARTITION_BYTES = PSUM_BANKS * PSUM_BANK_BYTES
"""PSUM of one partition: 8 banks of 2 KiB, on every generation (trainium_inferentia2_arch.rst)."""

GENERATIONS = ("gen2", "gen3", "gen4")
OVERRIDE = "NEURON_PLATFORM_TARGET_OVERRIDE"
"""Environment variable that chooses the target, as ``nki.jit`` documents it."""

DEFAULT = "trn3"
"""The target where neither argument, environment nor a Neuron device names one (NKI CPU Simulator
guide)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One NeuronCore generation.

    Attributes:
        generation: "gen2", "gen3" or "gen4".
        version: 2, 3 or 4.
        name: AWS's name of the core.
        instances: instance families that carry it.
        sbuf_bytes_per_partition: physical SBUF of one partition.
        sbuf_usable_bytes_per_partition: what the compiler leaves to kernels.
        moving_fmax, moving_fmax_bf16: largest free size of a matmul's moving tile, by dst dtype.
        matmul_row_tiles: legal row (and column) tile sizes of the tensor engine.
        hwdge: whether hardware descriptor generation exists.
        scalar_bias: whether activation takes a constant bias.
        max_lnc: most physical cores one logical core may have.
    """

    generation: str
    version: int
    name: str
    instances: tuple[str, ...]
    sbuf_bytes_per_partition: int
    sbuf_usable_bytes_per_partition: int
    moving_fmax: int
    moving_fmax_bf16: int
    matmul_row_tiles: tuple[int, ...]
    hwdge: bool
    scalar_bias: bool
    max_lnc: int


@cache
def _table() -> dict[str, Target]:
    raw = json.loads((Path(__file__).parent / "data" / "targets.json").read_text())

    def value(entry: Any) -> Any:
        entry = entry["value"] if isinstance(entry, dict) else entry
        return tuple(entry) if isinstance(entry, list) else entry

    return {
        g: Target(generation=g, **{name: value(entry) for name, entry in raw[g].items()})
        for g in GENERATIONS
    }


@cache
def _names() -> Mapping[str, Target]:
    table = _table()
    names = dict(table)
    for target in table.values():
        names.update(dict.fromkeys(target.instances, target))
    return names


def get_target(target: str | Target | None = None) -> Target:
    """The target of a name; with None, that of ``NEURON_PLATFORM_TARGET_OVERRIDE``, else trn3.

    Args:
        target: a ``Target``, or one of gen2, trn1, inf2, gen3, trn2, gen4, trn3.

    Raises:
        ValueError: for any other name.
    """
    if isinstance(target, Target):
        return target
    origin = "target"
    if target is None:
        target = os.environ.get(OVERRIDE, "").strip()
        origin = OVERRIDE
        if not target:
            target, origin = DEFAULT, "target"
    found = _names().get(target.lower())
    if found is None:
        raise ValueError(
            f"{origin} = {target!r} is not a known target; known are {', '.join(_names())}"
        )
    return found
