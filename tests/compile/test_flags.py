"""Compiler flags of each graph."""

from __future__ import annotations

import pytest

from compile.flags import TARGETS, flag_text, flags
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("phase", "level"), [("prefill", "-O1"), ("decode", "-O2")])
def test_a_string_names_what_the_library_would_leave_out(
    target: str, phase: str, level: str
) -> None:
    text = flag_text(phase, target).split()
    assert text[:4] == [
        "--model-type=transformer",
        "--auto-cast=none",
        "--enable-saturate-infinity",
        level,
    ]
    assert f"--target={target}" in text
    assert ("--lnc=1" in text) == (target == "trn2")


def test_lnc_and_fp8() -> None:
    assert "--lnc=2" in flag_text("decode", "trn2", lnc=2)
    assert "fp8e4m3fn-as-fp8e4m3" in flag_text("decode", "trn1", fp8=True)
    assert "fp8" not in flag_text("decode", "trn1")


def test_every_flag_has_a_reason_and_a_source() -> None:
    for flag in flags("decode", "trn2", lnc=2, fp8=True):
        assert flag.why and flag.source.startswith("https://")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "trn1"), "phase is 'train'"),
        (("decode", "trn3"), "target is 'trn3'"),
        (("decode", "trn1", 2), "lnc is 2; trn1 has 1"),
        (("decode", "trn2", 3), "lnc is 3; trn2 has 1 or 2"),
    ],
)
def test_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        flags(*arguments)
