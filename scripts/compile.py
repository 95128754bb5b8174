"""Compiles a model for a Neuron instance into an artefact that serves; `--dry-run` only plans it.

python scripts/compile.py --dry-run --config FILE --instance trn1.32xlarge --tp 8    does it fit
python scripts/compile.py --model DIR --instance trn1.32xlarge --tp 8                compile
torchrun --nproc-per-node 8 scripts/generate.py --artifact compiled-trn1.32xlarge-tp8       run it
"""

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
