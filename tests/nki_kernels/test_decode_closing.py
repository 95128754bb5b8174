"""How a decode call ends on NeuronCore-v3 where no state is asked for (closing.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import nki_sim
from nki_kernels.cases import FEATURES, Case, error, largest_logit, make, oracle, tolerance
from tests.nki_kernels.holding import runner
from tests.nki_kernels.running import BIFURCATED, bifurcated_options

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("error")]

RUN = runner(BIFURCATED, bifurcated_options)
FULL = Case(m_c=1300, m_d=5, b=32, h=4, g=1, d=32, dtype="bfloat16", gap=0)
CASES = [
    *FEATURES,
    Case(m_c=300, m_d=37, b=6, h=4, g=2, d=192),
    Case(m_c=300, m_d=64, b=24, h=8, g=2, d=32, dtype="float16"),
    Case(m_c=300, m_d=37, b=6, h=4, g=2, d=32, dtype="bfloat16", fp8=True, softcap=20.0),
    Case(m_c=300, m_d=37, b=6, h=4, g=2, d=32, dtype="bfloat16", window=50, n=2),
    Case(m_c=300, m_d=40, b=30, h=4, g=1, d=160, dtype="bfloat16", fp8=True),
    replace(FULL, logit_scale=2000.0),  # logits up to 1e4
    replace(FULL, logit_scale=2000.0, dtype="float32"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_alone(case: Case) -> None:
    """Odd sizes, heads, dtypes and features; logits of either sign up to 1e4."""
    plain = case.window is None and case.softcap is None
    for rows in (False, True) if plain else (False,):
        sizes: dict[str, Any] = {"row_chunks": rows, "values_late": 2, "block_slots": 4, "ramp": 1}
        arguments = make(case)
        o = RUN(arguments, "trn2", **sizes)
        expected, _, _ = oracle(arguments)
        assert error(o, expected) <= tolerance(expected, case.dtype, largest_logit(arguments))


SPLIT: dict[str, Any] = {
    "row_chunks": True,
    "split_units": True,
    "block_slots": 2,
    "ramp": 1,
    "unit_slots": 4,
    "resident_slots": 8,
    "ahead": 2,
    "values_late": 1,
    "lag": 4,
    "turn_lag": 2,
    "start_jobs": 1,
}


@pytest.mark.parametrize("resident", [4, 8, 64])
@pytest.mark.parametrize("case", [*CASES[-3:], FULL, replace(FULL, m_c=4, b=50), *FEATURES[:8]])
def test_output_alone_of_split_units(case: Case, resident: int) -> None:
    """As where the state is asked for, whose last sums are not put off."""
    sizes = SPLIT | {"resident_slots": resident}
    arguments = make(case)
    o = RUN(arguments, "trn2", **sizes)
    expected, _, _ = oracle(arguments)
    bound = tolerance(expected, case.dtype, largest_logit(arguments))
    assert error(o, expected) <= bound
    assert error(RUN(arguments, "trn2", return_state=True, **sizes)[0], expected) <= bound


def test_last_sums_are_put_off() -> None:
    """That is what the test above is about."""
    trace = nki_sim.Trace()
    RUN(make(FULL), "trn2", trace=trace, **SPLIT)
    last = [i for i in trace.instructions if i.engine == "vector"][-1]
    assert last.source[0].endswith("closing.py")
