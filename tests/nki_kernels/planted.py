"""Errors planted in the kernels: each changes one place in the source as a careless edit could.

`test_planted.py` shows that the comparison with the oracle turns red for every one;

    python -m tests.nki_kernels.planted

prints a line for each, with the cases that caught it and by how much.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import nki_kernels
from nki_kernels import launch
from nki_kernels.cases import (
    Case,
    FlashCase,
    error,
    flash_oracle,
    largest_logit,
    make,
    make_flash,
    oracle,
    tolerance,
)
from tests.nki_kernels.planted_errors import DECODE, ERRORS, PREFILL, STATE, Planted
from tests.nki_kernels.running import (
    BIFURCATED,
    FLASH,
    bifurcated_options,
    flash_options,
    simulate,
)

PIECES = (
    "plan",
    "timetable",
    "stages",
    "features",
    "suffix",
    "rows",
    "loads",
    "context",
    "row_chunks",
    "closing",
    "kernel",
)
"""Files of a room, what imports after what it takes."""

DECODE_CASES = [
    Case(m_c=300, m_d=20, b=3, h=4, g=2, d=16, n=3, G=2, window=12, logit_scale=3.0),
    Case(
        m_c=40,
        m_d=6,
        b=3,
        h=4,
        g=2,
        d=160,
        softcap=2.0,
        logit_scale=9.0,
        sinks=True,
        fp8=True,
        seed=2,
    ),
    Case(m_c=40, m_d=6, b=3, h=4, g=2, d=140, fp8=True, logit_scale=3.0),
    Case(m_c=300, m_d=6, b=3, h=2, g=1, d=16, n=2, window=200, position=True, softcap=2.0),
    Case(m_c=300, m_d=6, b=2, h=2, g=1, d=16, dtype="float16", logit_scale=4e3),
    Case(m_c=1100, m_d=6, b=2, h=2, g=1, d=16, logit_scale=9.0),  # two cores share the context
    Case(m_c=40, m_d=6, b=3, h=4, g=2, d=16, G=2),
    Case(m_c=1100, m_d=9, b=2, h=4, g=2, d=16, n=3, G=2, seed=3),
    Case(m_c=20, m_d=9, b=70, h=4, g=2, d=16),
    Case(m_c=40, m_d=6, b=3, h=2, g=1, d=16, G=2, empty="both"),
]
DECODE_SIZES = {"chunk_columns": 32, "join_slots": 1024}  # several chunks a block
ROWS_CASES = [
    Case(m_c=1300, m_d=5, b=32, h=4, g=1, d=32, dtype="bfloat16", gap=0),
    Case(m_c=1300, m_d=5, b=32, h=4, g=1, d=32, dtype="bfloat16", G=2, logit_scale=6.0),
    Case(m_c=300, m_d=8, b=32, h=4, g=1, d=32, dtype="bfloat16", fp8=True, logit_scale=3.0),
    Case(
        m_c=300,
        m_d=9,
        b=32,
        h=4,
        g=1,
        d=32,
        dtype="bfloat16",
        window=12,
        softcap=2.0,
        logit_scale=4.0,
    ),
]
ROWS_SIZES = {  # query rows on partitions; several units, each several blocks
    "row_chunks": True,
    "block_slots": 2,
    "ramp": 1,
    "unit_slots": 4,
    "resident_slots": 8,
}
SPLIT_SIZES = {"split_units": True, "start_jobs": 1, "lag": 4, "turn_lag": 2}
PREFILL_CASES = [
    FlashCase(2, 140, 4, 2, 16),
    FlashCase(1, 300, 4, 2, 16, "bfloat16", start=300),
    FlashCase(1, 140, 2, 1, 160, window=150, start=200, sinks=True),
    FlashCase(1, 140, 2, 2, 16, softcap=2.0, logit_scale=4.0),
]
PREFILL_SIZES = {"key_block": 512, "piece": 256, "exponentials": 256}


def load(planted: Planted | None, room: str, folder: Path) -> Any:
    """The kernel of `room` from copies of the sources in `folder`, with an error planted or none.

    Raises:
        LookupError: the text to change does not stand in the source exactly once.
    """
    package = Path(nki_kernels.__file__).parent
    name = f"planted_{folder.name}"
    sources = [
        (source, path.stem, path.read_text())
        for source in (STATE, room)
        for path in (package / source / f"{stem}.py" for stem in PIECES)
        if path.exists()
    ]
    if planted is not None and planted.room in (STATE, room):
        texts = [text for source, _, text in sources if source == planted.room]
        if sum(text.count(planted.old) for text in texts) != 1:
            raise LookupError(f"{planted.name}: {planted.room} holds its text not once")
    launch.load(*BIFURCATED)  # binds nki
    for source, stem, text in sources:
        if planted is not None and planted.room == source:
            text = text.replace(planted.old, planted.new)
        for other, part, _ in sources:
            text = text.replace(
                f"nki_kernels.{other}.{part} import", f"{name}_{other}_{part} import"
            )
        path = folder / f"{name}_{source}_{stem}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return getattr(module, (BIFURCATED if room == DECODE else FLASH)[1])


def decode_runs() -> Iterator[tuple[Case, str, int, dict[str, Any]]]:
    """(case, target, cores, sizes) of each run of the decode kernel."""
    for case in DECODE_CASES:
        for target, lnc in (("trn1", 1), ("trn2", 2)):
            yield case, target, lnc, DECODE_SIZES | {"return_state": True}
    for case in ROWS_CASES:
        yield case, "trn1", 1, ROWS_SIZES
        yield case, "trn2", 1, ROWS_SIZES | SPLIT_SIZES


def differences(kernel: Any, room: str) -> Iterator[tuple[str, float]]:
    """For each case of a room: its name and its error as a multiple of the tolerance."""
    if room == DECODE:
        for case, target, lnc, sizes in decode_runs():
            arguments = make(case)
            expected, top, _ = oracle(arguments)
            options = bifurcated_options(arguments, target) | sizes
            found = simulate(kernel, arguments, target, lnc=lnc, **options)
            size = error(found[0] if "return_state" in sizes else found, expected)
            size /= tolerance(expected, case.dtype, largest_logit(arguments))
            if "return_state" in sizes:
                size = max(size, error(found[1], top) / (1e-4 * float(np.abs(top).max())))
            yield f"{case} on {lnc} of {target}", size
    else:
        for flash_case, target in itertools.product(PREFILL_CASES, ("trn1", "trn2")):
            arguments = make_flash(flash_case)
            expected = flash_oracle(arguments)[0]
            options = flash_options(arguments, target) | PREFILL_SIZES
            actual = simulate(kernel, arguments, target, **options)
            name = f"{flash_case} on {target}"
            yield name, error(actual, expected) / tolerance(expected, flash_case.dtype)


def rooms(planted: Planted) -> list[str]:
    """The kernels that a planted error reaches."""
    return [DECODE, PREFILL] if planted.room == STATE else [planted.room]


def caught(planted: Planted, folder: Path) -> Iterator[tuple[str, float]]:
    """The cases that turn red for a planted error, with their errors in tolerances."""
    for room in rooms(planted):
        place = folder / room
        place.mkdir()
        kernel = load(planted, room, place)
        yield from ((name, size) for name, size in differences(kernel, room) if size > 1)


def main() -> int:
    """Print each planted error and the cases that catch it; 1 if one goes unseen."""
    unseen = 0
    for planted in ERRORS:
        with tempfile.TemporaryDirectory() as folder:
            red = dict(caught(planted, Path(folder)))
        unseen += not red
        cases = ", ".join(f"{name} ({size:.3g} x tolerance)" for name, size in red.items())
        print(f"{'caught' if red else 'UNSEEN'}  {planted.room}: {planted.name}: {cases}")
    return 1 if unseen else 0


if __name__ == "__main__":
    raise SystemExit(main())
