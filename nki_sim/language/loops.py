"""Loops that run on the device: bounds and conditions are known at run time only.

The simulator executes every iteration; each instruction's record carries the loops around it.
Tensors declared in a body are fresh in every iteration, so that a body which relies on what the
previous one left there reads NaN, as it might on hardware, where the memory is the same but its
contents are not promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nki_sim import rules
from nki_sim.machine import Core, current
from nki_sim.registers import VirtualRegister


def fori_loop(lower: Any, upper: Any, body_fun: Callable[[Any], Any], step: int = 1) -> None:
    """``body_fun(i)`` for i from ``lower`` to ``upper``, exclusive; i is a read-only register."""
    core = current()
    with _loop(core):
        for i in _bounds(lower, upper, step):
            core.slot[-1] = 0
            body_fun(VirtualRegister(i, frozen=True))


def while_loop(init: VirtualRegister, body_fun: Callable[[Any], Any]) -> None:
    """``r = body_fun(r)`` while r is not zero, from ``init``; the body returns the next condition.

    Raises:
        TypeError: where the condition is not a register.
    """
    core = current()
    condition = _register(init, "init")
    with _loop(core):
        while condition.value != 0:
            core.slot[-1] = 0
            # by value: the body may load into what it gets without touching the caller's register
            condition = _register(body_fun(VirtualRegister(condition.value)), "body_fun's result")


def dynamic_range(start: Any, stop: Any = None, step: int = 1) -> Iterator[VirtualRegister]:
    """The iterations of a device loop, each as a read-only register (removed in NKI 0.7)."""
    core = current()
    lower, upper = (0, start) if stop is None else (start, stop)
    values = _bounds(lower, upper, step)

    def iterate() -> Iterator[VirtualRegister]:
        with _loop(core):
            for i in values:
                core.slot[-1] = 0
                yield VirtualRegister(i, frozen=True)

    return iterate()


def _bounds(lower: Any, upper: Any, step: Any) -> range:
    if isinstance(step, VirtualRegister) or not hasattr(step, "__index__") or step < 1:
        rules.broken(rules.LOOP_STEP, "step", step)
    return range(_bound(lower, "lower"), _bound(upper, "upper"), step)


def _bound(value: Any, name: str) -> int:
    number = value.value if isinstance(value, VirtualRegister) else value
    if isinstance(number, (bool, float)) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} = {value!r} is neither an integer nor a register holding one")
    return int(number)


def _register(value: Any, name: str) -> VirtualRegister:
    if not isinstance(value, VirtualRegister):
        raise TypeError(f"{name} = {value!r} is not a VirtualRegister")
    return value


@contextmanager
def _loop(core: Core) -> Iterator[None]:
    if core.ordered:
        rules.broken(rules.LOOP_NO_REORDER, "loop", "dynamic")
    outside = core.loops
    core.loops = (*outside, core.loop_count)
    core.loop_count += 1
    core.slot[-1] += 1
    core.slot.append(0)
    try:
        yield
    finally:
        core.loops = outside
        core.slot.pop()
