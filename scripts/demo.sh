#!/usr/bin/env bash
# One command from a fresh clone to ranked answers: the default model, its attention as NKI kernels on the
# simulator. Arguments go on to generate.py and override the ones below.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
environment ""
exec "$PY" scripts/generate.py --kernels nki --device cpu --samples 16 --seed 7 "$@"
