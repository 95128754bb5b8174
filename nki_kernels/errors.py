"""The one error that a caller of the kernels can cause: an argument outside what is accepted."""

from __future__ import annotations


class InputError(ValueError):
    """An argument is outside what is accepted; the message names it, its value and the rule."""


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)
