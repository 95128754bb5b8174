"""Search what the kernels leave open with the timeline, and write it down as data.

    python -m nki_kernels.tune switch                     when bifurcation pays: switch.json
    python -m nki_kernels.tune schedules --out FILE       tile sizes and buffer counts

Both keep what an earlier run has found and write whole files. Numbers are predictions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nki_kernels.errors import InputError
from nki_kernels.ordinary_attention import switch
from nki_kernels.predict import predict
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
    """Fill the table of `path`; `fresh` starts over."""
    found: dict[str, Any] = {}
    if path.exists() and not fresh:
        found = json.loads(path.read_text())["break_even"]
    todo = list(switch_rows())
    for keys, work in tqdm(todo, desc="switch", unit="row"):
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        if keys[-1] in place:
            continue
        place[keys[-1]] = find_break_even(work, keys[0])
        write(
            path,
            {
                "what": "S_ctx from which the bifurcated kernel is predicted faster than the"
                " ordinary one; null: at none of `contexts`",
                "keys": ["generation", "dtype", "g", "n·p", "r"],
                "contexts": CONTEXTS,
                "m_d": SUFFIX,
                "d": 128,
                "written_by": "python -m nki_kernels.tune switch",
                "break_even": found,
            },
        )


def write(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def main() -> None:
    """Run one search."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("switch",))
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    options = parser.parse_args()
    try:
        tune_switch(switch.FILE, options.fresh)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
