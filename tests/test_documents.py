"""The Python in the documents runs as written, top to bottom, and their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page.relative_to(ROOT)
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


SLOW = ("docs/generation.md", "docs/transformers.md")
"""Pages whose Python generates text: several seconds each."""


@pytest.mark.sim
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page), marks=[pytest.mark.slow] if str(page) in SLOW else [])
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(blocks(page, "python")))
    result = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.null
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text())
    local = [target for target in targets if not target.startswith("http")]
    missing = [target for target in local if not ((ROOT / page).parent / target).exists()]
    assert not missing


@pytest.mark.null
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_named_files_exist(page: Path) -> None:
    """Commands and prose name files of the project as `folder/name.py`; each is there."""
    rooms = "nki_sim|nki_kernels|models|compile|scripts|tests|docs"
    named = re.findall(
        rf"(?<![\w/.])((?:{rooms})/[\w/]+\.(?:py|sh|md|json)(?!\w))", (ROOT / page).read_text()
    )
    assert not [name for name in named if not (ROOT / name).exists()]
