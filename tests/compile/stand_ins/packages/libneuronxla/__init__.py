"""Stand-in for libneuronxla: the two calls that neuronx_distributed/trace/functions.py makes.

It checks the command line as neuronx-cc would (AWS Neuron documentation, compiler CLI reference,
compiler/neuronx-cc/api-reference-guide) and gives bytes that name the graph.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VALUES = {
    "--target": {"inf2", "trn1", "trn1n", "trn2"},
    "--model-type": {"generic", "transformer", "unet-inference"},
    "--auto-cast": {"none", "matmult", "all"},
    "--lnc": {"1", "2"},
    "--verbose": {"info", "warning", "error", "critical", "debug", "35"},
    "--logfile": None,
    "--internal-hlo2tensorizer-options": None,
}
SWITCHES = {"--enable-saturate-infinity", "--enable-internal-neff-wrapper", "-O1", "-O2", "-O3"}


@dataclass
class Call:
    """One run of the compiler."""

    kind: str
    module: bytes
    flags: str
    work_dir: Path


CALLS: list[Call] = []
"""Runs in this process, oldest first."""

FAILURES: list[tuple[str, str]] = []
"""Planted failures: (part of the working directory's name, what the compiler says)."""


def neuron_xla_compile(
    module_bytes: bytes,
    compiler_flags: str,
    input_format: str = "hlo",
    platform_target: str = "trn1",
    cache_key: str | None = None,
    retry_failed_compilation: bool = False,
    lazy: bool = True,
    use_cache: bool = True,
    cache_dir: str | None = None,
    work_dir: Path | None = None,
    create_subdir: bool = True,
) -> bytes:
    """The NEFF of a graph."""
    return _run("neff", module_bytes, compiler_flags, platform_target, work_dir)


def neuron_xla_wlo_compile(
    module_bytes: bytes,
    compiler_flags: str,
    input_format: str = "hlo",
    platform_target: str = "trn1",
    cache_key: str | None = None,
    retry_failed_compilation: bool = False,
    lazy: bool = True,
    use_cache: bool = True,
    cache_dir: str | None = None,
    work_dir: Path | None = None,
    create_subdir: bool = True,
) -> tuple[bytes, bytes | None]:
    """The NEFF of a graph whose weights' layouts the compiler chose, and the graph of them."""
    if "--enable-internal-neff-wrapper" not in compiler_flags:
        raise RuntimeError("layouts are chosen with --enable-internal-neff-wrapper")
    neff = _run("wlo", module_bytes, compiler_flags, platform_target, work_dir)
    return neff, b'{"lines": ["layouts"], "attributes": {}}'


def _run(kind: str, module: bytes, flags: str, target: str, work_dir: Path | None) -> bytes:
    if not isinstance(module, bytes) or not isinstance(flags, str) or work_dir is None:
        raise TypeError("module_bytes are bytes, compiler_flags a string, work_dir a path")
    check_flags(flags, target)
    CALLS.append(Call(kind, module, flags, work_dir))
    log = re.search(r"--logfile=(\S+)", flags)
    for place, words in FAILURES:
        if place in str(work_dir):
            if log:
                Path(log[1]).write_text(f"INFO begin\n{words}\n", encoding="utf-8")
            raise RuntimeError(f"Failed compilation with neuronx-cc: {words}")
    content = {
        "module": module.decode(),
        "flags": re.sub(r"--logfile=\S+", "", flags),
        "sha256": hashlib.sha256(module).hexdigest(),
    }
    return b"NEFF" + json.dumps(content, sort_keys=True).encode()


def check_flags(flags: str, target: str) -> None:
    """Refuses what neuronx-cc does not document."""
    seen: dict[str, Any] = {}
    for part in shlex.split(flags):
        name, _, value = part.partition("=")
        if part in SWITCHES:
            continue
        if name not in VALUES:
            raise RuntimeError(f"neuronx-cc: unrecognized argument {part}")
        allowed = VALUES[name]
        if allowed is not None and value not in allowed:
            raise RuntimeError(f"neuronx-cc: {name} is {value}, not one of {sorted(allowed)}")
        seen[name] = value
    if seen.get("--target", target) != target:
        raise RuntimeError(f"--target is {seen['--target']}, the platform {target}")
    if seen.get("--lnc") == "2" and target != "trn2":
        raise RuntimeError("[NCC_EARG001] Unsupported Logical Neuron Core (LNC) configuration.")
