"""What a graph does, written down: the stand-in of an XLA device.

A module runs on tensors that have a shape, a dtype and the device "xla", and nothing else. Each
operation becomes a line; custom operators of torch.library run their Python body, as they do on an
XLA device; a write into a weight, state or input is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

XLA = torch.device("xla")
_running: list[Recorder] = []

# As torch_xla 2.9.0 counts them ("aten::view_copy.dtype" among its metrics).
ON_THE_HOST = {torch.ops.aten.view.dtype, torch.ops.aten.view_copy.dtype}


class XlaTensor(Tensor):
    """A shape and a dtype that says it is on the device "xla"."""

    inner: Tensor  # on the device "meta"

    @staticmethod
    def __new__(cls, inner: Tensor) -> XlaTensor:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device="meta"
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return XLA

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class Recorder(TorchDispatchMode):
    """Lines of a graph while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.owned: dict[int, str] = {}  # storage -> whose it is
        self.expected: list[Any] = []  # what the custom operators that run now must give

    def own(self, name: str, tensor: XlaTensor) -> None:
        """Says that the graph must not write into `tensor`."""
        self.owned[tensor.inner.untyped_storage()._cdata] = name

    def __enter__(self) -> Recorder:
        _running.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [isinstance(x, XlaTensor) for x in tensors]
        made_here = kwargs.get("device") is not None and kwargs["device"].type == "xla"
        if not (any(here) or made_here):
            return func(*args, **kwargs)
        for x, on_device in zip(tensors, here, strict=True):
            if not on_device and x.dim() > 0:
                raise RuntimeError(f"{func} takes tensors on xla and on {x.device}")
        if func in ON_THE_HOST:
            raise RuntimeError(
                f"{func} is no operation of XLA: the host would run it, and the graph"
            )
        own = OPDEFS.get(func._schema.name)
        if own is not None:
            self.expected.append(_run(func, args, kwargs))
            try:
                with self:
                    return own._init_fn(*args, **kwargs)
            finally:
                self.expected.pop()
        for declared, given in zip(func._schema.arguments, args, strict=False):
            writes = declared.alias_info is not None and declared.alias_info.is_write
            if writes and isinstance(given, XlaTensor):
                owner = self.owned.get(given.inner.untyped_storage()._cdata)
                if owner is not None:
                    raise RuntimeError(f"{func} writes into {owner} in place; rebind it instead")
        result = _run(func, args, kwargs)
        self.lines.append(f"{func} {_shapes(args)} -> {_shapes(result)}")
        return result


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`func` on shapes and dtypes."""

    def inside(x: Any) -> Any:
        if isinstance(x, XlaTensor):
            return x.inner
        if isinstance(x, Tensor):
            return x.to("meta")
        return torch.device("meta") if isinstance(x, torch.device) and x.type == "xla" else x

    with torch._C._DisableTorchDispatch():
        result = func(*pytree.tree_map(inside, args), **pytree.tree_map(inside, kwargs))
        return pytree.tree_map(lambda x: XlaTensor(x) if isinstance(x, Tensor) else x, result)


def note(line: str) -> None:
    """Adds a line that no operation of torch stands for."""
    _recorder().lines.append(line)


def expected() -> Any:
    """Tensors like those that the custom operator gives which runs now."""
    return _recorder().expected[-1]


def tracing() -> bool:
    """Whether a graph is written down at the moment."""
    return bool(_running)


def on_xla(tensor: Tensor) -> XlaTensor:
    """A tensor of that shape and dtype, on the device "xla"."""
    if tensor.device.type == "meta":
        raise RuntimeError("Cannot copy out of meta tensor; no data!")
    return XlaTensor(torch.empty_like(tensor, device="meta"))


def _recorder() -> Recorder:
    if not _running:
        raise RuntimeError("an XLA operator outside a trace")
    return _running[-1]


def _shapes(values: Any) -> str:
    found = [
        f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" if isinstance(x, Tensor) else str(x)
        for x in pytree.tree_leaves(values)
    ]
    return "(" + ", ".join(found) + ")"
