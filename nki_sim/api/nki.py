"""Top level of NKI: ``jit`` and ``simulate``."""

from __future__ import annotations

from nki_sim.dtypes import DType as dtype
from nki_sim.kernel import Kernel, jit, simulate
from nki_sim.tensor import NkiTensor as tensor

__all__ = ["Kernel", "dtype", "jit", "simulate", "tensor"]
