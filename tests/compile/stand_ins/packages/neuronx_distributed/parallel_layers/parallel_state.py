"""Stand-in of neuronx_distributed/parallel_layers/parallel_state.py, of what inference uses."""

from __future__ import annotations

from typing import Any

from torch_neuronx.utils import get_platform_target

from neuronx_distributed.parallel_layers.world import Group

_state: dict[str, Any] = {"tp": None, "world": 1, "kv": None, "aot": False}


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
    context_parallel_size: int = 1,
    expert_model_parallel_size: int = 1,
    skip_collective_init: bool = False,
    lnc_size: int = 1,
    mesh_only: bool = False,
):
    """Groups of consecutive ranks; needs to know which cores are meant."""
    get_platform_target()
    others = pipeline_model_parallel_size, context_parallel_size, expert_model_parallel_size
    if others != (1, 1, 1) or mesh_only:
        raise NotImplementedError("the stand-in has tensor parallelism only")
    if _state["world"] % tensor_model_parallel_size:
        raise RuntimeError("invalid implied data parallel degree")
    _state["tp"] = Group(_consecutive(tensor_model_parallel_size))


def model_parallel_is_initialized() -> bool:
    """Whether there are groups."""
    return _state["tp"] is not None


def get_tensor_model_parallel_group(as_list: bool = False):
    """The group of the ranks that share a network."""
    assert _state["tp"] is not None, "intra_layer_model parallel group is not initialized"
    return _state["tp"].mesh if as_list else _state["tp"]


def get_tensor_model_parallel_size() -> int:
    """How many they are."""
    return get_tensor_model_parallel_group().size()


def initialize_kv_group(kv_shared_group_size: int = 1, sequential_ranks_in_group: bool = False):
    """Groups of ranks that share a key/value head; the library knows one size at a time."""
    if _state["kv"] is not None:
        assert kv_shared_group_size == _state["kv"].size(), (
            "Currently the library supports only single KV size for all layers"
        )
        return
    size = get_tensor_model_parallel_size()
    assert size % kv_shared_group_size == 0
    if sequential_ranks_in_group or get_platform_target() == "trn2":
        mesh = _consecutive(kv_shared_group_size)
    else:
        apart = size // kv_shared_group_size
        mesh = [
            list(range(first + i, first + size, apart))
            for first in range(0, _state["world"], size)
            for i in range(apart)
        ]
    _state["kv"] = Group(mesh)


def get_kv_shared_group(as_list: bool = False):
    """This rank's of them."""
    assert _state["kv"], "kv_shared parallel group is not initialized"
    return _state["kv"].mesh if as_list else _state["kv"]


def destroy_kv_group() -> None:
    """Forgets them; `destroy_model_parallel` does not."""
    _state["kv"] = None


def destroy_model_parallel() -> None:
    """Forgets the groups."""
    _state["tp"] = None


def set_aot_mode(mode: bool):
    """Whether weights are left as they come, because only their shapes matter."""
    _state["aot"] = mode


def get_aot_mode() -> bool:
    """See `set_aot_mode`."""
    return bool(_state["aot"])


def _consecutive(size: int) -> list[list[int]]:
    return [list(range(first, first + size)) for first in range(0, _state["world"], size)]
