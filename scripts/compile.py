"""Says what would be compiled for a Neuron instance, and whether it fits: `--dry-run`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

if __name__ == "compile":
    # Python puts a script's own folder first on the path, where this file would stand for the
    # package of its name. The folder leaves the path; what is next to a script is scripts.NAME.
    here = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here.resolve()]
    del sys.modules[__name__]
    importlib.import_module(__name__)
else:
    from scripts import command_line
    from scripts.planning import main

    if __name__ == "__main__":
        command_line.run(main)
