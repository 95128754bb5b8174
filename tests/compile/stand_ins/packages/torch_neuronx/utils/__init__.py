"""Which cores are meant, as neuronx_distributed/utils/model_utils.py asks for it."""

from __future__ import annotations

import os
import re

OVERRIDE = "NEURON_PLATFORM_TARGET_OVERRIDE"


def get_platform_target(compiler_args: str | None = None) -> str:
    """The target: of the variable, or of `--target`; a host without devices knows no other."""
    named = re.search(r"--target[= ](\w+)", compiler_args or "")
    target = os.environ.get(OVERRIDE) or (named[1] if named else None)
    if target is None:
        raise RuntimeError(f"no Neuron device here: set {OVERRIDE}")
    return target
