"""The tuner: it climbs, it refuses what is not legal, and its data is whole and used."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nki_kernels import tuned
from nki_kernels.bifurcated_attention.validate import Shape
from nki_kernels.cases import Case, error, largest_logit, make, oracle, tolerance
from nki_kernels.ordinary_attention import tuning
from nki_kernels.predict import options_of, profile, shape_of
from nki_kernels.speed_of_light import Decode
from nki_kernels.tune import Illegal, checked, climb, neighbours, tune_schedules
from tests.nki_kernels.holding import hold, runner
from tests.nki_kernels.running import BIFURCATED, bifurcated_options

pytestmark = pytest.mark.sim


@dataclass(frozen=True)
class Plan:
    size: int
    count: int
    flag: bool = False


def test_climbs_to_the_best_legal_schedule() -> None:
    def time(plan: Plan) -> float:
        if plan.size > 16:
            raise Illegal("too large")
        return 100.0 / plan.size + abs(plan.count - 5) * 10 - 20 * plan.flag

    best, us, first, tried, illegal = climb(Plan(4, 3), time, rounds=5)
    assert best == Plan(16, 5, True)
    assert us == time(best) < first == time(Plan(4, 3))
    assert tried > illegal > 0


def test_neighbours_are_other_values_of_one_field() -> None:
    found = list(neighbours(Plan(1, 4)))
    assert ("flag", True) in found
    assert {value for name, value in found if name == "count"} == {2, 8, 3, 5}
    assert {value for name, value in found if name == "size"} == {0, 2}


def test_what_breaks_a_rule_or_does_not_fit_is_illegal() -> None:
    work = Decode(4, 1, 1, 1, 1, 128, 32768, 128)
    plan = tuning.schedule(shape_of(work), 2)
    checked(lambda: profile("ordinary", work, "gen2", vars(plan)))
    for wrong in (replace(plan, blocks=0), replace(plan, blocks=256, pairs=4)):
        with pytest.raises(Illegal):
            checked(lambda wrong=wrong: profile("ordinary", work, "gen2", vars(wrong)))


def test_an_entry_holds_for_its_shape_and_down_to_half_of_it() -> None:
    at = {"r": 16, "d": 128, "start": 0}
    assert tuned.holds(at, dict(at))
    assert tuned.holds(at, at | {"r": 9})
    assert not tuned.holds(at, at | {"r": 8})
    assert not tuned.holds(at, at | {"r": 17})
    assert not tuned.holds(at, at | {"start": 1})
    assert tuned.holds(at, at | {"G": 5})


def test_the_data_names_fields_of_the_schedules() -> None:
    assert tuned.entries()
    for entry in tuned.entries():
        assert entry["us"] <= entry["rule_us"]
        assert bool(entry["changes"]) == (entry["us"] < entry["rule_us"])
        if entry["kernel"] == "flash_attention":
            continue
        shape = Shape(**{"G": 7, "r": 1} | entry["shape"])
        path = entry["kernel"].removesuffix("_attention")
        element_bytes, narrow = tuned.DTYPES[entry["dtype"]]
        options = options_of(path, shape, element_bytes, entry["generation"], narrow)
        assert entry["changes"].items() <= options.items()


FOUND = [e for e in tuned.entries() if e["kernel"] == "bifurcated_attention" and e["changes"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry",
    FOUND,
    ids=lambda e: "{generation} {dtype} {0[h]} on {0[g]} {0[r]}".format(e["shape"], **e),
)
def test_what_was_found_computes_the_same(entry: dict[str, Any]) -> None:
    """The schedules of the data, with shorter contexts of odd lengths."""
    sizes = entry["shape"]
    element_bytes, narrow = tuned.DTYPES[entry["dtype"]]
    shape = Shape(G=1, **sizes)
    options = options_of("bifurcated", shape, element_bytes, entry["generation"], narrow)
    dtype = {2: "bfloat16", 4: "float32"}[element_bytes]
    case = Case(1309, 21, shape.r, shape.h, shape.g, 64, dtype=dtype, fp8=narrow)
    run = runner(BIFURCATED, bifurcated_options)
    target = {"gen2": "trn1", "gen3": "trn2"}[entry["generation"]]
    hold(run, case, target, **options)
    arguments = make(case)
    expected, _, _ = oracle(arguments)
    o = run(arguments, target, **options)
    assert error(o, expected) <= tolerance(expected, case.dtype, largest_logit(arguments))


def test_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that knows every shape is left as it is; nothing is profiled."""
    path = tmp_path / "tuned.json"
    path.write_text(tuned.FILE.read_text())
    before = json.loads(path.read_text())
    tune_schedules(path, fresh=False, kernel="ordinary_attention")
    assert json.loads(path.read_text()) == before
    assert "ordinary_attention" in capsys.readouterr().out
