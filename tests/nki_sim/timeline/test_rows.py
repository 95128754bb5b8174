"""Measurements from a file: read, refused, and what they say about the constants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nki_sim.timeline import fit
from nki_sim.timeline.constants import timing
from nki_sim.timeline.rows import leanings, read, responding

pytestmark = pytest.mark.sim

ROW: dict[str, Any] = {
    "name": "a copy", "generation": "gen2", "value": 20.0, "unit": "us", "source": "here",
    "kernel": "nki_sim.timeline.benchmarks:gelu_streamed", "arrays": [[[256, 512], "bfloat16"]],
    "keywords": {"rows": 128, "columns": 512}, "measure": "total",
}  # fmt: skip


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"rows": list(rows)}))
    return path


def test_a_row_is_recorded_and_predicted(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.json", ROW, ROW | {"measure": "busy scalar", "kind": "shown"},
                   ROW | {"measure": "busy dma", "unit": "ns"})  # fmt: skip
    total, scalar, dma = (row.record() for row in read(path))
    t = timing("gen2")
    assert total.predict(t) > scalar.predict(t) > 0
    assert 1000 * total.predict(t) > dma.predict(t) > 0
    assert total.predict(t) == pytest.approx(
        total.predict(t.with_(launch_ns=0)) + t.launch_ns / 1e3
    )


def test_constants_that_a_row_responds_to(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path / "rows.json", ROW))
    values = {"dma_row_ns": (0, 30), "tensor_sustained": (0.8, 1.0)}
    assert responding(row.record(), values, values) == ("dma_row_ns",)  # no matmul in it


def test_what_a_slow_measurement_leans_to(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path / "rows.json", ROW))
    t = timing("gen2")
    slow = timing("gen2").with_(dma_start_ns=2000.0)
    value = row.record().predict(slow)
    assert value > row.record().predict(t)
    (row,) = read(written(tmp_path / "rows.json", ROW | {"value": value}))
    best = leanings([row.record()], "gen2")[0]
    assert (best.name, best.end) == ("dma_start_ns", 2000.0) and best.after < 1e-6 < best.before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"generation": "gen9"}, "'a copy' has 'gen9'"),
        ({"unit": "s"}, "has 's'; known are ns, us, ms"),
        ({"value": 0}, "has the value 0.0; it must be above 0"),
        ({"kind": "later"}, "has 'later'"),
        ({"measure": "busy"}, "measures 'busy'; write total"),
        ({"measure": "busy pool"}, "measures 'busy pool'"),
        ({"kernel": "nki_sim.timeline.benchmarks:nothing"}, "names the kernel"),
        ({"kernel": "no_such_module:k"}, "names the kernel"),
        ({"arrays": [[[1], "float33"]]}, "a row is not whole"),
        ({"arrays": None}, "a row is not whole"),
    ],
)
def test_refusals(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "rows.json", ROW | change)
    with pytest.raises(ValueError, match=message):
        read(path)
    with pytest.raises(SystemExit) as end:
        fit.main(["--rows", str(path), "--generation", "gen2"])
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"rows": 3}', "{"])
def test_no_file_of_rows(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=r"rows\.json"):
        read(tmp_path / "rows.json")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "nowhere.json")


@pytest.mark.slow
def test_rows_take_part_in_the_fit(tmp_path: Path) -> None:
    """Short runs of HBM that take longer than predicted move the constant of DMA rows alone."""
    entry = ROW | {"arrays": [[[2048, 256], "bfloat16"]], "keywords": {"rows": 128, "columns": 64}}
    (row,) = read(written(tmp_path / "rows.json", entry))
    value = row.record().predict(timing("gen2").with_(dma_row_ns=30.0))
    rows = read(written(tmp_path / "rows.json", *[entry | {"value": value}] * 8))
    more = fit.Fit("gen2", rows)
    assert more.rows[-1].row.constants == ("dma_row_ns",)
    found = more.fit(more.counted())
    assert found["dma_row_ns"] > timing("gen2").dma_row_ns
    assert found["tensor_sustained"] == timing("gen2").tensor_sustained
