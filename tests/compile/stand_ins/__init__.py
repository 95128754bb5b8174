"""torch-neuronx, neuronx-distributed and libneuronxla for tests: their signatures and rules.

`installed()` makes them importable. They hold no Neuron code and compile nothing: a graph is the
list of its operations, and what "runs" is the traced module, on the CPU.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

PACKAGES = Path(__file__).with_name("packages")
NAMES = ("torch_neuronx", "neuronx_distributed", "libneuronxla")


@contextmanager
def installed() -> Iterator[None]:
    """The stand-ins are importable inside, and NKI kernels are written down when they are called.

    Whatever of AWS's is really installed is hidden, and there again afterwards.
    """
    from tests.compile.stand_ins import kernels

    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _ours(name)}
    sys.path.insert(0, str(PACKAGES))
    importlib.invalidate_caches()
    try:
        with mock.patch("nki_kernels.launch.load", kernels.load):
            yield
    finally:
        sys.path.remove(str(PACKAGES))
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]
        sys.modules.update(hidden)
        importlib.invalidate_caches()


def _ours(name: str) -> bool:
    return name.partition(".")[0] in NAMES
