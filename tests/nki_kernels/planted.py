"""Errors planted in the kernels: each changes one place in the source as a careless edit could.

`test_planted.py` shows that the comparison with the oracle turns red for every one;

    python -m tests.nki_kernels.planted

prints a line for each, with the cases that caught it and by how much.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nki_kernels
from nki_kernels import launch
from tests.nki_kernels.cases import (
    Case,
    FlashCase,
    error,
    flash_oracle,
    make,
    make_flash,
    oracle,
    tolerance,
)
from tests.nki_kernels.running import (
    BIFURCATED,
    FLASH,
    bifurcated_options,
    flash_options,
    simulate,
)

STATE = "attention_state"
DECODE = "bifurcated_attention"
PREFILL = "flash_attention"


@dataclass(frozen=True)
class Planted:
    """One planted error: in the kernel.py of `room`, `old` (found once) becomes `new`."""

    name: str
    room: str
    old: str
    new: str


ERRORS = [
    Planted(
        "context mask lets one slot too many through",
        DECODE,
        "op1=nl.greater_equal,\n            operand1=length",
        "op1=nl.greater,\n            operand1=length",
    ),
    Planted(
        "suffix mask lets one slot too many through",
        DECODE,
        "op0=nl.greater_equal, operand0=local[:, 1:2]",
        "op0=nl.greater, operand0=local[:, 1:2]",
    ),
    Planted(
        "suffix mask hides a sample's first token",
        DECODE,
        "op0=nl.less,\n            operand0=local[:, 0:1]",
        "op0=nl.less_equal,\n            operand0=local[:, 0:1]",
    ),
    Planted("tokens of a step see each other's future", DECODE, "offset=t - (n - 1)", "offset=0"),
    Planted("tokens of a step miss themselves", DECODE, "offset=t - (n - 1)", "offset=t - n"),
    Planted(
        "last context block skipped",
        DECODE,
        "for start in range(0, S_ctx, BANK):",
        "for start in range(0, max(S_ctx - BANK, 1), BANK):",
    ),
    Planted(
        "last suffix block skipped",
        DECODE,
        "for start in range(0, samples * S_dec, BANK):",
        "for start in range(0, max(samples * S_dec - BANK, 1), BANK):",
    ),
    Planted(
        "every row tile reads the first one's suffix lengths",
        DECODE,
        "offset=group * r + s), samples)",
        "offset=group * r), samples)",
    ),
    Planted(
        "every group reads the first one's context length",
        DECODE,
        "pattern=[[1, 1], [1, 1]], offset=group)",
        "pattern=[[1, 1], [1, 1]], offset=0)",
    ),
    Planted(
        "every group reads the first one's context values",
        DECODE,
        "heads, group * S_ctx + start, count)",
        "heads, start, count)",
    ),
    Planted(
        "suffix rows of the neighbouring sample",
        DECODE,
        "base = (group * r + s) * S_dec",
        "base = (group * r + max(s - 1, 0)) * S_dec",
    ),
    Planted(
        "query heads interleaved over kv heads",
        DECODE,
        "[width, count], [p * width, heads], [1, width]]\n"
        "    offset = (((group * r + s) * n + t) * h + kv * p + head) * width",
        "[g * width, count], [width, heads], [1, width]]\n"
        "    offset = (((group * r + s) * n + t) * h + kv + head * g) * width",
    ),
    Planted(
        "logits not scaled",
        STATE,
        "bias=shift,\n        scale=scale,",
        "bias=shift,\n        scale=1.0,",
    ),
    Planted(
        "old output not decayed",
        STATE,
        "operand0=decay, op1=nl.add, operand1=product",
        "operand0=1.0, op1=nl.add, operand1=product",
    ),
    Planted(
        "max forgotten between blocks",
        STATE,
        "nisa.tensor_copy(dst=negmax_head, src=shift)",
        "nisa.tensor_copy(dst=shift, src=negmax_head)",
    ),
    Planted(
        "merge swaps the two factors",
        STATE,
        "data1=negmax, data2=negmax_a, op=nl.subtract",
        "data1=negmax, data2=negmax_b, op=nl.subtract",
    ),
    Planted("a row without keys counts its masked slots", STATE, "FLOOR = -1.0e30", "FLOOR = MASK"),
    Planted(
        "weights transposed in the wrong order",
        STATE,
        "stationary=weights[:, c * PARTITIONS : c * PARTITIONS + size]",
        "stationary=weights[:, 0:size]",
    ),
    Planted("output not divided", STATE, "nisa.reciprocal(dst=inverse, data=inverse)", "pass"),
    Planted(
        "diagonal hides itself",
        PREFILL,
        "data=grid, op0=nl.greater, operand0=0.0",
        "data=grid, op0=nl.greater_equal, operand0=0.0",
    ),
    Planted(
        "diagonal lets the next position through",
        PREFILL,
        "data=grid, op0=nl.greater, operand0=0.0",
        "data=grid, op0=nl.greater, operand0=1.0",
    ),
    Planted("no diagonal mask", PREFILL, "if start < block + seen:", "if start < block:"),
    Planted(
        "last key block skipped",
        PREFILL,
        "for block in range(0, last, BANK):",
        "for block in range(0, max(last - BANK, 1), BANK):",
    ),
    Planted(
        "every prompt reads the first one's keys",
        PREFILL,
        "offset=kv * d * slots + prompt * S + block",
        "offset=kv * d * slots + block",
    ),
    Planted(
        "query heads start one a kv head apart",
        PREFILL,
        "offset=((prompt * S + start) * h + kv * p) * d",
        "offset=((prompt * S + start) * h + kv) * d",
    ),
]

DECODE_CASES = [
    Case(m_c=40, m_d=6, b=3, h=4, g=2, d=16, G=2),
    Case(m_c=600, m_d=9, b=2, h=4, g=2, d=16, n=3),
    Case(m_c=20, m_d=9, b=70, h=4, g=2, d=16),
    Case(m_c=40, m_d=6, b=3, h=2, g=1, d=16, G=2, empty="both"),
]
PREFILL_CASES = [FlashCase(2, 140, 4, 2, 16), FlashCase(1, 600, 4, 2, 16)]


def load(planted: Planted | None, room: str, folder: Path) -> Any:
    """The kernel of `room` from copies of the sources in `folder`, with an error planted or none.

    Raises:
        LookupError: the text to change does not stand in the source exactly once.
    """
    package = Path(nki_kernels.__file__).parent
    name = f"planted_{folder.name}"
    modules = {}
    for source in (STATE, room):
        text = (package / source / "kernel.py").read_text()
        if planted is not None and planted.room == source:
            if text.count(planted.old) != 1:
                raise LookupError(f"{planted.name}: {source}/kernel.py holds its text not once")
            text = text.replace(planted.old, planted.new)
        text = text.replace("nki_kernels.attention_state.kernel", f"{name}_{STATE}")
        path = folder / f"{name}_{source}.py"
        path.write_text(text)
        modules[source] = path
    launch.load(*BIFURCATED)  # binds nki
    for source, path in modules.items():
        spec = importlib.util.spec_from_file_location(f"{name}_{source}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return getattr(module, (BIFURCATED if room == DECODE else FLASH)[1])


def differences(kernel: Any, room: str) -> Iterator[tuple[str, float]]:
    """For each case of a room: its name and its error as a multiple of the tolerance."""
    if room == DECODE:
        for case in DECODE_CASES:
            arguments = make(case)
            expected = oracle(arguments)[0]
            actual = simulate(kernel, arguments, **bifurcated_options(arguments))
            yield str(case), error(actual, expected) / tolerance(expected, case.dtype)
    else:
        for flash_case in PREFILL_CASES:
            arguments = make_flash(flash_case)
            expected = flash_oracle(arguments)[0]
            actual = simulate(kernel, arguments, **flash_options(arguments))
            yield str(flash_case), error(actual, expected) / tolerance(expected, flash_case.dtype)


def rooms(planted: Planted) -> list[str]:
    """The kernels that a planted error reaches."""
    return [DECODE, PREFILL] if planted.room == STATE else [planted.room]


def caught(planted: Planted, folder: Path) -> dict[str, float]:
    """The cases that turn red for a planted error, with their errors in tolerances."""
    red: dict[str, float] = {}
    for room in rooms(planted):
        place = folder / room
        place.mkdir()
        kernel = load(planted, room, place)
        red.update({name: size for name, size in differences(kernel, room) if size > 1})
    return red


def main() -> int:
    """Print each planted error and the cases that catch it; 1 if one goes unseen."""
    unseen = 0
    for planted in ERRORS:
        with tempfile.TemporaryDirectory() as folder:
            red = caught(planted, Path(folder))
        unseen += not red
        cases = ", ".join(f"{name} ({size:.3g} x tolerance)" for name, size in red.items())
        print(f"{'caught' if red else 'UNSEEN'}  {planted.room}: {planted.name}: {cases}")
    return 1 if unseen else 0


if __name__ == "__main__":
    raise SystemExit(main())
