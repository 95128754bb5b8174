"""Stand-in for torch-neuronx: what neuronx-distributed's tracing calls of it.

Its source is closed; signatures are those of the calls in neuronx-distributed (files named in each
module) and of AWS's documentation.
"""

from __future__ import annotations

from torch_neuronx import proto, pyhlo, utils, xla_impl

__version__ = "2.9.0.2.15"
__all__ = ["__version__", "proto", "pyhlo", "utils", "xla_impl"]
