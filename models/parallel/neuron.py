"""neuronx-distributed as the library of layers, where it is really installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
from typing import Any

from models.parallel.group import Group
from models.parallel.state import Library, TensorParallel
from nki_kernels.errors import InputError

_PACKAGE = "neuronx-distributed"
_OLDEST = (0, 18)  # the public index has an empty package of that name, 0.1


def neuronx_distributed_version() -> str | None:
    """The installed neuronx-distributed of AWS's SDK, or None; the index's stub does not count."""
    try:
        version = importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    return version if tuple(numbers) >= _OLDEST else None


def runs_the_devices(device_type: str) -> bool:
    """Whether neuronx-distributed's layers are to be used on such a device.

    They are on Neuron devices, and on a CPU in the library's own CPU mode (NXD_CPU_MODE=1).
    """
    if neuronx_distributed_version() is None:
        return False
    return device_type == "xla" or (
        device_type == "cpu" and os.environ.get("NXD_CPU_MODE", "0") == "1"
    )


def from_neuronx_distributed() -> TensorParallel:
    """The state that neuronx-distributed is in, inside `NxDParallelState` or after its
    `initialize_model_parallel`.

    Raises:
        InputError: it is not installed, or not initialised.
    """
    if neuronx_distributed_version() is None:
        raise InputError(
            f"neuronx-distributed {_OLDEST[0]}.{_OLDEST[1]} or later (Neuron pip repository) is "
            "not installed"
        )
    from neuronx_distributed.parallel_layers import layers, mappings, parallel_state

    if not parallel_state.model_parallel_is_initialized():
        raise InputError("neuronx-distributed is not initialised: initialize_model_parallel does")

    def subgroup(group: Group, count: int) -> Group:
        parallel_state.destroy_kv_group()  # the library knows one at a time; networks keep theirs
        parallel_state.initialize_kv_group(count, sequential_ranks_in_group=True)
        made: Any = parallel_state.get_kv_shared_group()
        return made

    library = Library("neuronx-distributed", layers, mappings, subgroup)
    return TensorParallel(parallel_state.get_tensor_model_parallel_group(), library)
