from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.causal_lm import CacheShape
from models.generation.traffic import allocated_bytes, measure, position_bytes
from tests.models import tiny

pytestmark = pytest.mark.null

UNIT = 2 * 2 * 2 * 12 * 4  # K and V, l, g, d, fp32


def test_unit() -> None:
    assert position_bytes(tiny.CONFIG, 4) == UNIT


@given(
    m_c=st.integers(1, 2000),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    spare=st.integers(0, 5),
)
def test_equations_5_and_6_step_by_step(m_c: int, lengths: list[int], spare: int) -> None:
    S_ctx, S_dec = m_c + spare, max(lengths) + spare
    traffic = measure(tiny.CONFIG, 4, m_c, lengths, S_ctx, S_dec)
    bifurcated, ordinary, written, steps = 0, 0, 0, max(lengths) - 1
    for t in range(1, steps + 1):
        b = sum(length > t for length in lengths)  # samples that still need a token
        bifurcated += m_c + b * t
        ordinary += b * (m_c + t)
        written += b
    per_step = UNIT / max(steps, 1)
    assert traffic.bifurcated.read_live == pytest.approx(per_step * bifurcated)
    assert traffic.ordinary.read_live == pytest.approx(per_step * ordinary)
    assert traffic.written == pytest.approx(per_step * written)
    b, m_d = len(lengths), sum(lengths) - len(lengths)
    assert traffic.bifurcated.stored_live == UNIT * (m_c + m_d)
    assert traffic.ordinary.stored_live == UNIT * (b * m_c + m_d)
    assert traffic.bifurcated.stored_padded == UNIT * (S_ctx + b * S_dec)
    assert traffic.ordinary.stored_padded == UNIT * b * (S_ctx + S_dec)


def test_padding_is_what_a_cache_allocates() -> None:
    traffic = measure(tiny.CONFIG, 4, 10, [3, 5], 16, 8)
    assert traffic.bifurcated.stored_padded == allocated_bytes(
        tiny.CONFIG, 4, CacheShape(1, 2, 16, 8)
    )
    assert traffic.ordinary.stored_padded == allocated_bytes(
        tiny.CONFIG, 4, CacheShape(2, 1, 16, 8)
    )
    for shape in (CacheShape(1, 2, 16, 8), CacheShape(2, 1, 16, 8), CacheShape(2, 3, 5, 7)):
        model = tiny.model()
        model.allocate(shape)
        assert model.cache_bytes() == allocated_bytes(tiny.CONFIG, 4, shape)


def test_the_papers_saving() -> None:
    """b = 16, m_c = 8192, m_d = 128: 13.0 times fewer bytes at that step (eq. 5 over eq. 6)."""
    whole = measure(tiny.CONFIG, 2, 8192, [129] * 16, 8192, 128)
    before = measure(tiny.CONFIG, 2, 8192, [128] * 16, 8192, 128)
    last_ordinary = whole.ordinary.read_live * 128 - before.ordinary.read_live * 127
    last_bifurcated = whole.bifurcated.read_live * 128 - before.bifurcated.read_live * 127
    assert last_ordinary / last_bifurcated == pytest.approx(16 * 8320 / (8192 + 16 * 128))
    assert last_ordinary / last_bifurcated == pytest.approx(13.0, abs=0.01)


def test_one_sample_gains_nothing() -> None:
    assert measure(tiny.CONFIG, 4, 100, [7], 100, 6).read_ratio == 1.0
    assert measure(tiny.CONFIG, 4, 100, [1, 1], 100, 1).read_ratio == 1.0  # no step at all
