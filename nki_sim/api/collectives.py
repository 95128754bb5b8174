"""Collective communication between cores; the simulator has none yet."""

from __future__ import annotations

from typing import Any, NoReturn


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"nki.collectives.{name}")

    missing.__name__ = name
    return missing
