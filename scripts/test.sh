#!/usr/bin/env bash
# Install what the tests need and run them. Arguments go on to pytest, for example: ./scripts/test.sh -m "not slow"
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
environment "dev"
exec "$PY" -m pytest "$@"
