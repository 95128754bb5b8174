"""The shipped kernels in random orders: their dependencies are complete, and needed."""

from __future__ import annotations

import pytest

from nki_kernels import launch
from nki_kernels.cases import Case, FlashCase, make, make_flash
from nki_sim import RuleError
from nki_sim.replay import Replay
from tests.nki_kernels.running import BIFURCATED, FLASH, bifurcated_options, flash_options

pytestmark = pytest.mark.sim

CASES = [
    Case(40, 6, 3, 4, 2, 16, G=2),
    Case(600, 9, 2, 4, 2, 16, n=3),
    Case(130, 5, 40, 4, 1, 32, "bfloat16", empty="suffix"),
    FlashCase(1, 140, 4, 2, 16),
    FlashCase(2, 300, 2, 1, 32),
]


def replayed(case: Case | FlashCase) -> Replay:
    decodes = isinstance(case, Case)
    arguments = make(case) if decodes else make_flash(case)
    options = bifurcated_options(arguments) if decodes else flash_options(arguments)
    kernel = launch.load(*(BIFURCATED if decodes else FLASH))

    def body(*arrays):
        return kernel.func(*arrays, **options)

    return Replay(body, *arguments.values(), target="trn1")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_order_of_a_kernel_gives_the_same_bits(case):
    replay = replayed(case)
    for seed in range(6):
        assert replay.run(seed) == []


@pytest.mark.parametrize("case", [CASES[1], CASES[4]], ids=str)
def test_a_kernel_needs_its_dependencies(case):
    """True ones: the shipped kernels hardly write a tensor twice (``test_replay`` has the rest)."""
    replay = replayed(case)
    thinner = {i: tuple(d for d in deps if d.kind != "true") for i, deps in replay.before.items()}
    assert any(changed(replay, seed, thinner) for seed in range(10))


def changed(replay: Replay, seed: int, before) -> bool:
    """Whether an order changes a result, or breaks a rule, which is as loud."""
    try:
        return replay.run(seed, before) != []
    except RuleError:
        return True
