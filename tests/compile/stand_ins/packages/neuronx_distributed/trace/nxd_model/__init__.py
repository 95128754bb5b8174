"""Stand-in of neuronx_distributed/trace/nxd_model."""

from __future__ import annotations

from neuronx_distributed.trace.nxd_model.nxd_model import NxDModel

__all__ = ["NxDModel"]
