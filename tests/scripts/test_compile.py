"""`scripts/compile.py`: the plan, and what it says where something is wrong."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from compile import cache as caching
from compile.artifact import seal
from compile.export import Cpu
from compile.plan import Request, make_plan
from models.causal_lm.directory import load_config
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from scripts import generate, planning, serving
from scripts.compiling import serve_command
from tests.compile import making

pytestmark = pytest.mark.null

ROOT = Path(__file__).parents[2]
SMALL = ["--model", str(DEFAULT_MODEL), "--instance", "trn1.2xlarge", "--kernels", "torch"]
SMALL += ["--context", "64", "--max-new-tokens", "16"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script as a user starts it: its own folder stands first on Python's path."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_prints_a_plan_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    planning.main(["--dry-run", *SMALL, "--json", str(out), "--weights", "int8"])
    assert "decode_1x16_64_15" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["model"]["weights"] == "int8" and content["core_memory"]["fits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "x.json", "--instance", "trn1.2xlarge"], "--config is for --dry-run"),
        ([*SMALL, "--weights", "int8"], "--weights and --kv-dtype are for --dry-run"),
        ([*SMALL, "--top-k", "5000"], "top_k is 5000; graphs draw among 1 to 4096"),
        ([*SMALL, "--out", "no/such/folder"], "there is no folder no/such"),
        ([*SMALL, "--out", "README.md"], "README.md is a file; an artefact is a folder"),
        ([*SMALL, "--out", "docs"], "docs holds something else than an artefact"),
        ([*SMALL, "--samples", "4000000"], "a core of trn1.2xlarge has 16.0 GiB, and this takes"),
        ([*SMALL, "--device", "neuron"], "NeuronCores needs torch-neuronx 2.9"),
        ([*SMALL, "--device", "cpu", "--workers", "2"], "--workers is for neuronx-cc"),
        ([*SMALL, "--device", "cpu", "--compiler-flags=-O1"], "--compiler-flags is for neuronx-cc"),
        ([*SMALL, "--cache", "/dev/null/x"], "cache /dev/null/x cannot be written"),
        (["--dry-run", *SMALL, "--json", "no/such/x"], "--json no/such/x: there is no folder"),
        (["--dry-run", "--instance", "trn1.2xlarge", "--context", "600"], "the model has 512"),
        (["--dry-run", *SMALL, "--config", "x.json"], "either --model DIR or --config FILE"),
        (["--dry-run", *SMALL, "--model", "no/such"], "--model no/such is no directory"),
        (["--dry-run", *SMALL, "--samples", "4,x"], "--samples is '4,x'"),
        (["--dry-run", *SMALL, "--request", "70"], "--request is '70'"),
        (["--dry-run", *SMALL, "--request", "70x2"], "70 prompt tokens; the buckets cover"),
        (["--dry-run", *SMALL, "--instance", "trn9"], "instance is 'trn9'; known: "),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planning.main(arguments)


def test_the_model_that_ships_and_all_of_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    planning.main(["--dry-run", "--instance", "trn1.2xlarge", "--kernels", "torch"])
    assert "prefill_384" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "candidates", "defaults", "options"),
    [
        ({}, 0, {}, ""),
        ({"tp": 2}, 0, {}, ""),
        ({}, 20, {}, " --top-k 20"),
        ({}, 20, {"top_k": 50}, " --top-k 20"),
        ({}, 20, {"top_k": 10}, ""),
        ({}, 20, {"do_sample": False}, ""),
        ({"samples": (4,)}, 0, {}, " -n 4"),
        ({"max_new_tokens": 8}, 0, {}, " --max-new-tokens 8"),
        ({"max_new_tokens": 64}, 0, {"max_new_tokens": None}, " --max-new-tokens 64"),
        ({"contexts": (64, 128)}, 0, {}, ' --prompt "..."'),
    ],
)
def test_what_is_to_be_typed_next(
    asked: dict[str, Any], candidates: int, defaults: dict[str, Any], options: str, tmp_path: Path
) -> None:
    """It names what the artefact serves wherever `generate.py` would ask for something else."""
    model = tmp_path / "model"
    model.mkdir()
    for path in DEFAULT_MODEL.iterdir():
        (model / path.name).symlink_to(path)
    path = model / "generation_config.json"
    given = json.loads(path.read_text()) | defaults
    path.unlink()
    path.write_text(json.dumps(given))
    what: dict[str, Any] = {"tp": 1, "contexts": (384,), "samples": (2, 16), "max_new_tokens": 128}
    what |= {"instance": "trn1.2xlarge", "dtype": torch.float32, "kernels": "torch", **asked}
    plan = make_plan(load_config(model), Request(**what))
    start = "python" if what["tp"] == 1 else "torchrun --nproc-per-node 2"
    told = serve_command(plan, model, Path("an artefact"), Cpu(), candidates)
    assert told == f"{start} scripts/generate.py --artifact 'an artefact'{options}"
    (model / "task.json").unlink()  # a model of no task that ships with a prompt
    assert ' --prompt "..."' in serve_command(plan, model, Path("x"), Cpu(), candidates)


def test_an_artefact_for_neuroncores_on_another_host(tmp_path: Path) -> None:
    seal(tmp_path, {"device": "neuron"})
    told = f"{tmp_path} was compiled for neuron: what is for NeuronCores needs torch-neuronx"
    with pytest.raises(InputError, match=told):
        serving.find_artifact(str(tmp_path), "auto")


@pytest.mark.slow
def test_ctrl_c_keeps_the_graphs_that_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pressed in a terminal when the first of five graphs is in the cache."""
    model = making.checkpoint(tmp_path / "model")
    out, cache = tmp_path / "artefact", tmp_path / "cache"
    command = [sys.executable, "scripts/compile.py", *making.BASE, "--model", str(model)]
    command += ["--context", "8", "--samples", "2,3,4,5", "--kernels", "torch"]
    command += ["--out", str(out), "--cache", str(cache)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=pipe, stderr=pipe, text=True
    )
    while not list(cache.glob("[!.]*/entry.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.endswith(
        "compile.py: interrupted; no artefact was written; graphs that were done are in "
        f"{cache}, and the same command goes on from there\n"
    )
    assert "Traceback" not in error and not out.exists()
    planning.main(command[2:])
    again = capsys.readouterr().out
    found = re.search(rf"graphs    (\d) compiled in .* (\d) from {cache}", again)
    assert found is not None
    compiled, kept = map(int, found.groups())
    assert compiled >= 1 and kept >= 1 and compiled + kept == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artefact", "cache", "model"]


@pytest.mark.slow
def test_one_sentence_and_exit_code_2() -> None:
    done = run("scripts/compile.py", "--dry-run", *SMALL, "--tp", "4")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "compile.py: error: tp is 4; trn1.2xlarge has 2 cores\n"


@pytest.mark.slow
def test_its_name_does_not_hide_the_package() -> None:
    """`scripts/compile.py` lies in the folder that Python puts first for its neighbours."""
    done = run("scripts/generate.py", "--help")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_is_compiled_and_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two commands as a user types them; cache and artefact serve where they are carried."""
    out, cache = tmp_path / "artefact", tmp_path / "cache"
    command = [
        "scripts/compile.py",
        *SMALL,
        "--context",
        "320",
        "--dtype",
        "fp32",
        "--samples",
        "4",
    ]
    command += ["--max-new-tokens", "24", "--top-k", "20"]
    command += ["--out", str(out), "--cache", str(cache)]
    done = run(*command, "--json", str(tmp_path / "made.json"))
    assert done.returncode == 0, done.stderr
    assert "computed: no graph has been seen by neuronx-cc" in done.stdout
    made = json.loads((tmp_path / "made.json").read_text())
    assert [graph["cached"] for graph in made["graphs"]] == [False, False]
    command[-1] = str(cache.rename(tmp_path / "carried to another host"))
    planning.main(command[1:])
    again = capsys.readouterr().out
    assert "graphs    0 compiled in 0.0 s, 2 from" in again

    asked = ["-n", "3", "--seed", "7"]
    served, direct = tmp_path / "served.json", tmp_path / "direct.json"
    advice = again.splitlines()[-1]
    assert advice == f"run it    python scripts/generate.py --artifact {out} -n 4 --top-k 20"
    moved = out.rename(tmp_path / "moved")
    typed = shlex.split(advice.replace(str(out), str(moved)))[3:]
    done = run(*typed, *asked, "--json", str(served))
    assert done.returncode == 0, done.stderr
    assert "bucket    G = 1, r = 4, S_ctx = 320, S_dec = 23; 98%" in done.stdout
    done = run("scripts/generate.py", *asked, "--top-k", "20", "--json", str(direct))
    assert done.returncode == 0, done.stderr
    tokens = [
        [sample["tokens"] for sample in json.loads(path.read_text())["samples"]]
        for path in (served, direct)
    ]
    assert tokens[0] == tokens[1]

    for arguments, message in (
        (["-n", "5", "--top-k", "20"], "the artefact's buckets hold up to 320, 4 and 24"),
        (["-n", "3"], "the request has top-k off; .* ask for --top-k 20 or fewer"),
        (["--tp", "2"], "--tp does not go with --artifact: it was chosen when it was compiled"),
        (["--kernels", "nki"], f"--kernels nki: {moved} was compiled in the torch form"),
    ):
        monkeypatch.setattr("sys.argv", ["generate.py", "--artifact", str(moved), *arguments])
        with pytest.raises(InputError, match=message):
            generate.main()
    capsys.readouterr()
    caching.main(["list", "--cache", command[-1]])
    listed = capsys.readouterr().out
    assert "decode_1x4_320_23" in listed and "2 graphs in" in listed
