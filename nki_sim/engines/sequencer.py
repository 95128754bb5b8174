"""The engines' sequencers: scalar registers."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.errors import ShapesOnlyError
from nki_sim.machine import current, sequenced
from nki_sim.memory import PSUM
from nki_sim.registers import VirtualRegister
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction, kernel_line


def register_alloc(x: int | None = None) -> VirtualRegister:
    """A new register, empty or holding the integer ``x``."""
    current()
    if x is not None and (isinstance(x, bool) or not hasattr(x, "__index__")):
        raise TypeError(
            f"x = {x!r} is neither None nor an integer; load tensors with register_load"
        )
    return VirtualRegister(None if x is None else int(x.__index__()))


@sequenced
def register_move(dst: VirtualRegister, src: Any) -> NkiInstruction:
    """``dst = src``, an integer or another register."""
    core = current()
    _check(dst, "dst")
    if not isinstance(src, VirtualRegister) and not hasattr(src, "__index__"):
        raise TypeError(f"src = {src!r} is neither an integer nor a VirtualRegister")
    made = core.issue("sync", "register_move", (), (), 1)
    dst.write(src.value if isinstance(src, VirtualRegister) else int(src))
    return made


@sequenced
def register_load(dst: VirtualRegister, src: NkiTensor) -> NkiInstruction:
    """Load the only element of an HBM or SBUF tensor."""
    core = current()
    _check(dst, "dst")
    _check_scalar(src, "src")
    if core.launch.shapes_only:
        raise ShapesOnlyError(
            f"{kernel_line()}: register_load reads data, and a launch that records shapes only has "
            "none: record this kernel with arithmetic"
        )
    made = core.issue("sync", "register_load", (), (("src", src),), 1)
    value = src.values.reshape(-1)[0]
    dst.write(float(value) if src.dtype.is_float else int(value))
    return made


@sequenced
def register_store(dst: NkiTensor, src: VirtualRegister) -> NkiInstruction:
    """Store a register into the only element of an HBM or SBUF tensor."""
    core = current()
    _check(src, "src")
    _check_scalar(dst, "dst")
    made = core.issue("sync", "register_store", (("dst", dst),), (), 1)
    value = src.value
    if dst.dtype.is_int:
        bits = int(value) & ((1 << dst.dtype.bits) - 1)
        dst.values[...] = np.array(bits, f"u{dst.dtype.itemsize}").view(dst.dtype.numpy)
    else:
        dst.values[...] = value
    return made


def _check(register: Any, argument: str) -> None:
    if not isinstance(register, VirtualRegister):
        raise TypeError(f"{argument} = {register!r} is not a VirtualRegister")


def _check_scalar(t: Any, argument: str) -> None:
    checks.tensor(t, argument)
    if t.size != 1 or t.dtype.itemsize > 4:
        rules.broken(rules.REGISTER_ONE, argument, f"{t.shape} {t.dtype}")
    if t.buffer is PSUM:
        rules.broken(rules.OPERAND_SPACE, argument, "psum", "registers reach HBM and SBUF")
