"""``python -m nki_sim``: the list of rules, and unmodified scripts."""

from __future__ import annotations

import pytest

from nki_sim import rules
from nki_sim.__main__ import main
from tests.nki_sim.test_binding import python

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


def test_missing_script(capsys, tmp_path):
    assert main(["run", str(tmp_path / "no.py")]) == 2
    assert "is not a file" in capsys.readouterr().err
