"""What the NKI compiler refuses, per version, found in the source of a kernel without running it.

A simulator runs any Python; the compilers of NKI 0.2 to 0.6 parse a subset of it (AWS: NKI CPU
Simulator, Simulation Limitations), and every version adds and removes names. `check_source` and
`check_file` report both with file, line and the public document behind each finding;
`python -m nki_sim.language_check` does so on the command line.
"""

from __future__ import annotations

from nki_sim.language_check.check import check_file, check_source
from nki_sim.language_check.findings import Finding
from nki_sim.language_check.rules import RULES, Rule
from nki_sim.language_check.versions import VERSIONS, LanguageCheckError

__all__ = [
    "RULES",
    "VERSIONS",
    "Finding",
    "LanguageCheckError",
    "Rule",
    "check_file",
    "check_source",
]
