"""The validating scripts, rehearsed: end to end, killed and gone on with, and able to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nki_sim
from compile.cache import Cache
from compile.export import Cpu
from compile.make import make_artifact
from compile.neuron import Neuron
from compile.plan import Request, make_plan
from models.causal_lm import load_config
from models.pretrained import DEFAULT_MODEL
from nki_kernels import calls
from nki_kernels.calls import kernel_cases, tensors_of, with_tensors
from nki_kernels.errors import InputError
from nki_sim.targets import OVERRIDE
from scripts import validate_on_device, validate_on_sdk
from scripts.validation import machine, runner, tokens
from scripts.validation.graphs import Wanted, graph_jobs, plans
from scripts.validation.kernels import every, few, kernel_jobs, on_aws_simulator, on_our_simulator
from scripts.validation.report import Report, load
from scripts.validation.runner import Found, Job, open_report, run, tell
from tests.compile.stand_ins import installed
from tests.models.tiny import CONFIG
from tests.nki_kernels import ordinary

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., int]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Runs a script's `main` in this process; its exit code."""
    monkeypatch.setenv(OVERRIDE, "trn1")  # what the scripts set is taken back

    def go(module: Any, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["validate", *arguments])
        try:
            module.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return go


def empty(rehearsal: bool = True) -> Report:
    return Report("sdk", rehearsal, "v", {})


def job(name: str, do: Callable[[], Found], evidence: str = "computed") -> Job:
    return Job(name, "kernels", "k", "trn1", evidence, do)


# --- end to end


def test_sdk_rehearsal(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sdk.json"
    assert script(validate_on_sdk, "--rehearse", "--only", "write_kv", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "3 of 3 passed   (computed)" in said and "nothing here was compiled" in said
    report = load(out)
    assert {case.stage for case in report.cases.values()} == {"planted", "kernels", "compile"}
    assert {case.evidence for case in report.cases.values()} == {"computed"}
    assert report.rehearsal and report.planned == len(report.cases) == 5
    assert report.environment["packages"]["numpy"] and "instance" not in report.environment
    assert report.environment["settings"][OVERRIDE] == "trn1"
    assert not list(tmp_path.glob(".bifork-*"))


WANTED = Wanted("trn1", None, 2, (8,), (2,), 4)


@pytest.mark.slow
def test_graphs_of_a_plan_in_both_forms(tmp_path: Path) -> None:
    jobs = graph_jobs(plans(CONFIG, WANTED), lambda plan: Cpu(), tmp_path / "work", "computed")
    report = run(jobs, empty(), tmp_path / "r.json")
    assert [case.outcome for case in report.cases.values()] == ["passed"] * 4
    assert {name.split("/")[1] for name in report.cases} == {"nki", "torch"}
    for case in report.cases.values():
        assert case.details["instance"] == "trn1.2xlarge" and case.details["bytes"] > 1000
        assert case.details["planned_instructions"] > 0


@pytest.mark.slow
def test_graphs_go_through_the_backend_for_neuron(tmp_path: Path) -> None:
    """Stand-ins have the packages' places: what is asked of them is right, and nothing compiles."""
    with installed():
        jobs = graph_jobs(plans(CONFIG, WANTED), Neuron.for_plan, tmp_path / "work", "compiled")
        report = run(jobs, empty(rehearsal=False), tmp_path / "r.json")
    assert [(case.outcome, case.message) for case in report.cases.values()] == [
        ("passed", None)
    ] * 4
    assert (tmp_path / "work" / "nki" / f"{jobs[0].kernel}.neff").is_file()
    assert "decode" in jobs[0].kernel  # whose layouts of weights the others follow


def test_a_graph_of_which_nothing_is_left_has_failed(tmp_path: Path) -> None:
    class Silent(Cpu):
        def trace_graph(self, *arguments: Any) -> Callable[[Path], None]:
            return lambda folder: None

        def stages(self, specs: Any) -> Any:
            return [[spec] for spec in specs]

    jobs = graph_jobs(plans(CONFIG, WANTED), lambda plan: Silent(), tmp_path / "work", "computed")
    one, other = run(jobs[:2], empty(), tmp_path / "r.json").cases.values()
    assert one.outcome == "failed" and one.message == "the compiler left no file"
    assert other.outcome == "error" and "which comes first, failed" in str(other.message)


def test_graphs_that_no_plan_is_made_for() -> None:
    with pytest.raises(InputError, match="--target trn3 has no planned instance; name one of"):
        plans(CONFIG, replace(WANTED, target="trn3"))
    with pytest.raises(InputError, match=r"--instance inf2\.xlarge has cores of inf2, not trn1"):
        plans(CONFIG, replace(WANTED, instance="inf2.xlarge"))


def test_device_rehearsal(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    arguments = ("--rehearse", "--only", "projection/", "--shape", "gqa", "--out", str(out))
    assert script(validate_on_device, *arguments, "--stages", "kernels,times") == 0
    report = load(out)
    assert report.clock is not None and "measures nothing" in report.clock["name"]
    timed = [case for case in report.cases.values() if case.stage == "times"]
    assert [case.name for case in timed] == ["times/projection/gqa-b16"]
    assert timed[0].evidence == "predicted" and timed[0].times is not None
    assert timed[0].times.us == (timed[0].times.nominal_us,)
    assert timed[0].times.low_us < timed[0].times.nominal_us < timed[0].times.high_us
    assert set(timed[0].engines) == {"clock", "predicted"}
    assert timed[0].call is not None and timed[0].call["arrays"][0] == [[16, 512], "bfloat16"]


@pytest.mark.slow
def test_tokens_of_the_default_model(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    assert script(validate_on_device, "--rehearse", "--stages", "tokens", "--max-new-tokens", "3",
                  "--out", str(out)) == 0  # fmt: skip
    report = load(out)
    assert [case.details["tokens"] for case in report.cases.values()] == [12, 12]


@pytest.mark.slow
def test_tokens_of_an_artefact(script: Script, tmp_path: Path) -> None:
    """The default model compiled for a CPU; an instance takes one for its cores."""
    request = Request("trn1.2xlarge", 1, torch.float32, (384,), (4,), 3, kernels="torch")
    plan = make_plan(load_config(DEFAULT_MODEL), request)
    folder = tmp_path / "artefact"
    make_artifact(plan, DEFAULT_MODEL, folder, Cpu(), Cache(tmp_path / "cache"), 20)
    arguments = ["--rehearse", "--stages", "tokens", "--max-new-tokens", "3", "--artifact"]
    out = ["--out", str(tmp_path / "r.json")]
    assert script(validate_on_device, *arguments, str(folder), *out) == 0
    cases = load(tmp_path / "r.json").cases
    assert list(cases) == ["tokens/artifact-greedy", "tokens/artifact-drawn"]
    assert {case.details["tokens"] for case in cases.values()} == {12}
    with pytest.raises(InputError, match="is for target trn1; this run is for trn2"):
        script(validate_on_device, *arguments, str(folder), "--target", "trn2", "--out",
               str(tmp_path / "other.json"))  # fmt: skip
    with pytest.raises(InputError, match="is for device cpu; this run is for neuron"):
        tokens.artifact_jobs(folder, "", "trn1", "measured", False, 3)


def test_other_tokens_are_a_finding() -> None:
    same = tokens.compare([[1, 2], [3]], [[1, 2], [3]])
    assert same.wrong is None and same.details["answers that differ"] == 0
    other = tokens.compare([[1, 2], [3, 4]], [[1, 2], [3, 5]])
    assert other.wrong is not None and "(answer 1) at token 1: [4] instead of [5]" in other.wrong
    short = tokens.compare([[1]], [[1, 2]])
    assert short.wrong is not None and "at token 1: [] instead of [2]" in short.wrong


# --- what must turn red


def test_a_planted_wrong_kernel_fails(tmp_path: Path) -> None:
    planted = next(each for each in ordinary.ERRORS if each.name == "output not divided")
    broken = ordinary.load(planted, tmp_path)

    def runs(call: calls.Call, target: str) -> Any:
        arguments, options = with_tensors(call, [each.clone() for each in tensors_of(call)])
        return nki_sim.simulate(broken, target=target)(*arguments, **options)

    jobs = kernel_jobs(
        "trn1", runs, "computed", every("ordinary_attention/c37-d9-b3-h4g2-k16-fl-G3")
    )
    report = run(jobs, empty(), tmp_path / "r.json")
    case = report.cases["kernels/ordinary_attention/c37-d9-b3-h4g2-k16-fl-G3"]
    assert case.outcome == "failed" and case.margin is not None and case.margin > 1
    assert case.message is not None and "times what is allowed" in case.message
    assert case.agreement is not None and case.agreement > 1  # our simulator says otherwise
    assert load(tmp_path / "r.json").cases == report.cases


def test_a_comparison_that_never_fails_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls.Call, "margin", lambda self, outputs: 0.0)
    jobs = kernel_jobs("trn1", on_our_simulator, "computed", every("write_kv/rows1-"))
    report = run(jobs, empty(), tmp_path / "r.json")
    assert [case.outcome for case in report.cases.values()] == ["failed", "passed"]
    assert "no result here counts" in str(report.cases[jobs[0].name].message)


def test_a_case_that_breaks_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    def breaks() -> Found:
        raise RuntimeError("\n  NCC_EVRF007: too many instructions\nmore")

    report = run([job("a", breaks), job("b", Found)], empty(), tmp_path / "r.json")
    assert [case.outcome for case in report.cases.values()] == ["error", "passed"]
    message = str(report.cases["a"].message)
    assert "NCC_EVRF007" in message and "next: " in message and "\n" not in message
    assert tell(ValueError("x" * 2000)).endswith("...") and len(tell(ValueError("x" * 2000))) <= 600


def test_aws_simulator_is_called_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nki.simulate(kernel)(tensors)`, target from the environment; ours has the same call."""
    case = next(case for case in kernel_cases() if case.name == "write_kv/rows5-g3")
    nki_sim.binding.bind()
    monkeypatch.setenv(OVERRIDE, "trn2")
    call = case.make("trn2")
    before = call.arguments[2].clone()
    assert call.margin(on_aws_simulator(call, "trn2")) == 0
    assert before.equal(call.arguments[2])  # the kernel wrote into a copy


# --- going on


KILLED = """
import os, signal, sys
from scripts import validate_on_sdk
from scripts.validation import kernels
hold, left = kernels.hold, [2]
def dying(*arguments):
    left[0] -= 1
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    return hold(*arguments)
kernels.hold = dying
validate_on_sdk.main()
"""


@pytest.mark.slow
def test_killed_and_gone_on_with(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = ["--rehearse", "--only", "write_kv", "--stages", "kernels", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        capture_output=True,
        cwd=ROOT,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    halfway = load(out)
    assert [case.outcome for case in halfway.cases.values()] == ["passed", "passed", "running"]
    assert script(validate_on_sdk, *arguments) == 0
    report = load(out)
    assert [case.attempts for case in report.cases.values()] == [1, 1, 2, 1]
    assert list(report.cases.values())[:2] == list(halfway.cases.values())[:2]  # not run again
    assert not list(tmp_path.glob(".bifork-*"))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    ran = []

    def count(name: str, wrong: str | None = None) -> Job:
        return job(name, lambda: Found(wrong=ran.append(name) or wrong))  # type: ignore[func-returns-value]

    jobs = [count("a"), count("b", "is wrong")]
    path = tmp_path / "r.json"
    run(jobs, empty(), path)
    run(jobs, open_report(path, "sdk", True, "v", {}, None), path)
    assert ran == ["a", "b"]
    run([*jobs, count("c")], open_report(path, "sdk", True, "v", {}, None), path)
    assert ran == ["a", "b", "c"] and load(path).planned == 3
    run(jobs, open_report(path, "sdk", True, "v", {}, None), path, again=True)
    assert ran == ["a", "b", "c", "b"]


def test_a_case_that_ends_the_process_twice_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "r.json"

    def killed() -> Found:
        raise SystemExit  # as a kill leaves it: nothing is written afterwards

    for _ in range(runner.ATTEMPTS):
        with pytest.raises(SystemExit):
            run([job("a", killed)], open_report(path, "sdk", True, "v", {}, None), path)
    report = run(
        [job("a", killed), job("b", Found)], open_report(path, "sdk", True, "v", {}, None), path
    )
    assert report.cases["a"].outcome == "error" and report.cases["b"].outcome == "passed"
    assert "ended 2 times" in str(report.cases["a"].message)
    again = run([job("a", Found)], open_report(path, "sdk", True, "v", {}, None), path, again=True)
    assert again.cases["a"].outcome == "passed"


def test_interrupted(tmp_path: Path) -> None:
    def interrupt() -> Found:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([job("a", Found), job("b", interrupt)], empty(), tmp_path / "r.json")
    assert list(load(tmp_path / "r.json").cases) == ["a"]


# --- bad input


BAD = {
    "stage": (["--stages", "kernels,cooking"], "--stages 'cooking' is none of kernels, compile"),
    "compiler's target": (
        ["--target", "trn3"],
        r"neuronx-cc documents trn1, inf2, trn2.* stages "
        r"compile, graphs .*give --stages kernels$",
    ),
    "no case": (["--rehearse", "--only", "no such case"], "--only 'no such case' leaves no case"),
    "folder": (["--rehearse", "--out", "."], "--out . is a folder"),
    "no folder": (["--rehearse", "--out", "nowhere/r.json"], "there is no folder"),
    "no SDK": ([], "this needs nki .*neuronx-cc .*torch-neuronx .*--rehearse"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, script: Script, tmp_path: Path) -> None:
    arguments, message = BAD[name]
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "r.json")]
    with pytest.raises(InputError, match=message) as caught:
        script(validate_on_sdk, *arguments, *out)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--shape", "mqa"], "--shape 'mqa' is none of mha, gqa"),
        (["--samples", "x"], "--samples x: write whole numbers above 0"),
        (["--captures", "0"], "--captures must be at least 1, got 0"),
        ([], r"a Neuron device \(no /dev/neuron0.*neuron-explorer or neuron-profile"),
    ],
    ids=["shape", "samples", "captures", "no device"],
)
def test_bad_input_of_a_device(
    arguments: list[str], message: str, script: Script, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        script(validate_on_device, *arguments, "--out", str(tmp_path / "r.json"))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        ("[]", "is not a validation report"),
        ('{"schema": 99, "cases": []}', "has schema 99; this version reads 1"),
        ('{"schema": 1, "cases": [{"name": "a"}]}', "is not a whole report"),
    ],
    ids=["not JSON", "a list", "a later schema", "half a case"],
)
def test_out_is_something_else(content: str, message: str, script: Script, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    out.write_text(content)
    with pytest.raises(InputError, match=message):
        script(validate_on_sdk, "--rehearse", "--only", "write_kv", "--out", str(out))
    assert out.read_text() == content


def test_a_report_is_about_one_role_and_one_set_of_versions(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run([job("a", Found)], empty(), path)
    for changed in (("device", True, "v"), ("sdk", False, "v"), ("sdk", True, "w")):
        with pytest.raises(InputError, match="one machine and one set of versions"):
            open_report(path, *changed, {}, None)


def test_a_rehearsal_cannot_be_called_measured(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    run([job("a", Found, "measured")], empty(rehearsal=False), path)
    assert load(path).cases["a"].evidence == "measured"
    content = json.loads(path.read_text()) | {"rehearsal": True}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="a calls a rehearsal measured"):
        load(path)


# --- what is installed


def install(folder: Path, name: str, version: str, **files: str) -> None:
    """A package as `importlib.metadata` sees it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_stubs_of_the_public_index_are_not_the_sdk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "nki", "0.0.1")
    install(tmp_path, "neuronx-cc", "1.0")
    install(tmp_path, "torch-neuronx", "1.0")
    install(tmp_path, "neuronx-distributed", "0.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine.missing(list(machine.NEEDED)) == [
        "nki >= 0.2 (found 0.0.1, a stub or too old)",
        "neuronx-cc >= 2 (found 1.0, a stub or too old)",
        "torch-neuronx >= 2 (found 1.0, a stub or too old)",
        "neuronx-distributed >= 0.15 (found 0.1, a stub or too old)",
    ]


def test_a_package_of_the_right_version_without_content_is_a_stub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "nki", "0.5.0", **{"nki/__init__.py": "raise ImportError('WRONG PACKAGE')"})
    install(tmp_path, "neuronx-cc", "2.26.6360.0+abc")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = machine.missing(["nki", "neuronx-cc"])
    assert found == ["nki (found 0.5.0, a stub without language and isa)"]
    assert machine.environment(True)["sdk"] == "2.31"


def test_nki_without_a_simulator_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = ("nki/__init__.py", "nki/isa/__init__.py", "nki/language/__init__.py")
    install(tmp_path, "nki", "0.2.0", **dict.fromkeys(modules, ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert machine.missing(["nki"]) == []
    with pytest.raises(InputError, match=r"nki >= 0\.3 \(found 0\.2\.0"):
        machine.refuse_without(["nki"], simulator=True)


@pytest.mark.parametrize(
    "visible, together, found",
    [("", True, ("0", "1")), ("4-7", True, ("4", "7")), ("2,3", True, ("2", "3")),
     ("5", False, ("5", "5"))],
)  # fmt: skip
def test_the_profiler_has_a_core_of_its_own(
    visible: str, together: bool, found: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machine.VISIBLE, visible)
    assert machine.cores(together) == found


@pytest.mark.parametrize("visible", ["0", "3-3", "all"])
def test_cores_that_do_not_do(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.VISIBLE, visible)
    with pytest.raises(InputError, match=f"NEURON_RT_VISIBLE_CORES is '{visible}'"):
        machine.cores(True)


def test_cores_and_logs_make_no_other_version() -> None:
    about = machine.environment(True)
    key = machine.versions_key(about)
    same = about | {"settings": about["settings"] | {"NEURON_RT_VISIBLE_CORES": "1"}}
    other = about | {"settings": about["settings"] | {OVERRIDE: "trn2"}}
    assert machine.versions_key(same) == key != machine.versions_key(other)
    assert machine.versions_key(about | {"driver": "2.29"}) != key


def test_few_cases_are_one_of_each_kernel_and_dtype() -> None:
    made = {(case.kernel, case.dtype) for case in kernel_cases()}
    assert [(case.kernel, case.dtype) for case in few()] == list(
        dict.fromkeys((case.kernel, case.dtype) for case in kernel_cases())
    )
    assert len(made) == len(few()) < len(every()) == len(kernel_cases())
