"""A kernel whose module is bound to the SDK's ``nki``, loaded again with ours.

The module's source is executed a second time in a private namespace whose ``import nki`` yields the
simulator. Modules that it imports and that use ``nki`` themselves get private copies the same way;
all others are the ones already loaded. ``sys.modules`` stays as it is.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import inspect
import sys
from types import MethodType, ModuleType
from typing import Any

from nki_sim import binding
from nki_sim.errors import SimulatorError
from nki_sim.kernel import Kernel


def rebound(kernel: Any) -> Any:
    """``kernel`` itself where its module uses our ``nki`` (or none), else its twin bound to ours.

    Raises:
        SimulatorError: where the kernel cannot be found again in its module's source.
    """
    if isinstance(kernel, Kernel) and isinstance(kernel.func, (functools.partial, MethodType)):
        inner = rebound(kernel.func)
        return Kernel(inner.func, kernel.lnc, kernel.schedule)
    if isinstance(kernel, functools.partial):
        inner = rebound(kernel.func)
        return Kernel(functools.partial(inner.func, *kernel.args, **kernel.keywords), inner.lnc)
    if isinstance(kernel, MethodType):  # its class came with the object: it cannot be loaded again
        if _bound_elsewhere(kernel.__func__.__globals__):
            raise SimulatorError(f"{kernel!r} is a method whose class is bound to the SDK's nki")
        return Kernel(kernel)
    if isinstance(kernel, Kernel):
        function, lnc = kernel.func, kernel.lnc
    elif inspect.isfunction(vars(type(kernel)).get("__call__")) and not _holds(kernel):
        return rebound(kernel.__call__)
    else:
        function, lnc = _plain_function(kernel), int(_grid(kernel))
    module = sys.modules.get(function.__module__)
    if not _bound_elsewhere(function.__globals__):
        return kernel if isinstance(kernel, Kernel) else Kernel(function, lnc)
    if module is None or "<locals>" in function.__qualname__:
        raise SimulatorError(
            f"kernel {function.__qualname__} is bound to the SDK's nki and cannot be loaded again: "
            "define it at the top level of an importable module"
        )
    twin: Any = Loader().load(module)
    for part in function.__qualname__.split("."):
        twin = getattr(twin, part)
    found = twin.func if isinstance(twin, Kernel) else twin
    return Kernel(found, lnc)


def _holds(kernel: Any) -> Any:
    """What an object that wraps a function calls it, where it does."""
    names = ("func", "fn", "__wrapped__", "_func", "_fn")
    return next((inner for n in names if (inner := getattr(kernel, n, None)) is not None), None)


def _plain_function(kernel: Any) -> Any:
    """The Python function inside the SDK's kernel object."""
    inner = kernel
    for _ in range(8):
        if inspect.isfunction(inner):
            return inner
        if (inner := _holds(inner)) is None:
            break
    raise SimulatorError(f"kernel = {kernel!r} holds no Python function")


def _grid(kernel: Any) -> int:
    """The number of cores in an SDK kernel's launch grid."""
    for name in ("lnc", "grid", "_grid"):
        value = getattr(kernel, name, None)
        if isinstance(value, (tuple, list)) and len(value) == 1:
            value = value[0]
        if isinstance(value, int) and value >= 1:
            return value
    return 1


def _bound_elsewhere(names: dict[str, Any]) -> bool:
    """Whether a namespace holds an ``nki`` module, or something out of one, that is not ours."""
    for value in list(names.values()):
        origin = (
            value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        )
        if not isinstance(origin, str) or not (origin == "nki" or origin.startswith("nki.")):
            continue
        owner = value if isinstance(value, ModuleType) else sys.modules.get(origin)
        if not getattr(owner, "__simulator__", False):
            return True
    return False


class Loader:
    """Private copies of modules with ``nki`` resolved to the simulator."""

    def __init__(self) -> None:
        self._nki = binding.build_modules()
        self._copies: dict[str, ModuleType] = {}

    def load(self, module: ModuleType) -> ModuleType:
        """A private copy of an imported module."""
        name = module.__name__
        if name in self._copies:
            return self._copies[name]
        source = inspect.getsource(module)
        copy = ModuleType(name, module.__doc__)
        copy.__file__ = module.__file__
        copy.__package__ = module.__package__
        copy.__spec__ = module.__spec__
        if hasattr(module, "__path__"):
            copy.__path__ = module.__path__
        scope = dict(vars(builtins))
        scope["__import__"] = self._import
        copy.__dict__["__builtins__"] = scope
        self._copies[name] = copy
        exec(compile(source, module.__file__ or name, "exec"), copy.__dict__)
        return copy

    def _import(
        self,
        name: str,
        names: dict[str, Any] | None = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        if level:
            package = (names or {}).get("__package__") or ""
            name = importlib.util.resolve_name("." * level + name, package)
        if name == "nki" or name.startswith("nki."):
            if name not in self._nki:
                raise ModuleNotFoundError(f"the simulator has no module {name!r}", name=name)
            return self._nki[name] if fromlist else self._nki["nki"]
        module = importlib.import_module(name)
        if not fromlist:
            top = name.partition(".")[0]
            return self._twin(sys.modules[top])
        twin = self._twin(module)
        for item in fromlist:
            if item != "*" and not hasattr(twin, item):
                try:
                    setattr(twin, item, self._twin(importlib.import_module(f"{name}.{item}")))
                except ModuleNotFoundError:
                    continue
        return twin

    def _twin(self, module: ModuleType) -> ModuleType:
        if module.__name__ in self._copies or _bound_elsewhere(vars(module)):
            return self.load(module)
        return module
