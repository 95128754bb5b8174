"""The Triton kernels without a GPU, in fp32, by Triton's interpreter, against the fp64 oracle.

    TRITON_INTERPRET=1 python -m tests.nki_kernels.test_interpreted

prints a line a case. The interpreter is chosen when Triton is imported, so the test is a process of
its own. It computes fp32 right, and bfloat16 not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nki_kernels.cases import (
    Case,
    decode_pairwise,
    error,
    largest_logit,
    make,
    oracle,
    tolerance,
)

pytestmark = [
    pytest.mark.null,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton here"),
]


def cases() -> list[Case]:
    """Every two settings together, at sizes that an interpreter can bear."""
    return [
        replace(case, dtype="float32", m_c=min(case.m_c, 130), b=min(case.b, 3))
        for case in decode_pairwise()
    ]


def test_every_pair_of_settings() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.nki_kernels.test_interpreted"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0 and len(lines) == len(cases()), ran.stdout + ran.stderr
    assert all(line.startswith("right ") for line in lines), ran.stdout


def main() -> None:
    """Compare output and statistics of each case."""
    from nki_kernels.bifurcated_attention.cuda import bifurcated_attention

    for case in cases():
        arguments = make(case)
        expected, top, total = oracle(arguments)
        o, highest, weight = bifurcated_attention(**arguments, return_state=True)
        logit = largest_logit(arguments)
        rounding = 4 * 2.0**-24 * logit
        right = error(o, expected) <= tolerance(expected, "float32", logit)
        right &= np.allclose(highest.numpy(), top, rtol=1e-5, atol=1e-5 + rounding)
        right &= np.allclose(weight.numpy(), total, rtol=1e-4 + rounding)
        print(f"{'right' if right else 'WRONG'} {case}")


if __name__ == "__main__":
    main()
