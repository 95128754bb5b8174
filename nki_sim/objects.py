"""``NKIObject``, the base class of what a kernel may hold, with the constructor NKI generates.

The language guide ("Class Support") says that NKI builds ``__init__`` from the class body: every
class attribute, annotated or not, becomes an optional keyword, required fields may be left out,
and ``__post_init__`` runs last. Plain Python has no such rule, so a metaclass applies it.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from typing import Any


class _NkiMeta(type):
    """Builds instances of kernel-side classes the way the NKI compiler does."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__dict__.get("_nki_native_", False):
            return super().__call__(*args, **kwargs)
        for klass in cls.__mro__:
            init = klass.__dict__.get("__init__")
            if init is not None and klass is not NKIObject and klass is not object:
                if dataclasses.is_dataclass(klass) and "__init__" not in _written_inits(klass):
                    break  # the dataclass-generated constructor gives way to NKI's own
                return super().__call__(*args, **kwargs)
        return _construct(cls, args, kwargs)


def _written_inits(klass: type) -> tuple[str, ...]:
    """("__init__",) where the class body itself wrote one.

    A dataclass keeps its own generated one apart.
    """
    init = klass.__dict__["__init__"]
    generated = getattr(init, "__qualname__", "").endswith("__create_fn__.<locals>.__init__") or (
        getattr(getattr(init, "__code__", None), "co_filename", "") == "<string>"
    )
    return () if generated else ("__init__",)


def _fields(cls: type) -> dict[str, Any]:
    """Field names as declared, bases first, each with its default (None where it has none)."""
    fields: dict[str, Any] = {}
    for klass in reversed(cls.__mro__):
        if klass in (object, NKIObject):
            continue
        for name in inspect.get_annotations(klass):
            fields.setdefault(name, None)
        for name, value in klass.__dict__.items():
            if name.startswith("__") or (callable(value) and name not in fields):
                continue
            if isinstance(value, (property, staticmethod, classmethod, types.MemberDescriptorType)):
                continue
            if name in fields or not name.startswith("_"):
                fields[name] = value
        for field in dataclasses.fields(klass) if dataclasses.is_dataclass(klass) else ():
            if field.default is not dataclasses.MISSING:
                fields[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                fields[field.name] = field.default_factory
    return fields


def _construct(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    factories = {
        f.name: f.default_factory
        for f in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
        if f.default_factory is not dataclasses.MISSING
    }
    fields = _fields(cls)
    if len(args) > len(fields):
        raise TypeError(f"{cls.__name__}() takes {len(fields)} arguments, {len(args)} were given")
    given = dict(zip(fields, args, strict=False))
    for name, value in kwargs.items():
        if name not in fields:
            raise TypeError(
                f"{cls.__name__}() has no field {name!r}; its fields are {list(fields)}"
            )
        if name in given:
            raise TypeError(f"{cls.__name__}() got two values for {name!r}")
        given[name] = value
    self = cls.__new__(cls)
    for name, default in fields.items():
        if name in given:
            value = given[name]
        elif name in factories:
            value = factories[name]()
        else:
            value = default
        object.__setattr__(self, name, value)  # also for frozen dataclasses
    post = getattr(self, "__post_init__", None)
    if post is not None:
        post()
    return self


class NKIObject(metaclass=_NkiMeta):
    """Base class of kernel-side classes and configuration objects."""

    __slots__ = ("__dict__",)

    def __init__(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            object.__setattr__(self, name, value)
