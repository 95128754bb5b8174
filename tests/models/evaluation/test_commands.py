"""Programs of users: what they are given, how long they may take, and what stays of them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from models.evaluation import check_command, run_command
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

READ_STDIN = "import sys; text = sys.stdin.read(); print(text); sys.exit(text != 'ünï $(id)\\n')"


def python(code: str, *arguments: str) -> list[str]:
    return ["{python}", "-c", code, *arguments]


def test_the_answer_comes_on_stdin() -> None:
    right = run_command(python(READ_STDIN), "p", "ünï $(id)\n")
    assert right.passed
    assert right.output == "ünï $(id)\n\n"
    wrong = run_command(python(READ_STDIN), "p", "$HOME; exit 0")
    assert (wrong.code, wrong.passed) == (1, False)


def test_texts_come_as_files() -> None:
    code = "import sys; p, a = (open(x).read() for x in sys.argv[1:]); sys.exit(p + a != 'onetwo')"
    assert run_command(python(code, "{prompt}", "{answer}"), "one", "two").passed
    assert not run_command(python(code, "{answer}", "{prompt}"), "one", "two").passed
    glued = "import sys; sys.exit(not sys.argv[1].startswith('file=/') or '{x}' != sys.argv[2])"
    assert run_command(python(glued, "file={answer}", "{x}"), "", "").passed


def test_how_it_ended() -> None:
    failed = run_command(python("raise ValueError('odd')"), "", "")
    assert failed.code == 1
    assert "ValueError: odd" in failed.complaint
    killed = run_command(python("import os, signal; os.kill(os.getpid(), signal.SIGTERM)"), "", "")
    assert killed.code == -15
    assert not killed.passed


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return status != "Z"


@pytest.mark.parametrize("parent_stays", [True, False])
def test_no_child_outlives_the_time_limit(tmp_path: Path, parent_stays: bool) -> None:
    """The whole process group is killed, also where the program itself has ended already."""
    told = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n" + "time.sleep(60)\n" * parent_stays
    )
    begin = time.monotonic()
    done = run_command(python(code, str(told)), "", "", time_limit=2.0)
    assert time.monotonic() - begin < 20
    assert done.code == (None if parent_stays else 0)
    pid = int(told.read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.05)
    else:
        os.kill(pid, 9)
        pytest.fail("a child went on")


def test_much_output_is_cut_and_blocks_nobody() -> None:
    done = run_command(python("print('x' * 5_000_000)"), "", "")
    assert done.passed
    assert len(done.output) == 64 * 1024


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rm -rf /", "a command is a list of strings, the program first, not 'rm -rf /'"),
        ([], "a command is a list of strings"),
        (["true", 1], "a command is a list of strings"),
        (["no-such-program-here"], "line 3: there is no program 'no-such-program-here'"),
    ],
)
def test_commands_that_are_refused(arguments: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_command(arguments, "line 3")


def test_commands_that_are_accepted() -> None:
    assert check_command(["{python}", "x"], "") == ("{python}", "x")
    assert check_command([sys.executable], "") == (sys.executable,)
