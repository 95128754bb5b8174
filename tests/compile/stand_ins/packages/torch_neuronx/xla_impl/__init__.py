"""Tracing and operators (neuronx_distributed/trace/functions.py, neuronx_distributed/operators)."""

from __future__ import annotations

from torch_neuronx.xla_impl import ops, trace

__all__ = ["ops", "trace"]
