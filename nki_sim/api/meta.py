"""``nki.meta``: the tensor type under the name that shipped kernels annotate with."""

from __future__ import annotations

from nki_sim.tensor import NkiTensor as tensor

__all__ = ["tensor"]
