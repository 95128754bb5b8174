"""The kernels stay inside the part of the language that every NKI version accepts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nki_kernels
from nki_sim.language_check import VERSIONS, check_file

pytestmark = pytest.mark.null

PACKAGE = Path(nki_kernels.__file__).parent
KERNELS = sorted(PACKAGE.glob("*/kernel.py"))
PIECES = sorted(
    {p for p in PACKAGE.glob("*/*.py") if "\nimport nki." in p.read_text()}
    | {p for stem in ("plan", "timetable", "pieces") for p in PACKAGE.glob(f"*/{stem}.py")}
)
"""What kernels are made of: all of it keeps to their rules."""
LAUNCHED = [path for path in KERNELS if path.parent.name != "attention_state"]
ALLOWED = ("nki", "nki.isa", "nki.language", "__future__")


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: path.parent.name)
def test_accepted_by_every_version(path: Path) -> None:
    """NKI 0.2 to 0.7, the shared pieces that the kernel calls included."""
    shared = {f"nki_kernels.{piece.parent.name}.{piece.stem}": piece for piece in PIECES}
    assert check_file(str(path), None, list(VERSIONS), shared) == []


@pytest.mark.parametrize("path", PIECES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_kernel_can_be_copied_out(path: Path) -> None:
    """It imports `nki`, and pieces of this package that import nothing but `nki`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(name.name in ALLOWED for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            piece = PACKAGE.parent / f"{module.replace('.', '/')}.py"
            assert module in ALLOWED or piece in PIECES


@pytest.mark.parametrize("path", PIECES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
