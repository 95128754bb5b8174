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
        (SMALL, "compiling is not built yet"),
        (["--dry-run", "--instance", "trn1.2xlarge"], "either --model DIR or --config FILE"),
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
