"""Stand-in of torch_neuronx.xla_impl.structure.

Attributes and constructors are those that `NxDModel.save` and `NxDModel.load` use
(neuronx_distributed/trace/nxd_model/nxd_model.py).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


class Flattener:
    """Puts inputs in a graph's order."""

    def __init__(self, layout: Any, exclude: Any = None) -> None:
        self.layout, self.exclude = layout, exclude

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        left_out = set(self.exclude or ())
        return [inputs[i] for i in self.layout if i not in left_out]


class Packer:
    """Puts a graph's outputs in the form that the module gave them."""

    def __init__(self, layout: Any, identifiers: Any, constants: Any) -> None:
        self.layout, self.identifiers, self.constants = layout, identifiers, constants

    def __call__(self, outputs: list[Tensor]) -> Any:
        return tuple(outputs) if isinstance(self.layout, tuple) else outputs[0]
