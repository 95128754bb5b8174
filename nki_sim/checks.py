"""Checks that many instructions share: what an operand may be, and how operands must agree."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np

from nki_sim import rules, views
from nki_sim.dtypes import float32
from nki_sim.memory import ON_CHIP, PSUM, SBUF, MemoryRegion
from nki_sim.tensor import NkiTensor

SBUF_ONLY = (SBUF,)
PSUM_ONLY = (PSUM,)


def tensor(t: Any, operand: str) -> NkiTensor:
    """``t`` itself if it is a tensor.

    Raises:
        TypeError: otherwise.
    """
    if t.__class__ is not NkiTensor and not isinstance(t, NkiTensor):
        raise TypeError(f"{operand} = {t!r} is not an NkiTensor")
    return t


def tile(t: Any, operand: str, spaces: tuple[MemoryRegion, ...] = ON_CHIP) -> None:
    """An operand of a compute engine: in a memory it is wired to, on legal partitions.

    Start partitions: trainium_inferentia2_arch.rst, "Tile access start partition".
    """
    tensor(t, operand)
    if t.buffer not in spaces:
        names = " or ".join(s.value for s in spaces)
        rules.broken(rules.OPERAND_SPACE, operand, t.buffer.value, f"takes {names}")
    partitions = t.shape[0]  # at most 128: no on-chip tensor or view of one has more
    info = t.storage.info
    if t.offset or info.partition0:
        start = t.start_partition
        if start % 32 or (partitions > 32 and (start % 64 or (partitions > 64 and start))):
            # a tensor of at most 32 (64) partitions may itself be placed at 32, 64 or 96
            rules.broken(
                rules.START_PARTITION, operand, f"partitions {start}..{start + partitions - 1}"
            )
    if len(t.shape) > 5 and views.merged_dims(t.shape[1:], t.strides[1:]) > 4:
        rules.broken(rules.OPERAND_FREE_DIMS, operand, t.shape)


def same_layout(t: NkiTensor, operand: str, other: NkiTensor, other_name: str) -> None:
    """Equal partitions and equal elements per partition."""
    if t.shape == other.shape:
        return
    if t.shape[0] != other.shape[0]:
        rules.broken(rules.SAME_PARTITIONS, operand, t.shape, f"{other_name} is {other.shape}")
    if t.size != other.size:
        rules.broken(rules.SAME_ELEMENTS, operand, t.shape, f"{other_name} is {other.shape}")


def column(
    t: NkiTensor,
    operand: str,
    data: NkiTensor,
    spaces: tuple[MemoryRegion, ...] = ON_CHIP,
    fp32: bool = False,
) -> None:
    """A vector operand: one element in each partition of ``data``."""
    tile(t, operand, spaces)
    if t.shape[0] != data.shape[0] or t.size != t.shape[0]:
        rules.broken(rules.VECTOR_OPERAND, operand, t.shape, f"data is {data.shape}")
    if fp32 and t.dtype is not float32:
        rules.broken(rules.OPERAND_FP32, operand, t.dtype)


def not_both_psum(a: NkiTensor, a_name: str, b: NkiTensor, b_name: str) -> None:
    """At most one of two inputs in PSUM."""
    if a.buffer is PSUM and b.buffer is PSUM:
        rules.broken(rules.BOTH_PSUM, f"{a_name}, {b_name}", "psum, psum")


def number(value: Any, argument: str) -> None:
    """A compile-time number.

    Raises:
        TypeError: for a tensor, a register or anything else.
    """
    if not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{argument} = {value!r} is not a compile-time number")


def member(value: Any, enum: type[Enum], argument: str) -> None:
    """An enum argument is a member of its enum."""
    if value.__class__ is not enum:
        rules.broken(rules.ENUM, argument, repr(value), f"expects {enum.__name__}")
