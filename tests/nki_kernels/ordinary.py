"""Running the ordinary kernel, and errors planted in it.

    python -m tests.nki_kernels.ordinary

prints a line for each planted error, with the cases that caught it and by how much.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nki_kernels
from nki_kernels import launch
from nki_kernels.bifurcated_attention import validate as bifurcated_validate
from nki_kernels.cases import Case, error, make, oracle, tolerance
from nki_kernels.ordinary_attention import tuning
from tests.nki_kernels.planted import Planted
from tests.nki_kernels.running import simulate

ORDINARY = ("nki_kernels.ordinary_attention.kernel", "ordinary_attention_kernel")
ROOM = "ordinary_attention"


def options(arguments: dict[str, Any], target: str = "trn1") -> dict[str, int]:
    """The schedule that the operator would choose; the same for every target."""
    shape = bifurcated_validate.validate(**arguments)
    return asdict(tuning.schedule(shape, arguments["q"].element_size()))


ERRORS = [
    Planted(
        "masks let one slot too many through",
        ROOM,
        "op0=nl.greater_equal,\n            operand0=length",
        "op0=nl.greater,\n            operand0=length",
    ),
    Planted(
        "the step's first tokens see its later ones",
        ROOM,
        "offset=start + tokens - 1,",
        "offset=start,",
    ),
    Planted(
        "every sample reads the first one's context",
        ROOM,
        "slots, s // r * S_ctx + start",
        "slots, start",
    ),
    Planted(
        "samples of one prompt read each other's suffix",
        ROOM,
        "return S_dec, slots, s * S_dec + start",
        "return S_dec, slots, s // r * S_dec + start",
    ),
    Planted(
        "samples of a step share a context where each has its own",
        ROOM,
        "(S_ctx if r == 1 else 0)",
        "0",
    ),
    Planted(
        "keys and values of a partition in different orders",
        ROOM,
        "stationary=keys[k][:, pair, :, b]",
        "stationary=keys[k][:, pair, :, blocks - 1 - b]",
    ),
    Planted("last chunk forgotten", ROOM, "for c in range(len(chunks)):", "for c in range(1):"),
    Planted("logits not scaled", ROOM, "scale=scale,\n                reduce_op", "reduce_op"),
    Planted(
        "maximum of one partition taken for that of all",
        ROOM,
        "nisa.tensor_reduce(dst=top, op=nl.maximum, data=turned, axis=1)",
        "nisa.tensor_copy(dst=top, src=turned[:, 0:1])",
    ),
    Planted(
        "a row without keys counts its masked slots", ROOM, "operand1=-FLOOR", "operand1=-MASK"
    ),
    Planted(
        "chunks joined without their factors",
        ROOM,
        "nisa.tensor_tensor(dst=o, data1=o, data2=factor[0:d, :], op=nl.multiply)",
        "pass",
    ),
    Planted("output not divided", ROOM, "nisa.reciprocal(dst=inverse, data=inverse)", "pass"),
]

CASES: list[tuple[Case, dict[str, int]]] = [
    (Case(m_c=40, m_d=6, b=3, h=4, g=2, d=16, G=2), {}),
    (Case(m_c=600, m_d=9, b=1, h=4, g=2, d=16, G=3, n=3, logit_scale=9.0), {"blocks": 3}),
    (Case(m_c=300, m_d=9, b=1, h=2, g=1, d=16, G=5), {"pairs": 3}),
    (Case(m_c=200, m_d=6, b=5, h=2, g=1, d=16, G=2), {"pairs": 3}),
    (Case(m_c=40, m_d=6, b=3, h=2, g=1, d=16, G=2, empty="both"), {}),
    (Case(m_c=700, m_d=6, b=2, h=2, g=1, d=16, logit_scale=3000.0), {}),
]


def load(planted: Planted | None, folder: Path) -> Any:
    """The kernel from a copy of its source in `folder`, with an error planted or none.

    Raises:
        LookupError: the text to change does not stand in the source exactly once.
    """
    text = (Path(nki_kernels.__file__).parent / ROOM / "kernel.py").read_text()
    if planted is not None:
        if text.count(planted.old) != 1:
            raise LookupError(f"{planted.name}: {ROOM}/kernel.py holds its text not once")
        text = text.replace(planted.old, planted.new)
    path = folder / f"planted_{folder.name}.py"
    path.write_text(text)
    launch.load(*ORDINARY)  # binds nki
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, ORDINARY[1])


def differences(kernel: Any) -> Iterator[tuple[str, float]]:
    """For each case its name and its error, in output or sums, as a multiple of the tolerance."""
    for case, changes in CASES:
        arguments = make(case)
        expected, _, total = oracle(arguments)
        o, _, weight = simulate(
            kernel, arguments, return_state=True, **options(arguments) | changes
        )
        sums = error(weight, total) / (1e-4 * float(total.max()))
        yield str(case), max(error(o, expected) / tolerance(expected, case.dtype), sums)


def caught(planted: Planted, folder: Path) -> dict[str, float]:
    """The cases that turn red for a planted error, with their errors in tolerances."""
    kernel = load(planted, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tile left unwritten is NaN, and shows in the result
        return {name: size for name, size in differences(kernel) if size > 1}


def main() -> int:
    """Print each planted error and the cases that catch it; 1 if one goes unseen."""
    unseen = 0
    for planted in ERRORS:
        with tempfile.TemporaryDirectory() as folder:
            red = caught(planted, Path(folder))
        unseen += not red
        cases = ", ".join(f"{name} ({size:.3g} x tolerance)" for name, size in red.items())
        print(f"{'caught' if red else 'UNSEEN'}  {planted.name}: {cases}")
    return 1 if unseen else 0


if __name__ == "__main__":
    raise SystemExit(main())
