"""`scripts/compile.py`: the plan, and what it says where something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from scripts import planning

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
        ([*SMALL, "--device", "neuron"], "(?i)neuron"),
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
def test_a_model_is_compiled_and_serves(tmp_path: Path) -> None:
    """The two commands as a user types them; the second time nothing is compiled."""
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
    command += ["--max-new-tokens", "24", "--out", str(out), "--cache", str(cache)]
    done = run(*command, "--json", str(tmp_path / "made.json"))
    assert done.returncode == 0, done.stderr
    assert "computed: no graph has been seen by neuronx-cc" in done.stdout
    made = json.loads((tmp_path / "made.json").read_text())
    assert [graph["cached"] for graph in made["graphs"]] == [False, False]
    again = run(*command)
    assert "graphs    0 compiled in 0.0 s, 2 from" in again.stdout, again.stdout + again.stderr

    asked = ["-n", "3", "--seed", "7"]
    served, direct = tmp_path / "served.json", tmp_path / "direct.json"
    done = run("scripts/generate.py", "--artifact", str(out), *asked, "--json", str(served))
    assert done.returncode == 0, done.stderr
    assert "bucket    G = 1, r = 4, S_ctx = 320, S_dec = 23; 98%" in done.stdout
    assert run("scripts/generate.py", *asked, "--json", str(direct)).returncode == 0
    tokens = [
        [sample["tokens"] for sample in json.loads(path.read_text())["samples"]]
        for path in (served, direct)
    ]
    assert tokens[0] == tokens[1]

    for arguments, message in (
        (["-n", "5"], "the artefact's buckets hold up to 320, 4 and 24"),
        (["--tp", "2"], "--tp does not go with --artifact: it was chosen when it was compiled"),
        (["--kernels", "nki"], f"--kernels nki: {out} was compiled in the torch form"),
    ):
        done = run("scripts/generate.py", "--artifact", str(out), *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "compile.cache", "list", "--cache", str(cache)],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert "decode_1x4_320_23" in listed.stdout and "2 graphs in" in listed.stdout
