"""The tests of the kernels can fail: every planted error turns at least one of their cases red."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nki_kernels.planted import DECODE, ERRORS, PREFILL, Planted, caught, differences, load

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("room", [DECODE, PREFILL])
def test_without_an_error_everything_is_green(room: str, tmp_path: Path) -> None:
    for name, size in differences(load(None, room, tmp_path), room):
        assert size <= 1, name


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(planted, id=planted.name, marks=[] if i % 4 == 0 else [pytest.mark.slow])
        for i, planted in enumerate(ERRORS)
    ],
)
def test_planted_error_is_caught(planted: Planted, tmp_path: Path) -> None:
    assert next(caught(planted, tmp_path), None) is not None


def test_an_error_that_no_longer_applies_is_noticed(tmp_path: Path) -> None:
    gone = Planted("gone", DECODE, "text that stands nowhere", "")
    with pytest.raises(LookupError, match="holds its text not once"):
        load(gone, DECODE, tmp_path)
