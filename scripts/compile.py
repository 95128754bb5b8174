"""Says what would be compiled for a Neuron instance, and whether it fits: `--dry-run`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# Until `main` runs, Ctrl-C ends the process without a traceback out of an import.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# A script's own folder leads the path; this script must not hide the package of its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import command_line
from scripts.planning import main

if __name__ == "__main__":
    command_line.run(main)
