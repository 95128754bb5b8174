"""The runner of AWS's examples finds code, reports failures, and says why it leaves some out."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from tests.nki_sim.helpers import normal
from tests.nki_sim.third_party import Example, blocks, reason, run_case, run_fragment, table
from tests.nki_sim.third_party_cases import Case
from tests.nki_sim.third_party_fragments import Fragment

pytestmark = pytest.mark.sim

_KERNEL = """
import nki
import nki.language as nl

@nki.jit
def double(x):
    out = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.shared_hbm)
    nl.store(out, nl.multiply(nl.load(x), FACTOR))
    return out
"""


def _doubles(function, module, target):
    x = normal(8, 8)
    got = nki_sim.simulate(function, target=target)(x)
    if not (got == 2 * x).all():
        raise ValueError("wrong")
    return 0.0


@pytest.mark.parametrize(("factor", "results"), [("2.0", {"pass"}), ("2.1", {"FAIL"})])
def test_a_wrong_result_fails(tmp_path, factor, results):
    file = tmp_path / "example.py"
    file.write_text(_KERNEL.replace("FACTOR", factor))
    rows = run_case(Case("example.py", "double", _doubles), file)
    assert len(rows) == 3 and {r.result for r in rows} == results


def test_an_example_that_should_be_refused_must_be(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(_KERNEL.replace("FACTOR", "2.0"))
    rows = run_case(Case("example.py", "double", _doubles, since="trn2", rule="view"), file)
    assert {r.result for r in rows} == {"FAIL"}


@pytest.mark.parametrize(("value", "result"), [("1.0", "pass"), ("1.5", "FAIL")])
def test_fragments_get_their_names_and_their_assertions_compare(value, result):
    code = (
        f"total = nl.add(a, b)\nassert nl.equal(total, nl.full((32, 32), 3 + {value}, nl.float32))"
    )
    rows = run_fragment(Fragment("page.rst", ""), Example("page.rst", "line 1", code))
    assert {r.result for r in rows} == {result}


def test_blocks_and_reasons():
    page = textwrap.dedent(
        """
        Text.

        .. code-block:: python
           :linenos:

           x = nl.zeros((4, 4), nl.float32)

        More::

            y = nisa.reciprocal(x)
        """
    )
    found = list(blocks(page))
    codes = ["x = nl.zeros((4, 4), nl.float32)", "y = nisa.reciprocal(x)"]
    assert [code for _, code in found] == codes
    why = {code: reason(Example("p.rst", "", code)) for _, code in found}
    assert list(why.values()) == ["", "old API (neuronxcc.nki, NKI 0.1)"]
    assert reason(Example("p.rst", "", "nl.load(...)")).startswith("pseudo-code")
    assert reason(Example("p.rst", "", "nl.load(")).startswith("not valid Python")
    rows = run_fragment(Fragment("p.rst", ""), Example("p.rst", "line 3", found[0][1]))
    assert "| p.rst | line 3 | ok | ok | ok |" in table(rows)


def test_with_schedule_adds_edges_to_the_record():
    @nki_sim.install().jit
    def kernel(x):
        a, b = nl.load(x), nl.load(x)
        nisa.reciprocal(a, a, name="first")
        nisa.tensor_scalar(b, b, nl.add, 1.0, name="second")
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nl.store(out, nl.add(a, b))
        return out

    x = normal(8, 8) + np.float32(9)
    trace = nki_sim.Trace()
    scheduled = kernel.with_schedule([("second", ["first"])])
    got = nki_sim.simulate(scheduled, target="trn1", trace=trace)(x)
    np.testing.assert_array_equal(got, nki_sim.simulate(kernel, target="trn1")(x))
    first, second = (next(i for i in trace if i.name == n) for n in ("first", "second"))
    assert second.after == (first.index,) and first.after == ()
    for edges, message in (
        ([("second", "third")], "no instruction is named 'third'"),
        ([("first", "second")], "against program order"),
    ):
        with pytest.raises(nki_sim.errors.SimulatorError, match=message):
            nki_sim.simulate(kernel.with_schedule(edges), target="trn1")(x)
    with pytest.raises(TypeError, match="pair"):
        kernel.with_schedule(["first"])
