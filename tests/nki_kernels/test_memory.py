"""SBUF of the decode kernel: its schedule counts what a call takes, and that is there."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nki_kernels.bifurcated_attention import tuning
from nki_kernels.bifurcated_attention.memory import sbuf_bytes
from nki_kernels.predict import profile, rule_of, shape_of
from nki_kernels.speed_of_light import Decode

pytestmark = pytest.mark.sim

TARGETS = ("trn1", "trn2")
LARGE = [
    Decode(1, 16, 1, 4, 4, 128, 1024, 2048),  # suffixes longer than what they share
    Decode(1, 64, 1, 4, 4, 128, 8192, 512),
    Decode(1, 128, 1, 4, 1, 128, 8192, 512),
    Decode(1, 64, 1, 8, 1, 128, 1024, 2048),
    Decode(1, 256, 1, 4, 4, 128, 8192, 128),
    Decode(1, 1024, 1, 4, 4, 128, 1024, 128),  # as many samples as are promised
]


def drawn(number: int) -> Decode:
    """A shape that nobody thought of."""
    random.seed(number)
    g = random.choice((1, 2, 4))
    return Decode(
        G=random.choice((1, 1, 2, 3)),
        r=random.choice((1, 2, 5, 16, 31, 64, 127)),
        n=random.choice((1, 1, 2, 5)),
        h=g * random.choice((1, 2, 4, 7, 8, 12)),
        g=g,
        d=random.choice((64, 80, 128, 128, 160, 256)),
        m_c=random.choice((1, 130, 1000, 2048, 4096)),
        m_d=random.choice((1, 7, 48, 128, 130, 384)),
        element_bytes=random.choice((2, 2, 4)),
        narrow=random.choice((False, False, True)),
    )


def hold(work: Decode, target: str) -> None:
    shape = shape_of(work)
    plan = rule_of("bifurcated", shape, work.element_bytes, target)
    found = profile("bifurcated", work, target, vars(plan))
    counted = sbuf_bytes(plan, shape, work.element_bytes, target == "trn1")
    assert found.sbuf_peak <= counted
    assert found.sbuf_peak <= found.sbuf_capacity
    assert found.psum_peak <= found.psum_capacity


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("work", LARGE, ids=str)
def test_large_calls_fit(work: Decode, target: str) -> None:
    hold(work, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(5))
def test_any_call_fits(number: int, target: str) -> None:
    hold(drawn(number), target)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(5, 150))
def test_many_calls_fit(number: int, target: str) -> None:
    hold(drawn(number), target)


@pytest.mark.parametrize("target", TARGETS)
def test_counted_as_it_is_where_it_is_tight(target: str) -> None:
    """What is counted too high costs time: loads would be smaller than they need be."""
    work = Decode(1, 64, 1, 4, 4, 128, 8192, 512)
    plan = rule_of("bifurcated", shape_of(work), 2, target)
    counted = sbuf_bytes(plan, shape_of(work), 2, target == "trn1")
    assert counted <= 1.15 * profile("bifurcated", work, target, vars(plan)).sbuf_peak


def test_a_schedule_too_large_is_seen() -> None:
    """Loads twice as large as the rule's do not fit, and the count says so."""
    work = Decode(1, 64, 1, 4, 4, 128, 8192, 512)
    shape = shape_of(work)
    plan = rule_of("bifurcated", shape, 2, "trn1")
    larger = replace(plan, suffix_tiles=4 * plan.suffix_tiles)
    found = profile("bifurcated", work, "trn1", vars(larger))
    assert found.sbuf_peak > found.sbuf_capacity
    assert not tuning.fits(larger, shape, 2, gen2=True)
