"""The decode kernel's last chunk on NeuronCore-v3, where no state is asked for (closing.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

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
    replace(FULL, logit_scale=2000.0),  # logits up to 1e4
    replace(FULL, logit_scale=2000.0, dtype="float32"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_alone(case: Case) -> None:
    """Odd sizes, heads, dtypes and features; logits of either sign up to 1e4."""
    plain = case.window is None and case.softcap is None and not case.fp8
    for rows in (False, True) if plain else (False,):
        sizes: dict[str, Any] = {"row_chunks": rows, "values_late": 2, "block_slots": 4, "ramp": 1}
        arguments = make(case)
        o = RUN(arguments, "trn2", **sizes)
        expected, _, _ = oracle(arguments)
        assert error(o, expected) <= tolerance(expected, case.dtype, largest_logit(arguments))
