#!/usr/bin/env bash
# One command from a fresh clone to ranked answers: the default model, its attention as NKI kernels on the
# simulator. Arguments go on to generate.py and override the ones below.
set -euo pipefail
caller="$PWD"
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
root="$PWD"
source scripts/environment.sh
environment ""
cd "$caller"  # where relative paths among the arguments start
exec "$PY" "$root/scripts/generate.py" --kernels nki --device cpu --samples 16 --seed 7 "$@"
