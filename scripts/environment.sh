# Sourced by demo.sh and test.sh: leaves in $PY the Python to use, with the project and the wanted extras installed.
#
#   environment EXTRAS      EXTRAS: "" or a comma-separated list of extras of pyproject.toml
#
# Inside an environment that holds AWS's torch-neuronx, that environment is used and its torch is pinned to
# what is there. Anywhere else a virtual environment is made in .venv. What is installed is remembered by a
# stamp, so a second run neither installs nor needs a network.

_sdk_here() {  # is this Python's torch-neuronx AWS's own? (the public index's stub of that name is 1.0)
    "$1" - <<'PY' 2>/dev/null
import importlib.metadata as m, sys
sys.exit(0 if m.version("torch-neuronx").startswith("2.") else 1)
PY
}

_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

environment() {
    local extras="$1" base="" candidate stamp wanted constraints
    local target=".${extras:+[$extras]}"

    if command -v python3 >/dev/null && _sdk_here python3; then
        PY="$(command -v python3)"
        echo "environment: using the Neuron SDK's own ($PY); its torch stays as it is"
        stamp="$("$PY" -c 'import sys; print(sys.prefix)')/.bifork-installed"
    else
        for candidate in python3 python3.12 python3.11 python3.13; do
            if command -v "$candidate" >/dev/null && _supported "$candidate"; then base="$candidate"; break; fi
        done
        if [ -z "$base" ]; then
            echo "environment: needs Python 3.11, 3.12 or 3.13; found $(python3 --version 2>&1 || true)" >&2
            return 2
        fi
        # A virtual environment holds absolute paths: one that was moved or half made is made again.
        if ! [ "$(.venv/bin/python -c 'import pip, sys; print(sys.prefix)' 2>/dev/null)" = "$PWD/.venv" ]; then
            echo "environment: making .venv with $("$base" --version)"
            rm -rf .venv
            "$base" -m venv .venv
        fi
        PY="$PWD/.venv/bin/python"
        stamp=".venv/.bifork-installed"
    fi

    # The stamp holds one line for each set of extras that was installed from this checkout.
    wanted="$("$PY" -c 'import hashlib, os, sys; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest(), sys.argv[1] or "-", os.getcwd())' "$extras")"
    if ! grep -qsxF -- "$wanted" "$stamp"; then
        echo "environment: installing bifork${extras:+[$extras]} (once)"
        constraints="$(mktemp)"
        "$PY" -m pip list --format=freeze 2>/dev/null | grep -iE '^(torch|torch-xla|torch-neuronx)==' >"$constraints" || true
        if ! "$PY" -m pip install --quiet --constraint "$constraints" --editable "$target"; then
            rm -f "$constraints"
            echo "environment: the installation failed; pip's own message is above" >&2
            return 2
        fi
        rm -f "$constraints"
        echo "$wanted" >>"$stamp"
    fi
}
