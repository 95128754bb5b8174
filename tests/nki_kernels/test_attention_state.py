"""The algebra of attention states: keys split anywhere and merged in any order are one softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nki_kernels.attention_state.reference import (
    FLOOR,
    MASK,
    State,
    empty,
    finish,
    from_logits,
    merge,
    resume,
)

pytestmark = pytest.mark.null

ROWS, D = 3, 4


def states(seed: int, sizes: list[int], spread: float) -> tuple[list[State], torch.Tensor]:
    """States of consecutive sets of keys of the given sizes, and the attention over all of them."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    logits = torch.randn(ROWS, total, generator=generator, dtype=torch.float64) * spread
    values = torch.randn(total, D, generator=generator, dtype=torch.float64)
    parts, at = [], 0
    for size in sizes:
        piece = slice(at, at + size)
        valid = torch.ones(size, dtype=torch.bool)
        parts.append(from_logits(logits[:, piece], valid, values[piece]))
        at += size
    return parts, torch.softmax(logits, dim=-1) @ values


def same(a: State, b: State) -> None:
    torch.testing.assert_close(a.max, b.max, rtol=0, atol=0)
    torch.testing.assert_close(a.sum, b.sum, rtol=1e-13, atol=0)
    torch.testing.assert_close(a.o, b.o, rtol=1e-12, atol=1e-13)


sizes_of_three = st.lists(st.integers(1, 5), min_size=3, max_size=3)
spreads = st.sampled_from([0.1, 1.0, 30.0, 1e4])


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), sizes=sizes_of_three, spread=spreads)
def test_merge_is_associative_commutative_and_exact(
    seed: int, sizes: list[int], spread: float
) -> None:
    (a, b, c), expected = states(seed, sizes, spread)
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    same(left, right)
    same(merge(a, b), merge(b, a))
    torch.testing.assert_close(finish(left), expected, rtol=1e-12, atol=1e-13)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), spread=spreads)
def test_empty_is_neutral_to_the_last_bit(seed: int, spread: float) -> None:
    (a,), _ = states(seed, [4], spread)
    for merged in (merge(a, empty(a.o)), merge(empty(a.o), a)):
        for name in ("o", "max", "sum"):
            assert torch.equal(getattr(merged, name), getattr(a, name))


def test_no_key_at_all() -> None:
    logits = torch.tensor([[1.0, 2.0]]).expand(ROWS, 2)
    none = from_logits(logits, torch.zeros(2, dtype=torch.bool), torch.full((2, D), 1e4))
    assert torch.equal(none.o, torch.zeros(ROWS, D))
    assert torch.equal(none.sum, torch.zeros(ROWS))
    assert torch.equal(none.max, torch.full((ROWS,), MASK))
    both = merge(none, empty(none.o))
    assert torch.equal(finish(both), torch.zeros(ROWS, D))
    assert torch.equal(both.max, none.max)


def test_mask_absorbs_and_floor_silences() -> None:
    """What kernels rely on in fp32: adding a logit leaves MASK alone, its exponential is 0."""
    for mask in (torch.tensor(MASK), torch.tensor(MASK).bfloat16().float()):
        for logit in (1e4 * 1e4 * 128, -1e4 * 1e4 * 128):
            assert mask + logit == mask
        for scale in (1e-3, 0.125, 1.0, 100.0):
            assert torch.exp(mask * scale - FLOOR) == 0


def test_a_returned_state_can_be_resumed() -> None:
    (a, b), expected = states(5, [3, 4], 1.0)
    again = resume(finish(a), a.max, a.sum)
    torch.testing.assert_close(finish(merge(again, b)), expected, rtol=1e-12, atol=1e-13)
