"""Scalar registers of the sequencers, and the ``nl.ds`` slice object."""

from __future__ import annotations

from typing import Any

from nki_sim import rules
from nki_sim.objects import NKIObject


class VirtualRegister(NKIObject):
    """A 32-bit scalar that exists at run time: loop bound, condition, or dynamic offset.

    Its value is not a compile-time integer. As with AWS's parser front end it may stand as the
    condition of ``while``/``if`` and as a loop bound; it does not turn into a Python ``int`` (NKI
    0.6 stub, ``nki.isa.VirtualRegister``).
    """

    _nki_native_ = True
    __slots__ = ("_first", "_value", "frozen")

    def __init__(self, state: Any = None, frozen: bool = False) -> None:
        self._value = self._first = None if state is None else _wrap32(state)
        self.frozen = frozen

    @property
    def value(self) -> Any:
        """The number held: an integer, or a float loaded from a float tensor.

        Raises:
            ValueError: where nothing was ever moved or loaded into the register.
        """
        if self._value is None:
            raise ValueError("the register is read before anything was moved or loaded into it")
        return self._value

    def restart(self) -> None:
        """Go back to the value the register was allocated with."""
        self._value = self._first

    def write(self, value: Any) -> None:
        """Replace the value, as the register instructions do."""
        if self.frozen:
            rules.broken(rules.REGISTER_FROZEN, "dst", self)
        self._value = _wrap32(value)

    def __bool__(self) -> bool:
        return self.value != 0

    def __int__(self) -> int:
        raise TypeError(
            "a VirtualRegister holds a run-time value and does not convert to a Python int; use it "
            "as a loop bound, a condition or a scalar_offset (NKI 0.6 stub, "
            "nki.isa.VirtualRegister)"
        )

    __index__ = __int__

    def __repr__(self) -> str:
        return f"VirtualRegister({self._value}{', frozen' if self.frozen else ''})"


def _wrap32(value: Any) -> int | float:
    """Check that a number fits 32 bits, signed or not."""
    if isinstance(value, float):
        return value
    value = int(value)
    if not -(2**31) <= value < 2**32:
        raise ValueError(f"register value {value} does not fit 32 bits")
    return value


class DynamicSlice(NKIObject):
    """``nl.ds(start, size)``: ``size`` elements from ``start``, an integer or a register."""

    _nki_native_ = True
    __slots__ = ("size", "start")

    def __init__(self, start: Any, size: int) -> None:
        self.start = start
        self.size = size

    def __repr__(self) -> str:
        return f"nl.ds({self.start}, {self.size})"
