"""What counts as computed twice, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.timeline.repeats import repeats
from tests.nki_sim.timeline.kernels import stored, tile

pytestmark = pytest.mark.sim


def found(body: Callable[[Any, Any], Any]) -> list[str]:
    """Opcodes of the repeats in a kernel that has two loaded tiles."""

    def kernel(x: Any, y: Any) -> Any:
        return stored(body(tile(x), tile(y)))

    x = np.zeros((128, 64), np.float32)
    p = nki_sim.profile(kernel, x, x.copy(), shapes_only=True)
    instructions = p.trace.instructions
    return [instructions[k].opcode for k in repeats(instructions)]


def fresh() -> Any:
    return nl.ndarray((128, 64), nl.float32, nl.sbuf)


def product(x: Any, y: Any) -> Any:
    made = fresh()
    nisa.tensor_tensor(made, x, y, nl.multiply)
    return made


def add(a: Any, b: Any) -> Any:
    made = fresh()
    nisa.tensor_tensor(made, a, b, nl.add)
    return made


def test_the_same_product_of_unchanged_tiles() -> None:
    assert found(lambda x, y: add(product(x, y), product(x, y))) == ["tensor_tensor"]


def test_other_operands_or_operators_are_not() -> None:
    assert found(lambda x, y: add(product(x, y), product(y, y))) == []
    assert found(lambda x, y: add(product(x, y), add(x, y))) == []


def test_an_operand_written_in_between() -> None:
    def body(x: Any, y: Any) -> Any:
        first = product(x, y)
        nisa.tensor_scalar(x, x, nl.add, 1.0)
        return add(first, product(x, y))

    assert found(body) == []


def test_a_result_written_in_between() -> None:
    def body(x: Any, y: Any) -> Any:
        first = product(x, y)
        nisa.tensor_scalar(first, first, nl.add, 1.0)
        return add(first, product(x, y))

    assert found(body) == []


def test_a_tile_that_is_written_again() -> None:
    def body(x: Any, y: Any) -> Any:
        first, second = product(x, y), product(x, y)
        nisa.tensor_tensor(second, second, first, nl.add)
        return second

    assert found(body) == []


def test_loads_count_every_time() -> None:
    def kernel(x: Any) -> Any:
        return stored(add(tile(x), tile(x)))

    p = nki_sim.profile(kernel, np.zeros((128, 64), np.float32), shapes_only=True)
    assert repeats(p.trace.instructions) == {}


def test_repeats_cost_nothing_but_at_the_high_end() -> None:
    def kernel(x: Any, times: int) -> Any:
        made = tile(x)
        parts = [product(made, made) for _ in range(times)]
        return stored(add(parts[0], parts[-1]))

    x = np.zeros((128, 64), np.float32)
    once = nki_sim.profile(kernel, x, 1, shapes_only=True)
    often = nki_sim.profile(kernel, x, 50, shapes_only=True)
    assert often.total_us == pytest.approx(once.total_us, rel=0.05)
    assert often.high_us > once.high_us + 5
