"""An NKI kernel as a traced graph sees it: one custom call, made with the arguments it is given."""

from __future__ import annotations

import inspect
import os
from typing import Any

from torch import Tensor

from nki_kernels import launch

_load = launch.load


class Kernel:
    """A kernel under `nki.jit`: called plainly for one core, as kernel[lnc] for two.

    Arguments are tensors, numbers and tuples (AWS Neuron documentation, nki/guides/
    framework_custom_op.rst and nki/get-started/about/lnc.rst).
    """

    def __init__(self, name: str, parameters: inspect.Signature, lnc: int = 1) -> None:
        self.name, self.parameters, self.lnc = name, parameters, lnc

    def __getitem__(self, lnc: int) -> Kernel:
        if not isinstance(lnc, int) or lnc not in (1, 2):
            raise TypeError(f"kernel[{lnc!r}]: the number of cores is 1 or 2")
        return Kernel(self.name, self.parameters, lnc)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch_neuronx.xla_impl import recording

        bound = self.parameters.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if isinstance(value, Tensor):
                if value.device.type != "xla" or not value.is_contiguous():
                    raise TypeError(f"{name} is on {value.device}, or not contiguous")
            elif not isinstance(value, int | float | bool | str | tuple | None):
                raise TypeError(f"{name} is a {type(value)}: tensors, numbers and tuples only")
        target = os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE")
        recording.note(f"custom-call AwsNeuronCustomNativeKernel {self.name}[{self.lnc}] {target}")
        return recording.expected()


def load(module: str, name: str) -> Any:
    """In the place of `nki_kernels.launch.load`; the kernel itself where no graph is traced."""
    from torch_neuronx.xla_impl import recording

    if not recording.tracing():
        return _load(module, name)
    return Kernel(name, inspect.signature(_load(module, name)))
