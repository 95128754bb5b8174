"""The ordinary kernel on the simulator, against an fp64 oracle, and its bytes and time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nki_sim
from nki_kernels import launch
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.cases import FEATURES, Case, make, pairwise
from nki_kernels.errors import InputError
from nki_kernels.ordinary_attention import tuning
from nki_kernels.ordinary_attention.pieces import column_tiles, cut, steps
from nki_kernels.ordinary_attention.validate import validate_for_kernel
from nki_kernels.speed_of_light import Decode, speed_of_light
from tests.nki_kernels.holding import (
    dead_slots_change_no_bit,
    hold,
    marked,
    returned_states_merge,
    rows_without_keys_are_empty,
    runner,
)
from tests.nki_kernels.ordinary import ERRORS, ORDINARY, caught, differences, load, options
from tests.nki_kernels.planted import Planted

pytestmark = [
    pytest.mark.sim,
    # A read of memory that nothing wrote, or other advice of the simulator, is a failure here.
    pytest.mark.filterwarnings("error"),
]

ACCEPTED = [case for case in FEATURES if case.n * case.h // case.g <= 128]


RUN = runner(ORDINARY, options)


def slow(case: Case) -> bool:
    return case.b > 16


@pytest.mark.parametrize("case", marked(ACCEPTED, slow))
def test_features(case: Case) -> None:
    hold(RUN, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in pairwise() if c.b <= 16])
def test_sizes(case: Case) -> None:
    hold(RUN, case)


@pytest.mark.parametrize("target", ["inf2", "trn2", "trn3"])
@pytest.mark.parametrize("case", [ACCEPTED[1], ACCEPTED[5]], ids=str)
def test_newer_and_sister_cores(case: Case, target: str) -> None:
    hold(RUN, case, target)


@settings(deadline=None, max_examples=25)
@given(
    case=st.builds(
        Case,
        m_c=st.integers(1, 700),
        m_d=st.integers(1, 200),
        b=st.integers(1, 6),
        h=st.just(6),
        g=st.sampled_from([1, 2, 3, 6]),
        d=st.integers(1, 40),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
        G=st.integers(1, 3),
        n=st.integers(1, 3),
        gap=st.integers(0, 5),
        empty=st.sampled_from(["", "context", "suffix", "both"]),
        seed=st.integers(0, 2**16),
    ),
    blocks=st.integers(1, 9),
    pairs=st.integers(1, 9),
)
def test_any_size_and_schedule(case: Case, blocks: int, pairs: int) -> None:
    hold(RUN, case, blocks=blocks, pairs=pairs)


@pytest.mark.parametrize("case", marked(ACCEPTED, slow))
def test_poison_changes_no_bit(case: Case) -> None:
    dead_slots_change_no_bit(RUN, case)


def test_rows_without_keys() -> None:
    rows_without_keys_are_empty(RUN, replace(FEATURES[0], empty="both", G=2, b=4), dead_rows=2)


def test_a_sample_does_not_depend_on_the_others() -> None:
    """The bits of a sample's output are the same whatever b is."""
    many = make(Case(m_c=300, m_d=9, b=1, h=4, g=2, d=32, G=5, gap=0))
    plan = options(many)
    expected = nki_sim.simulate(launch.load(*ORDINARY), target="trn1", exact_matmul=True)(
        *many.values(), **plan
    )
    one = dict(many)
    for name, size in (("k_suf", 9), ("v_suf", 9), ("v_ctx", 300)):
        one[name] = many[name][:, :size].contiguous()
    one["k_ctx"] = many["k_ctx"][:, :, :300].contiguous()
    for name in ("q", "context_len", "suffix_len"):
        one[name] = many[name][:1]
    alone = nki_sim.simulate(launch.load(*ORDINARY), target="trn1", exact_matmul=True)(
        *one.values(), **plan
    )
    assert torch.equal(alone[0], expected[0])


def test_returned_states_merge() -> None:
    returned_states_merge(RUN)


def test_planted_errors_are_caught(tmp_path: Path) -> None:
    for size in differences(load(None, tmp_path)):
        assert size[1] <= 1, size
    for i, planted in enumerate(ERRORS):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert caught(planted, folder), planted.name
    with pytest.raises(LookupError, match="holds its text not once"):
        load(Planted("gone", "ordinary_attention", "text that stands nowhere", ""), tmp_path)


@pytest.mark.parametrize("slots", [(1, 1), (128, 128), (300, 5), (8192, 128), (4097, 300)])
@pytest.mark.parametrize("most", [1, 2, 33, 65])
def test_chunks_cover_every_slot_once(slots: tuple[int, int], most: int) -> None:
    chunks = cut(*slots, most)
    sizes = [sum(segment[3] for segment in chunk) for chunk in chunks]
    assert max(sizes) <= most and max(sizes) - min(sizes[:-1] or sizes) <= 1
    for suffix in (False, True):
        at = 0
        for part, start, keys, blocks in (segment for chunk in chunks for segment in chunk):
            if part is suffix:
                assert start == at and keys <= 128
                at += keys * blocks
        assert at == slots[suffix]


@pytest.mark.parametrize(
    "samples,g,rows,r,pairs",
    [(70, 2, 3, 1, 5), (7, 3, 60, 1, 1), (12, 2, 1, 4, 6), (9, 40, 8, 3, 7)],
)
def test_steps_cover_every_pair_once(samples: int, g: int, rows: int, r: int, pairs: int) -> None:
    seen = []
    for tile in column_tiles(samples, g, rows):
        assert tile[1] * tile[3] * rows <= 128
        for s, count, kv, heads in steps(tile, r, pairs):
            assert count * heads <= pairs
            assert r == 1 or s // r == (s + count - 1) // r
            seen += [(s + i, kv + j) for i in range(count) for j in range(heads)]
    assert seen == [(s, kv) for s in range(samples) for kv in range(g)]


def test_refusals() -> None:
    shape = Shape(G=1, r=1, n=1, h=4, g=4, d=128, S_ctx=8, S_dec=8)
    validate_for_kernel(shape)
    with pytest.raises(InputError, match="d = 129; the ordinary kernel has at most 128"):
        validate_for_kernel(replace(shape, d=129))
    with pytest.raises(InputError, match=r"n·p = 33·4 = 132 rows"):
        validate_for_kernel(replace(shape, n=33, g=1))


def profiled(target: str, b: int, m_c: int, h: int = 4, g: int = 4) -> tuple[Any, float]:
    """The kernel's profile with a copy of the context a sample, and its own speed of light."""
    dtype = ml_dtypes.bfloat16
    plan = tuning.schedule(Shape(G=b, r=1, n=1, h=h, g=g, d=128, S_ctx=m_c, S_dec=128), 2)
    arrays = [
        np.empty((b, 1, 1, h, 128), dtype),
        np.empty((g, 128, b * m_c), dtype),
        np.empty((g, b * m_c, 128), dtype),
        np.empty((g, b * 128, 128), dtype),
        np.empty((g, b * 128, 128), dtype),
        np.empty(b, np.int32),
        np.empty((b, 1), np.int32),
    ]
    profile = nki_sim.profile(
        launch.load(*ORDINARY), *arrays, 128**-0.5, target=target, shapes_only=True, **vars(plan)
    )
    light = speed_of_light(Decode(G=b, r=1, n=1, h=h, g=g, d=128, m_c=m_c, m_d=128), target)
    return profile, light.us


@pytest.mark.parametrize("target", ["trn1", "trn2"])
def test_near_its_own_speed_of_light(target: str) -> None:
    """The baseline is worth beating: it is bound by the bytes that it must move."""
    profile, light = profiled(target, b=4, m_c=8192)
    assert profile.bound == "dma" and profile.bound_certain
    assert profile.total_us <= 1.15 * light
    assert profile.bytes == 4 * (2 * 4 * 128 * (8192 + 128) * 2 + 2 * 4 * 128 * 2) + lengths(4)
    assert profile.sbuf_peak <= 160 * 1024


def lengths(samples: int) -> int:
    """Bytes of both lengths of each sample, written to all partitions."""
    return 2 * 4 * 128 * samples
