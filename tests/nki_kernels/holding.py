"""What decode kernels are held to: the same checks, whichever the kernel and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from nki_kernels.attention_state.reference import MASK, State, finish, merge, resume
from nki_kernels.cases import BITS, Case, error, largest_logit, make, oracle, tolerance
from tests.nki_kernels.running import simulate

Run = Callable[..., Any]
"""Runs a kernel on a case's arguments: run(arguments, target, return_state=..., ...)."""


def runner(kernel: tuple[str, str], options: Callable[..., dict[str, Any]]) -> Run:
    """Runs `kernel` with the options that its operator would choose, and changes to them."""

    def run(arguments: dict[str, Any], target: str = "trn1", **changes: Any) -> Any:
        chosen = options(arguments, target) | changes
        return simulate(kernel, arguments, target, **chosen)

    return run


def marked(cases: list[Case], slow: Callable[[Case], bool]) -> list[Any]:
    """The cases as parameters, those that are `slow` marked so."""
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if slow(case) else [])
        for case in cases
    ]


def hold(run: Run, case: Case, target: str = "trn1", **changes: Any) -> None:
    """Run a case and compare output and statistics with the oracle."""
    arguments = make(case)
    expected, top, total = oracle(arguments)
    o, highest, weight = run(arguments, target, return_state=True, **changes)
    logit = largest_logit(arguments)
    rounding = 4 * 2.0**-24 * logit  # what a logit's own rounding in fp32 does to its weight
    assert o.dtype == arguments["q"].dtype
    assert highest.dtype == weight.dtype == torch.float32
    assert error(o, expected) <= tolerance(expected, case.dtype, logit)
    # A maximum near 0 is a sum of products as large as those of the largest logit.
    np.testing.assert_allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5 + rounding)
    # The sum may be that of the weights as V meets them, rounded to the dtype.
    bits = BITS.get(case.dtype)
    more = 1e-4 if bits is None else 2.0 ** -(bits + 1)
    np.testing.assert_allclose(weight.numpy(), total, rtol=more + rounding)


def dead_slots_change_no_bit(run: Run, case: Case, target: str = "trn1", **changes: Any) -> None:
    """Whatever finite number a dead slot holds, output, max and sum have the same bits."""
    results = [
        run(make(case, poison), target, return_state=True, **changes) for poison in (0.0, 1e4, -3.0)
    ]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def rows_without_keys_are_empty(run: Run, case: Case, dead_rows: int) -> None:
    """A row that sees no key has o = 0, sum = 0 and max = MASK; a case of two groups at least."""
    arguments = make(case)
    o, top, total = run(arguments, return_state=True)
    dead = arguments["suffix_len"] == 0
    dead[arguments["context_len"] > 0] = False
    assert dead.sum() == dead_rows
    assert (o[dead] == 0).all() and (total[dead] == 0).all()
    assert (top[dead] == MASK).all()
    assert (total[~dead] > 0).all()


def returned_states_merge(run: Run) -> None:
    """Attending two halves of a context in two calls and merging is attending the whole."""
    arguments = make(Case(m_c=64, m_d=5, b=3, h=4, g=2, d=16, gap=0))
    expected = oracle(arguments)[0]

    def part(first: int, last: int, **changes: Any) -> State:
        k_ctx = arguments["k_ctx"][:, :, first:last].contiguous()
        v_ctx = arguments["v_ctx"][:, first:last].contiguous()
        length = torch.tensor([last - first], dtype=torch.int32)
        half = {"k_ctx": k_ctx, "v_ctx": v_ctx, "context_len": length, **changes}
        return resume(*run(arguments | half, return_state=True))

    none = torch.zeros_like(arguments["suffix_len"])
    joined = finish(merge(part(0, 40), part(40, 64, suffix_len=none)))
    assert error(joined, expected) <= tolerance(expected, "float32")
