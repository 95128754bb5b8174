"""The set-up that demo.sh and test.sh share, against stand-in Pythons that log what they do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.null

ROOT = Path(__file__).resolve().parents[2]

# Stands in for a Python: answers set-up's questions, and logs every pip install.
STAND_IN = r"""#!/usr/bin/env bash
log="{log}"
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit 0 ;;
  *"-m pip list"*) echo "torch==2.9.0"; echo "numpy==2.0.0"; exit 0 ;;
  *"-m pip install"*) while [ $# -gt 0 ]; do
      [ "$1" = --constraint ] && {{ echo "constraint $(tr '\n' ' ' <"$2")" >>"$log"; shift; }}
      echo "arg $1" >>"$log"; shift; done; exit {pip_exit} ;;
  *"import pip, sys"*) echo "$PWD/.venv"; exit 0 ;;
  *"print(sys.prefix)"*) echo "{prefix}"; exit 0 ;;
  *"sys.version_info"*) exit {version_exit} ;;
  *hashlib*) echo "digest $3 $PWD"; exit 0 ;;
  "-") exit {sdk_exit} ;;
  *--version*) echo "Python 3.11.7"; exit 0 ;;
esac
echo "unexpected: $*" >>"$log"; exit 9
"""


class Checkout:
    """A copy of the set-up files in a path with spaces, and a PATH whose Pythons are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout with spaces"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "environment.sh", self.root / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        self.prefix = folder / "sdk"
        self.prefix.mkdir()

    def python(self, *, sdk: bool = False, supported: bool = True, pip_exit: int = 0) -> None:
        for name in ("python3", "python3.11", "python3.12", "python3.13"):
            path = self.bin / name
            path.write_text(
                STAND_IN.format(
                    log=self.log,
                    prefix=self.prefix,
                    pip_exit=pip_exit,
                    version_exit=0 if supported else 1,
                    sdk_exit=0 if sdk else 1,
                )
            )
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def set_up(self, extras: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                f'source scripts/environment.sh; environment "{extras}"; echo "PY=$PY"',
            ],
            cwd=self.root,
            env={"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.root)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installs(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_second_run_installs_nothing(checkout: Checkout) -> None:
    checkout.python()
    first = checkout.set_up("dev")
    assert first.returncode == 0, first.stderr
    assert f"PY={checkout.root}/.venv/bin/python" in first.stdout
    assert "arg .[dev]" in checkout.installs()
    before = checkout.installs()
    second = checkout.set_up("dev")
    assert second.returncode == 0 and "installing" not in second.stdout
    assert checkout.installs() == before


def test_other_extras_and_a_changed_pyproject_install_again(checkout: Checkout) -> None:
    checkout.python()
    checkout.set_up("")
    assert checkout.installs().count("arg .") == 1
    checkout.set_up("dev")
    assert checkout.installs().count("arg .[dev]") == 1


def test_inside_an_sdk_environment_its_torch_is_pinned(checkout: Checkout) -> None:
    checkout.python(sdk=True)
    result = checkout.set_up("dev")
    assert result.returncode == 0, result.stderr
    assert f"PY={checkout.bin}/python3" in result.stdout
    assert not (checkout.root / ".venv").exists()
    assert "constraint torch==2.9.0 " in checkout.installs()


def test_an_unsupported_python_is_refused_in_one_sentence(checkout: Checkout) -> None:
    checkout.python(supported=False)
    result = checkout.set_up("")
    assert result.returncode == 2
    assert (
        result.stderr.strip() == "environment: needs Python 3.11, 3.12 or 3.13; found Python 3.11.7"
    )


def test_a_failed_installation_leaves_no_stamp(checkout: Checkout) -> None:
    checkout.python(pip_exit=1)
    result = checkout.set_up("")
    assert result.returncode == 2 and "installation failed" in result.stderr
    assert not (checkout.root / ".venv" / ".bifork-installed").exists()
