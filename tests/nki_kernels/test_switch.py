"""When bifurcation pays: the table, what it says, and that the operator does as it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nki_kernels import bifurcated_attention, decode_path
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.cases import Case, make
from nki_kernels.errors import InputError
from nki_kernels.ordinary_attention.switch import DTYPES, table
from nki_kernels.predict import predict, shape_of
from nki_kernels.speed_of_light import Decode
from nki_kernels.tune import CONTEXTS, find_break_even, switch_rows
from tests.nki_kernels.ordinary import ORDINARY
from tests.nki_kernels.ordinary import options as ordinary_options
from tests.nki_kernels.running import BIFURCATED, bifurcated_options, simulate

pytestmark = pytest.mark.sim

MHA = Shape(G=1, r=16, n=1, h=4, g=4, d=128, S_ctx=8192, S_dec=128)


def test_the_table_is_whole() -> None:
    for keys, _ in switch_rows():
        entry: Any = table()
        for key in keys:
            entry = entry[key]
        assert entry is None or entry in CONTEXTS


@pytest.mark.parametrize("target", ["trn1", "inf2", "trn2", "trn3"])
@pytest.mark.parametrize("element_bytes", list(DTYPES))
def test_many_samples_share_and_one_does_not_need_to(target: str, element_bytes: int) -> None:
    assert decode_path(MHA, element_bytes, target).path == "bifurcated"
    short = replace(MHA, r=2, S_ctx=64)
    assert decode_path(short, element_bytes, target).path == "ordinary"


def test_reasons_say_why() -> None:
    assert decode_path(MHA, 2, "trn1", "ordinary").reason == "asked for"
    wide = replace(MHA, g=1, h=132)
    choice = decode_path(wide, 2, "trn1")
    assert choice.path == "bifurcated" and "at most 128" in choice.reason
    assert "slots of context" in decode_path(MHA, 2, "trn1").reason
    assert "window" in decode_path(replace(MHA, r=1), 2, "trn1", features=["window"]).reason


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"attention must be one of auto, .* got 'other'"):
        decode_path(MHA, 2, "trn1", "other")
    with pytest.raises(InputError, match="'ordinary', but q has n·p"):
        decode_path(replace(MHA, g=1, h=132), 2, "trn1", "ordinary")
    with pytest.raises(InputError, match="does not have softcap"):
        decode_path(MHA, 2, "trn1", "ordinary", ["softcap"])
    arguments = make(Case(m_c=9, m_d=2, b=1, h=2, g=1, d=8))
    with pytest.raises(InputError, match="attention must be one of"):
        bifurcated_attention(**arguments, attention="never")


@pytest.mark.parametrize("b", [1, 3])
def test_the_operator_runs_what_it_is_asked_for(b: int) -> None:
    """The same bits as the kernel's own, for a shared context and for a copy a sample."""
    for case in (Case(m_c=140, m_d=5, b=b, h=4, g=2, d=32),
                 Case(m_c=140, m_d=5, b=1, h=4, g=2, d=32, G=3)):  # fmt: skip
        arguments = make(case)
        direct = {
            "ordinary": simulate(ORDINARY, arguments, **ordinary_options(arguments)),
            "bifurcated": simulate(BIFURCATED, arguments, **bifurcated_options(arguments)),
        }
        assert not torch.equal(direct["ordinary"], direct["bifurcated"])
        for way, expected in direct.items():
            found = bifurcated_attention(**arguments, kernels="nki", attention=way)
            assert torch.equal(found, expected)
        shape = Shape(G=case.G, r=case.b, n=1, h=4, g=2, d=32, S_ctx=143, S_dec=8)
        auto = bifurcated_attention(**arguments, kernels="nki")
        assert torch.equal(auto, direct[decode_path(shape, 4, "trn1").path])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize("h,g", [(4, 4), (4, 1), (8, 1)])
def test_one_sample_costs_what_ordinary_decoding_costs(target: str, h: int, g: int) -> None:
    """Or less: within 3 % it takes the faster kernel."""
    for S_ctx in (128, 1024, 8192, 32768):
        work = Decode(1, 1, 1, h, g, 128, S_ctx, 128)
        path = decode_path(shape_of(work), 2, target).path
        times = {way: predict(way, work, target).us for way in ("ordinary", "bifurcated")}
        assert times[path] <= 1.03 * min(times.values())
        assert path == "ordinary" or g == 1


@pytest.mark.slow
def test_the_table_is_what_the_timeline_says() -> None:
    """Some of its numbers, found again."""
    for keys, work in list(switch_rows())[::24]:
        entry: Any = table()
        for key in keys:
            entry = entry[key]
        assert find_break_even(work, keys[0]) == entry
