"""Typed look-ups in a JSON object, with errors that name the field, its value and the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nki_kernels.errors import InputError


class Fields:
    """The fields of a `config.json`, or of an object inside it.

    Args:
        raw: the object.
        where: what errors call it.
        defaults: values of fields that the object does not have. One that it has as null is null.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        where: str = "config.json",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(raw, Mapping):
            raise InputError(f"{where} holds {type(raw).__name__}, not an object of fields")
        self.raw = {**(defaults or {}), **raw}
        self.where = where

    def wrong(self, name: str, rule: str) -> InputError:
        """The error that says that field `name` breaks `rule`."""
        state = f"is {self.raw[name]!r}" if name in self.raw else "is missing"
        return InputError(f"{self.where}: {name} {state}; {rule}")

    def positive_int(self, name: str, default: int | None = None) -> int:
        """An integer of 1 or more."""
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(name, "it must be a positive integer")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.raw.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.wrong(name, "it must be a positive number")
        return float(value)

    def positive_floats(self, name: str) -> tuple[float, ...]:
        """A list of numbers above 0."""
        value = self.raw.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "it must be a list of positive numbers")
        numbers = Fields({f"{name}[{i}]": number for i, number in enumerate(value)}, self.where)
        return tuple(numbers.positive_float(item) for item in numbers.raw)

    def optional_int(self, name: str) -> int | None:
        """An integer of 1 or more, or None."""
        return None if self.raw.get(name) is None else self.positive_int(name)

    def optional_float(self, name: str) -> float | None:
        """A number above 0, or None."""
        return None if self.raw.get(name) is None else self.positive_float(name)

    def optional_str(self, name: str) -> str | None:
        """A string, or None."""
        value = self.raw.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "it must be a string")
        return value

    def boolean(self, name: str) -> bool:
        """True or false; false where it is missing."""
        value = self.raw.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.wrong(name, "it must be true or false")
        return value

    def choices(self, name: str, allowed: Sequence[str], length: int) -> list[str] | None:
        """A list of `length` of the `allowed` words, or None."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or not set(value) <= set(allowed):
            raise self.wrong(name, f"it must be a list of {length}, each of {', '.join(allowed)}")
        return value
