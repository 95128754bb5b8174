"""``python -m nki_sim``: the list of rules, and unmodified scripts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nki_sim import rules
from nki_sim.__main__ import main
from tests.nki_sim.test_binding import ROOT, python

pytestmark = pytest.mark.null

SCRIPT = """
import sys
import numpy as np
import nki
import nki.language as nl

@nki.jit
def kernel(a):
    nl.device_print("tile", nl.load(a))
    print("shape", a.shape)

kernel(np.ones((2, 2), np.float32))
print(sys.argv[1:], __name__)
"""


def test_rules_are_listed(capsys):
    assert main(["rules"]) == 0
    listed = capsys.readouterr().out
    for rule in rules.ALL.values():
        assert rule.id in listed and rule.text in listed and rule.source in listed


def test_run_executes_a_script_unmodified(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = python(f"from nki_sim.__main__ import main; main(['run', {str(script)!r}, '-x', '3'])")
    assert "tile (2, 2) float32" in out and "shape (2, 2)" in out
    assert "['-x', '3'] __main__" in out


def test_a_breakpoint_in_a_kernel_opens_the_debugger(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, nki, nki.language as nl\n"
        "@nki.jit\n"
        "def kernel(x):\n"
        "    tile = nl.load(x)\n"
        "    breakpoint()\n"
        "    return x\n"
        "kernel(np.ones((2, 3), np.float32))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "nki_sim", "run", str(script)],
        input="p tile.shape, tile.values.sum()\nc\n",
        capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
    )  # fmt: skip
    assert "(2, 3)" in done.stdout and "6.0" in done.stdout


KERNELS = """
import nki
import nki.isa as nisa
import nki.language as nl

@nki.jit
def good(a, factor):
    out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
    nl.store(out, nl.multiply(nl.load(a), factor))
    return out

def too_wide(a):
    nl.load(a)

def careless(a):
    tile = nl.ndarray((8, 8), nl.float32, nl.sbuf)
    nisa.tensor_copy(nl.ndarray((8, 8), nl.float32, nl.sbuf), tile)

def identity(a):
    if a is None:
        return None
"""


def check(tmp_path, *arguments):
    """(exit code, output) of ``python -m nki_sim check`` in a fresh process."""
    path = tmp_path / "some_kernels.py"
    path.write_text(KERNELS)
    arguments = [a.replace("FILE", str(path)) for a in arguments]
    code = f"from nki_sim.__main__ import main; print('exit', main(['check', *{arguments!r}]))"
    out = python(f"import sys; sys.stderr = sys.stdout; {code}")
    return int(out.rsplit("exit ", 1)[1]), out


def test_check_runs_a_kernel(tmp_path):
    code, out = check(tmp_path, "FILE:good", "--args", "64x32:bfloat16", "2.0", "--target", "trn1")
    assert code == 0 and "good on gen2: 3 instructions, 8192 DMA bytes" in out
    assert "sbuf of core 0: 128 of 180224" in out


def test_check_reports_what_is_wrong(tmp_path):
    code, out = check(tmp_path, "FILE:too_wide", "--args", "256x32:float32")
    assert code == 1 and "tensor.partitions" in out and "some_kernels.py:13" in out
    code, out = check(tmp_path, "FILE:careless", "--args", "2x2:float32")
    assert code == 1 and "unwritten-read at" in out
    code, out = check(tmp_path, "FILE:identity", "--args", "2x2:float32", "--nki", "0.3")
    assert code == 1 and "some_kernels.py:20" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE:nothing"], "has no function"),
        (["missing.py:f"], "is not FILE.py:FUNCTION"),
        (["FILE:good", "--args", "2xx:float32"], "is not SIZExSIZE:DTYPE"),
        (["FILE:good", "--args", "2x2:float64"], "not an NKI dtype"),
        (["FILE:good", "--target", "tpu"], "not a known target"),
    ],
)
def test_check_refuses_bad_input(tmp_path, arguments, message):
    code, out = check(tmp_path, *arguments)
    assert code == 2 and message in out


def test_the_pytest_fixture(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import numpy as np\n"
        "def test_kernel(nki_simulate):\n"
        "    import nki, nki.language as nl\n"
        "    def kernel(a):\n"
        "        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)\n"
        "        nl.store(out, nl.add(nl.load(a), 1.0))\n"
        "        return out\n"
        "    assert (nki_simulate(kernel, np.zeros((2, 2), np.float32)) == 1).all()\n"
        "    assert nki_simulate.trace.target == 'gen3' and len(nki_simulate.trace) == 3\n"
    )
    out = python(
        f"""
        import importlib.metadata
        import pytest
        plugins = importlib.metadata.entry_points(group="pytest11")
        registered = any(p.name == "nki_sim" for p in plugins)  # where the project is installed
        load = [] if registered else ["-p", "nki_sim.pytest_plugin"]
        print(pytest.main(["-q", *load, "-p", "no:cacheprovider",
                           "--nki-target", "trn2", {str(tmp_path)!r}]))
        """
    )
    assert "1 passed" in out


def test_missing_script(capsys, tmp_path):
    assert main(["run", str(tmp_path / "no.py")]) == 2
    assert "is not a file" in capsys.readouterr().err
