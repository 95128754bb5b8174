from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generation.randomness import streams, uniforms
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

words = st.integers(0, 2**64 - 1)


def test_values_are_frozen() -> None:
    """Answers of a seed must not change from release to release."""
    raw = np.random.Philox(key=[3, 1], counter=0).random_raw(3)
    assert uniforms((3, 1), 0, 3).tolist() == [(int(word) >> 40) / 2**24 for word in raw]
    assert (uniforms((0, 0), 0, 3) * 2**24).tolist() == [193722, 4052523, 1869415]


@settings(deadline=None)  # milliseconds, but not on a machine that is busy elsewhere
@given(seed=words, sample=words, first=st.integers(0, 50), steps=st.integers(1, 20))
def test_any_position_alone(seed: int, sample: int, first: int, steps: int) -> None:
    whole = uniforms((seed, sample), 0, first + steps)
    assert np.array_equal(uniforms((seed, sample), first, steps), whole[first:])
    assert whole.dtype == np.float32
    assert ((whole >= 0) & (whole < 1)).all()
    # so many bits and no more: u times any fp32 total stays below it
    assert np.array_equal(whole * 2**24, np.floor(whole * 2**24))


def test_streams_differ() -> None:
    drawn = [uniforms(stream, 0, 8).tolist() for stream in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(row) for row in drawn}) == 4


def test_uniform_and_uncorrelated() -> None:
    table = np.stack([uniforms((7, sample), 0, 64) for sample in range(1024)])  # [samples, steps]
    counts = np.histogram(table, bins=64, range=(0, 1))[0]
    expected = table.size / 64
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 103.4  # 99.9 % point of 63 degrees of freedom
    for a, b in ((table[:, :-1], table[:, 1:]), (table[:-1], table[1:])):
        # 5 sigma of independent draws
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(table.size)


def test_one_seed_or_one_a_sample() -> None:
    assert streams(5, 3) == [(5, 0), (5, 1), (5, 2)]
    assert streams([5, 9], 2) == [(5, 0), (9, 0)]
    assert streams(2**64 - 1, 1) == [(2**64 - 1, 0)]


@pytest.mark.parametrize(
    ("seed", "message"),
    [(-1, "seed is -1"), (2**64, "0 to 2"), ([1, 2], "2 seeds for 3 samples")],
)
def test_bad_seeds(seed: int | list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        streams(seed, 3)
