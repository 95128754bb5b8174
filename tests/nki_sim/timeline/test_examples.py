"""The worked examples of docs/timeline.md: what limits each kernel, and what the change gains."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nki_sim.timeline import Profile, faster, profile
from nki_sim.timeline import benchmarks as b
from tests.nki_sim.timeline import kernels as k

pytestmark = pytest.mark.sim

FP32, BF16 = np.float32, ml_dtypes.bfloat16

MATMUL = (np.empty((2048, 512), BF16), np.empty((2048, 2048), BF16))
VECTOR = (np.empty((128, 2048), BF16), np.empty((128, 1), BF16))
ROWS = (np.empty((1024, 2048), FP32),)

# name, what limits it at first, the kernel before and after, arrays, least gain
EXAMPLES: list[tuple[str, str, Any, Any, tuple[Any, ...], float]] = [
    ("a matmul that loads every tile again", "dma", b.matmul_tiled,
     partial(b.matmul_blocked, m_block=4, n_block=2), MATMUL, 2.0),
    ("a matrix-vector product that moves the matrix", "tensor",
     partial(k.matrix_vector, vector_moves=False), partial(k.matrix_vector, vector_moves=True),
     VECTOR, 1.3),
    ("a softmax of many passes", "vector", partial(k.softmax, passes="many"),
     partial(k.softmax, passes="few"), ROWS, 3.0),
]  # fmt: skip


def run(example: tuple[Any, ...]) -> tuple[Profile, Profile]:
    _, _, before, after, arrays, _ = example
    return (
        profile(before, *arrays, target="trn1", shapes_only=True),
        profile(after, *arrays, target="trn1", shapes_only=True),
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_example(example: tuple[Any, ...]) -> None:
    before, after = run(example)
    assert before.bound == example[1]
    assert before.total_us / after.total_us >= example[5]
    assert faster(after, before) == (True, True)


if __name__ == "__main__":  # what docs/timeline.md quotes
    for example in EXAMPLES:
        print(f"\n=== {example[0]}")
        for found in run(example):
            found.summary()
            print()
