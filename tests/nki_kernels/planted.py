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
PIECES = ("plan", "stages", "features", "suffix", "rows", "kernel")
"""Files of a room, what imports after what it takes."""


@dataclass(frozen=True)
class Planted:
    """One planted error: in a kernel source of `room`, `old` (found once) becomes `new`."""

    name: str
    room: str
    old: str
    new: str


ERRORS = [
    Planted(
        "context mask lets one slot too many through",
        DECODE,
        "op1=nl.greater_equal,\n        operand1=behind",
        "op1=nl.greater,\n        operand1=behind",
    ),
    Planted(
        "context mask of a neighbouring slot",
        DECODE,
        'offset=job["first"] + first * group,\n            ),\n        )\n\n\ndef context_product',
        "offset=first * group,\n            ),\n        )\n\n\ndef context_product",
    ),
    Planted(
        "suffix mask lets one slot too many through",
        DECODE,
        'operand0=job["first"] * 1.0,\n        op1=nl.greater_equal,',
        'operand0=job["first"] * 1.0,\n        op1=nl.greater,',
    ),
    Planted(
        "suffix mask forgets where its chunk starts",
        DECODE,
        'operand0=job["first"] * 1.0,',
        "operand0=0.0,",
    ),
    Planted(
        "a sample sees its neighbour's suffix",
        DECODE,
        "operand0=-FAR",
        "operand0=0.0",
    ),
    Planted(
        "tokens of a step see each other's future",
        DECODE,
        'offset=sizes["n"] - 1 - t',
        'offset=sizes["n"] - 1 - t, channel_multiplier=-1',
    ),
    Planted(
        "tokens of a step miss themselves",
        DECODE,
        'offset=sizes["n"] - 1 - t',
        'offset=sizes["n"] - t',
    ),
    Planted(
        "keys left over from whole blocks skipped",
        DECODE,
        "    if start < slots:\n        blocks.append",
        "    if start == 0 and start < slots:\n        blocks.append",
    ),
    Planted(
        "last slots of the suffixes skipped",
        DECODE,
        'for first in range(0, sizes["slots"], tiles):',
        'for first in range(0, max(sizes["slots"] - 4, 1), tiles):',
    ),
    Planted(
        "every row tile reads the first one's suffix lengths",
        DECODE,
        'offset=room["group"] * r + s,',
        'offset=room["group"] * r,',
    ),
    Planted(
        "every group reads the first one's context length",
        DECODE,
        'shared["context_len"][0:slots, group : group + 1]',
        'shared["context_len"][0:slots, 0:1]',
    ),
    Planted(
        "every group reads the first one's context values",
        DECODE,
        "offset=(kv * width + at) * d",
        "offset=(kv * width + start) * d",
    ),
    Planted(
        "suffix rows of the neighbouring sample",
        DECODE,
        'call["suffix_len"].shape[1] + room["tile"][0])',
        'call["suffix_len"].shape[1] + max(room["tile"][0] - 1, 0))',
    ),
    Planted(
        "logits not scaled",
        DECODE,
        "data=group_logits(chunk, 0, tiles // group),\n        scale=scale,",
        "data=group_logits(chunk, 0, tiles // group),\n        scale=1.0,",
    ),
    Planted(
        "state not decayed",
        DECODE,
        'operand0=chunk["decay"],',
        "operand0=1.0,",
    ),
    Planted(
        "max forgotten between chunks",
        DECODE,
        'data1=found, data2=state["top"][-1], op=nl.maximum',
        "data1=found, data2=found, op=nl.maximum",
    ),
    Planted(
        "shift not taken from the logits",
        DECODE,
        "nisa.memset(dst=minus, value=-1.0)",
        "nisa.memset(dst=minus, value=0.0)",
    ),
    Planted(
        "a row without keys counts its masked slots",
        DECODE,
        "nisa.tensor_scalar(dst=top, data=found, op0=nl.maximum, operand0=FLOOR)",
        "nisa.tensor_copy(dst=top, src=found)",
    ),
    Planted(
        "every tile meets the first one's weights",
        DECODE,
        'weights = tile_weights(job["chunk"], tile, 0, rows)',
        'weights = tile_weights(job["chunk"], 0, 0, rows)',
    ),
    Planted(
        "weights of one tile left out of the sum",
        DECODE,
        'for tile in range(chunk["tiles"]):\n        nisa.nc_matmul(\n            dst=product[:, d',
        "for tile in range(1):\n        nisa.nc_matmul(\n            dst=product[:, d",
    ),
    Planted(
        "decode output not divided",
        DECODE,
        "nisa.reciprocal(dst=inverse, data=inverse)",
        "pass",
    ),
    Planted(
        "query heads interleaved over kv heads",
        DECODE,
        "[width, count], [p * width, heads], [1, width]]\n"
        "    offset = (((group * r + s) * n + t) * h + kv * p + head) * width",
        "[g * width, count], [width, heads], [1, width]]\n"
        "    offset = (((group * r + s) * n + t) * h + kv + head * g) * width",
    ),
    Planted("a row without keys counts its masked slots", STATE, "FLOOR = -1.0e30", "FLOOR = MASK"),
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
    Planted(
        "no diagonal mask",
        PREFILL,
        'columns_of(tile["position"], tile["position"] + rows, key + at, key + end)',
        "0, 0",
    ),
    Planted(
        "range_select lets the next position through",
        PREFILL,
        "pattern=[[1, 1]], offset=reach, channel_multiplier=1",
        "pattern=[[1, 1]], offset=reach + 1, channel_multiplier=1",
    ),
    Planted(
        "range_select keeps a key that the window has left",
        PREFILL,
        'lowest = reach - call["window"] + 1',
        'lowest = reach - call["window"]',
    ),
    Planted(
        "window hides one key too many",
        PREFILL,
        "op0=nl.less_equal, operand0=127.0",
        "op0=nl.less_equal, operand0=128.0",
    ),
    Planted(
        "window starts a tile late",
        PREFILL,
        "(position - window + 1) // PARTITIONS * PARTITIONS",
        "(position - window + PARTITIONS) // PARTITIONS * PARTITIONS",
    ),
    Planted(
        "soft-capped logits are masked one position late",
        PREFILL,
        'offset=tile["position"] - low,',
        'offset=tile["position"] - low + 1,',
    ),
    Planted(
        "last key block skipped",
        PREFILL,
        "in range(low // key_block * key_block, high, key_block):",
        "in range(low, max(high - key_block, low + 1), key_block):",
    ),
    Planted(
        "every prompt reads the first one's keys",
        PREFILL,
        'return block["prompt"] * slots + begin,',
        "return begin,",
    ),
    Planted(
        "query heads start one a kv head apart",
        PREFILL,
        '* h + tiles[0]["kv"] * p) * d',
        '* h + tiles[0]["kv"]) * d',
    ),
    Planted("stored keys forgotten", PREFILL, "position = start + row", "position = row"),
    Planted(
        "old output not decayed between blocks",
        PREFILL,
        'operand0=unit["decay"],\n            op1=nl.add,\n            operand1=o,',
        "operand0=1.0,\n            op1=nl.add,\n            operand1=o,",
    ),
    Planted(
        "old sum not decayed between blocks",
        PREFILL,
        'operand0=unit["decay"],\n            op1=nl.add,\n            operand1=total,',
        "operand0=1.0,\n            op1=nl.add,\n            operand1=total,",
    ),
    Planted(
        "decay against the new maximum alone",
        PREFILL,
        'unit["before"] = state["shift"]',
        'unit["before"] = shift',
    ),
    Planted(
        "sum of the first exponentials alone",
        PREFILL,
        'for more in unit["sums"][1:]:',
        'for more in unit["sums"][2:]:',
    ),
    Planted(
        "every chunk meets the piece's first values",
        PREFILL,
        "moving=values[first + c][0:keys, :]",
        "moving=values[first][0:keys, :]",
    ),
    Planted(
        "the DMA turns the block's first piece again and again",
        PREFILL,
        'offset=span["column"],\n',
        "offset=0,\n",
    ),
    Planted(
        "sink left out of the sum",
        PREFILL,
        'nisa.tensor_tensor(dst=total, data1=total, data2=unit["extra"], op=nl.add)',
        "pass",
    ),
    Planted(
        "every head has the first one's sink",
        PREFILL,
        'head = unit["tile"]["kv"] * call["p"] + unit["head"]',
        "head = 0",
    ),
    Planted(
        "soft cap bends unscaled logits",
        PREFILL,
        'scale=call["scale"] / call["softcap"]',
        'scale=1.0 / call["softcap"]',
    ),
    Planted(
        "weights of unscaled logits",
        PREFILL,
        'bias=unit["shift"],\n        scale=call["factor"],\n        reduce_op',
        'bias=unit["shift"],\n        scale=1.0,\n        reduce_op',
    ),
    Planted(
        "second half of a wide head left out of q·K",
        PREFILL,
        "for i in range(len(queries)):",
        "for i in range(1):",
    ),
]

DECODE_CASES = [
    Case(m_c=40, m_d=6, b=3, h=4, g=2, d=16, G=2),
    Case(m_c=1100, m_d=9, b=2, h=4, g=2, d=16, n=3, G=2, seed=3),
    Case(m_c=20, m_d=9, b=70, h=4, g=2, d=16),
    Case(m_c=40, m_d=6, b=3, h=2, g=1, d=16, G=2, empty="both"),
]
DECODE_SIZES = {"chunk_columns": 32}  # several chunks a block
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


def differences(kernel: Any, room: str) -> Iterator[tuple[str, float]]:
    """For each case of a room: its name and its error as a multiple of the tolerance."""
    if room == DECODE:
        for case in DECODE_CASES:
            arguments = make(case)
            expected = oracle(arguments)[0]
            options = bifurcated_options(arguments) | DECODE_SIZES
            actual = simulate(kernel, arguments, **options)
            yield str(case), error(actual, expected) / tolerance(expected, case.dtype)
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
