"""Reading HLO: graphs that torch_xla 2.9.0 made of the tiny network, and some with errors in them.

`lowered/record.py` makes the texts, where torch_xla can be imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from compile import lowering
from compile.hlo import KNOWN_CALLS, NKI_CALL, Alias, Context, Shape, as_text, examine, parse
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from scripts import planning
from tests.compile.lowered import record
from tests.compile.test_stand_ins import CHECKOUT

pytestmark = pytest.mark.null

HERE = Path(record.__file__).parent
LISTS = Context(("k_ctx",), (16,), samples=6)


def recorded(name: str) -> tuple[str, list[Alias], list[str]]:
    """The text of a graph, its states, and the problems that were found when it was made."""
    text = (HERE / f"{name}.hlo").read_text(encoding="utf-8")
    aliases = [
        Alias(*(each if i == 0 else None if each == "None" else int(each)
                for i, each in enumerate(line.split(" ")[2:])))
        for line in text.splitlines() if line.startswith("// alias ")
    ]  # fmt: skip
    problems = [line.removeprefix("// problem ") for line in text.splitlines() if
                line.startswith("// problem ")]  # fmt: skip
    return text, aliases, problems


def test_a_decode_graph_of_four_ranks() -> None:
    text, aliases, problems = recorded("decode_tp4")
    report = examine(parse(text), aliases, record.CONTEXT)
    assert report.problems == () and problems == []
    assert report.custom_calls == {"AwsNeuronTopK": 6}
    assert len(aliases) == 4 and all(x.parameter is not None and x.output for x in aliases)
    kinds = [(each.split(" ")[0], each.split(" ")[-1]) for each in report.collectives]
    assert sorted(kinds) == [
        ("all-gather", "{0,1,2,3}"),
        ("all-gather", "{0,1},{2,3}"),
        ("all-gather", "{0,1},{2,3}"),
        *[("all-reduce", "{0,1,2,3}")] * 3,
    ]
    assert report.opcodes["scatter"] == 4 and "sort" not in report.opcodes
    said = as_text("decode", report)
    assert "no problem found" in said and "4 of 4" in said and "3 x all-reduce" in said


def test_a_prefill_graph() -> None:
    text, aliases, _ = recorded("prefill")
    report = examine(parse(text), aliases)
    assert report.problems == () and not report.custom_calls and not report.collectives
    assert len(parse(text).outputs) == 1 + 4


def test_nki_kernels_are_expected_only_in_their_form() -> None:
    text, aliases, _ = recorded("decode_nki")
    report = examine(parse(text), aliases)
    assert report.custom_calls == {"AwsNeuronTopK": 4, NKI_CALL: 1} and not report.problems
    without = examine(parse(text), aliases, expected_calls=KNOWN_CALLS - {NKI_CALL})
    assert without.problems == (f"1 custom calls of {NKI_CALL!r}, which are not expected here",)


def test_copies_of_the_context_are_found() -> None:
    text, aliases, problems = recorded("copies")
    report = examine(parse(text), aliases, LISTS)
    copies = [each for each in report.problems if "6 copies of the context" in each]
    assert copies and all("6,2,12,16]" in each for each in copies)
    assert [each for each in report.problems if each not in copies] == problems
    assert any(each.startswith("sort") for each in problems)
    assert any(each.startswith("rng-bit-generator") for each in problems)
    assert any("state left is no input" in each for each in problems)
    alone = examine(parse(text), aliases, Context(("k_ctx",), (16,), samples=1))
    assert not any("copies" in each for each in alone.problems)
    nothing = examine(parse(text), aliases, Context(("v_ctx",), (16,), samples=6))
    assert any("no state of the context" in each for each in nothing.problems)


def test_integers_and_states_that_are_lost_are_found() -> None:
    text, aliases, problems = recorded("cut")
    found = examine(parse(text), aliases).problems
    assert set(found) < set(problems)
    assert {each.split(" ")[0] for each in found} == {"dot", "scatter", "state"}
    # what only the trace itself knows
    assert "aten::view_copy.dtype is run by the host, in the middle of the graph" in problems


LINES = """HloModule small

%Add.1 (a.2: s32[], b.3: s32[]) -> s32[] {
  %a.2 = s32[] parameter(0)
  %b.3 = s32[] parameter(1)
  ROOT %add.4 = s32[] add(s32[] %a.2, s32[] %b.3)
}

ENTRY %Main.9 (p0.1: f32[2,3], p1.2: f32[2,3]) -> (f32[2,3], f32[2,3]) {
  %p0.1 = f32[2,3]{1,0} parameter(0)
  %p1.2 = f32[2,3]{1,0} parameter(1)
  %LINE%
  %sum.4 = (f32[2,3]{1,0}, f32[]) all-reduce(f32[2,3]{1,0} %p0.1, f32[] %c.5), replica_groups={{0,1},{2,3}}, to_apply=%Add.1
  ROOT %tuple.8 = (f32[2,3]{1,0}, f32[2,3]{1,0}) tuple(f32[2,3]{1,0} %p0.1, f32[2,3]{1,0} %p1.2)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("%w.3 = f32[2]{0} while(f32[2]{0} %p0.1), condition=%C, body=%B", "while (w.3): a loop"),
        ("%w.3 = f32[2]{0} sort(f32[2]{0} %p0.1), dimensions={0}", "sort (w.3)"),
        ("%w.3 = f64[2]{0} convert(f32[2,3]{1,0} %p0.1)", "64-bit floating point"),
        ("%w.3 = c64[2]{0} convert(f32[2,3]{1,0} %p0.1)", "complex"),
        ("%w.3 = f32[<=2]{0} add(f32[2,3]{1,0} %p0.1)", "not static"),
        (
            '%w.3 = f32[2]{0} custom-call(f32[2]{0} %p0.1), custom_call_target="Sharding"',
            "1 custom calls of 'Sharding'",
        ),
    ],
)
def test_what_no_graph_may_hold(line: str, problem: str) -> None:
    report = examine(parse(LINES.replace("%LINE%", line)))
    assert len(report.problems) == 1 and problem in report.problems[0]
    assert report.collectives == ("all-reduce f32[2,3], f32[] {0,1},{2,3}",)


@pytest.mark.parametrize(
    ("alias", "problem"),
    [
        (Alias("k", 0, 0), "leaves as it came"),
        (Alias("k", 0, 1), None),
        (Alias("k", 5, 1), "no input"),
        (Alias("k", 0, 7), "no output"),
        (Alias("k", None, 1), "no input"),
    ],
)
def test_states(alias: Alias, problem: str | None) -> None:
    found = examine(parse(LINES.replace("%LINE%", "%n.3 = f32[] constant(0)")), [alias]).problems
    assert [problem in each for each in found] == ([True] if problem else [])


def test_shapes() -> None:
    assert Shape("bf16", (2, 3)).nbytes == 12 and Shape("pred", (4,)).nbytes == 4
    assert Shape("f8e4m3fn", (4,)).nbytes == 4 and str(Shape("s32", ())) == "s32[]"


def test_no_hlo() -> None:
    with pytest.raises(ValueError, match="no HLO text"):
        parse("ENTRY nothing")


@pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is not None, reason="torch_xla is installed"
)
def test_without_torch_xla() -> None:
    with pytest.raises(InputError, match=re.escape(f"torch {torch.__version__} without")):
        lowering.check_torch_xla()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed"
)
@pytest.mark.parametrize(
    ("phase", "kernels", "tp"), [("decode", "torch", 4), ("prefill", "nki", 1)]
)
def test_lowering(phase: str, kernels: str, tp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    found = record.network(phase, kernels, tp).report
    assert found.problems == ()
    assert found.custom_calls.get(NKI_CALL, 0) == (1 if kernels == "nki" else 0)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("torch_xla") is None or CHECKOUT is None,
    reason="torch_xla is not installed, or NEURONX_DISTRIBUTED names no checkout",
)
def test_networks_of_the_real_layers(tmp_path: Path) -> None:
    """neuronx-distributed's own source under torch_xla: parallel state, layers, mappings."""
    source = Path(str(CHECKOUT)) / "src"
    if not source.is_dir():  # a bare repository
        archive = tmp_path / "source.tar"
        git = ["git", f"--git-dir={CHECKOUT}", "archive", "-o", str(archive), "HEAD", "src"]
        subprocess.run(git, check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
        source = tmp_path / "src"
    done = subprocess.run(
        [sys.executable, "-m", "tests.compile.real_layers", str(source)],
        cwd=HERE.parents[2],
        env=os.environ | {"PJRT_DEVICE": "CPU"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "8 networks of neuronx-distributed's layers lowered" in done.stdout


def test_lowering_is_refused_in_one_sentence(tmp_path: Path) -> None:
    if importlib.util.find_spec("torch_xla") is not None:
        pytest.skip("torch_xla is installed")
    arguments = ["--lower", str(tmp_path / "hlo"), "--model", str(DEFAULT_MODEL), "--kernels"]
    arguments += ["torch", "--instance", "trn1.2xlarge", "--context", "64", "--samples", "2"]
    with pytest.raises(InputError, match="--lower needs torch_xla"):
        planning.main(arguments)
    assert not (tmp_path / "hlo").exists()
