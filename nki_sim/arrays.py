"""The caller's NumPy arrays and torch tensors as HBM tensors, without copies where possible.

An argument's bytes are the caller's own, so that what a kernel writes to an HBM argument is seen
by the caller, as in AWS's simulator. torch is only touched where an argument is a torch tensor.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from nki_sim.dtypes import BOOL, DType, as_dtype
from nki_sim.machine import Launch
from nki_sim.memory import PRIVATE_HBM, READ_ONLY, SHARED_HBM, WRITTEN, Storage
from nki_sim.objects import NKIObject
from nki_sim.tensor import NkiTensor


def is_torch(value: Any) -> bool:
    """Whether ``value`` is a torch tensor (without importing torch)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: Any) -> bool:
    """Whether ``value`` becomes an HBM tensor."""
    return isinstance(value, np.ndarray) or is_torch(value)


def replace_arrays(value: Any, name: str, replace: Callable[[Any, str], Any]) -> Any:
    """``value`` with every array in it replaced, and what holds one copied.

    Looks into tuples (named ones too), lists, dictionaries, and the fields of ``NKIObject`` and
    dataclass instances, as NKI does with the arguments of a kernel. ``name`` is where it stands.
    """
    if is_array(value):
        return replace(value, name)
    if isinstance(value, (tuple, list)):
        items = [replace_arrays(v, f"{name}[{i}]", replace) for i, v in enumerate(value)]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        made = {k: replace_arrays(v, f"{name}[{k!r}]", replace) for k, v in value.items()}
        return value if all(made[k] is v for k, v in value.items()) else made
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, type) and (
        (isinstance(value, NKIObject) and not isinstance(value, NkiTensor))
        or dataclasses.is_dataclass(value)
    ):
        fields = getattr(value, "__dict__", {})
        found = {k: replace_arrays(v, f"{name}.{k}", replace) for k, v in fields.items()}
        changed = {k: v for k, v in found.items() if v is not fields[k]}
        if not changed:
            return value
        value = copy.copy(value)
        for k, v in changed.items():
            object.__setattr__(value, k, v)  # also where frozen
    return value


class Argument:
    """One array of the caller while a kernel runs.

    Attributes:
        original: what the caller passed.
        tensor: the HBM tensor the kernel sees.
    """

    def __init__(self, original: Any, launch: Launch, name: str) -> None:
        self.original = original
        array, dtype = _as_numpy(original, name)
        self._array = array
        dense = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        carrier = launch.carrier(dtype)
        if carrier is not None:
            dense = dense.astype(carrier)
        self._copied = dense is not array
        space = SHARED_HBM if launch.lnc > 1 else PRIVATE_HBM
        shape = tuple(array.shape) or (1,)
        info = launch.allocation(space, shape, dtype, name, argument=True)
        state = WRITTEN if array.flags.writeable else READ_ONLY
        storage = Storage(info, dense.reshape(-1).view(np.uint8), state)
        storage.carrier = carrier
        self._dense = dense
        if launch.calls is not None:
            storage.initial = storage.data.copy()
            launch.storages.append(storage)
        self.tensor = NkiTensor(shape, dtype, storage, space, name)

    def finish(self) -> None:
        """Copy back what could not be shared with the caller."""
        if self._copied and self._array.flags.writeable:
            self._array[...] = self._dense.reshape(self._array.shape)


def _as_numpy(value: Any, name: str) -> tuple[np.ndarray, DType]:
    """A NumPy array over the caller's memory, and the NKI dtype of its elements."""
    if isinstance(value, np.ndarray):
        try:
            return value, as_dtype(value.dtype)
        except TypeError as error:
            raise TypeError(f"argument {name}: {error}") from None
    import torch

    if value.device.type != "cpu":
        raise TypeError(
            f"argument {name} is on device {value.device}; the simulator takes CPU tensors"
        )
    flat = value.detach()
    dtype = _torch_dtype(value.dtype, name)
    if dtype.numpy.kind == "V" or not hasattr(
        np, str(dtype)
    ):  # a format NumPy only knows through ml_dtypes
        carrier = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
        return flat.view(carrier).numpy().view(dtype.numpy), dtype
    return flat.numpy(), dtype


def _torch_dtype(dtype: Any, name: str) -> DType:
    text = str(dtype).removeprefix("torch.")
    text = {"bool": "bool_"}.get(text, text)
    try:
        return as_dtype(text)
    except TypeError as error:
        raise TypeError(f"argument {name}: {error}") from None


def to_numpy(t: NkiTensor) -> np.ndarray:
    """The elements of a returned tensor as an array of their own."""
    values = t.values
    if t.dtype.kind == BOOL:
        return values.astype(np.bool_)
    return np.ascontiguousarray(values) if t.covers_storage() else values.copy()


def to_torch(t: NkiTensor) -> Any:
    """The elements of a returned tensor as a torch tensor."""
    import torch

    values = to_numpy(t)
    if values.dtype != t.dtype.numpy and t.storage.carrier is not None:
        return torch.from_numpy(values)
    try:
        return torch.from_numpy(values)
    except TypeError:
        carrier = {1: np.uint8, 2: np.int16, 4: np.int32}[t.dtype.itemsize]
        return torch.from_numpy(values.view(carrier)).view(getattr(torch, str(t.dtype)))
