"""Which ``nki`` is bound: AWS's where the Neuron SDK is installed, ours otherwise.

The public package index carries an empty ``nki`` whose import fails ("WRONG PACKAGE"); it and our
own registration are recognised as not the SDK. Nothing here runs the code of a package to find out
what it is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from nki_sim.errors import BindingError

_NAMES = (
    "nki",
    "nki.language",
    "nki.isa",
    "nki.isa.constants",
    "nki.typing",
    "nki.meta",
    "nki.experimental",
    "nki.collectives",
)


def find_sdk() -> ModuleSpec | None:
    """The spec of the SDK's ``nki``, or None where there is none.

    Only a package with both ``language`` and ``isa`` inside counts: the public stub has neither.
    """
    loaded = sys.modules.get("nki")
    if loaded is not None and not getattr(loaded, "__simulator__", False):
        spec = getattr(loaded, "__spec__", None)
        if spec is not None and (
            hasattr(loaded, "isa") or _is_sdk(spec.submodule_search_locations or ())
        ):
            return spec
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = None if find is None else find("nki", None)
        if spec is not None and spec.origin is not None:
            return spec if _is_sdk(spec.submodule_search_locations or ()) else None
    return None


def _is_sdk(folders: Iterable[str]) -> bool:
    return any(all(_has_module(Path(f), name) for name in ("language", "isa")) for f in folders)


def _has_module(folder: Path, name: str) -> bool:
    return (folder / name / "__init__.py").is_file() or any(folder.glob(f"{name}.*"))


def install() -> ModuleType:
    """Register the simulator as ``nki`` and its submodules; calling it again changes nothing.

    Returns:
        The registered ``nki`` module, with ``__simulator__`` set.

    Raises:
        BindingError: where the SDK's ``nki`` can be imported.
    """
    present = sys.modules.get("nki")
    if present is not None and getattr(present, "__simulator__", False):
        return present
    sdk = find_sdk()
    if sdk is not None:
        raise BindingError(
            f"the Neuron SDK's nki is installed at {sdk.origin}; nki_sim does not replace it. "
            "Use nki_sim.simulate(kernel), which runs on the simulator beside the SDK."
        )
    modules = build_modules()
    sys.modules.update(modules)
    return modules["nki"]


def bind() -> ModuleType:
    """The ``nki`` that kernels get: the SDK's where it is installed, else ours."""
    if find_sdk() is not None:
        return importlib.import_module("nki")
    return install()


def build_modules() -> dict[str, ModuleType]:
    """Fresh modules named ``nki``, ``nki.language``, ... over the simulator's functions."""
    from nki_sim import api

    sources = api.modules()
    made: dict[str, ModuleType] = {}
    for name in _NAMES:
        source, is_package = sources[name]
        module = ModuleType(name, source.__doc__)
        for key, value in vars(source).items():
            if not key.startswith("__") or key == "__getattr__":
                setattr(module, key, value)
        spec = ModuleSpec(name, None, origin=source.__file__, is_package=is_package)
        module.__spec__ = spec
        module.__file__ = source.__file__
        if is_package:
            module.__path__ = []
            module.__package__ = name
        else:
            module.__package__ = name.rpartition(".")[0]
        module.__simulator__ = True  # type: ignore[attr-defined]
        made[name] = module
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    return made
