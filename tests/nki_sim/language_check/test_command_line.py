"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from nki_sim.language_check import RULES
from nki_sim.language_check.__main__ import main

pytestmark = pytest.mark.null

SOURCE = """import nki
from helpers import h


@nki.jit
def k(x):
    return x is None


def clean(x):
    return h(x)
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.py"
    path.write_text(SOURCE, encoding="utf-8")
    (tmp_path / "helpers.py").write_text("def h(x):\n    return x is None\n", encoding="utf-8")
    return path


def test_findings_give_exit_code_one(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(kernel), "--nki", "0.3,0.7"]) == 1
    line = capsys.readouterr().out.strip()
    assert line.startswith(f"{kernel}:7:12: is-operator: ")
    assert "[NKI 0.3; stated: NKI Migration Guides" in line


def test_nothing_found_gives_zero(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(kernel), "--nki", "0.7"]) == 0
    assert main([f"{kernel}:clean"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"nothing to find in {kernel} for NKI 0.7",
        f"nothing to find in {kernel}:clean for NKI 0.2, 0.3, 0.4, 0.5, 0.6, 0.7",
    ]


def test_other_modules_are_followed(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helper = kernel.with_name("helpers.py")
    assert main([f"{kernel}:clean", "--source", f"helpers={helper}"]) == 1
    assert capsys.readouterr().out.startswith(f"{helper}:2:12: is-operator")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["absent.py"],
        ["KERNEL:absent"],
        ["KERNEL", "--nki", "1.0"],
        ["KERNEL", "--source", "helpers"],
    ],
)
def test_bad_input_gives_two(
    arguments: list[str], kernel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.replace("KERNEL", str(kernel)) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1


def test_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [rule.id for rule in RULES]
