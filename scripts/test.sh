#!/usr/bin/env bash
# Install what the tests need and run them, one process a core. Arguments go on to pytest, for example:
#   ./scripts/test.sh -m "not slow"        ./scripts/test.sh -n 0 -s tests/nki_sim/test_trace.py
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
environment "dev"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # a test process has a core, not the machine
exec "$PY" -m pytest -n auto "$@"
