"""What this machine is: versions of the Neuron software, driver and instance, and what is missing.

Nothing here runs the code of a package to find out what it is. The public index carries empty
packages of the SDK's names; their versions, and for `nki` the missing modules, give them away.
Host names, users, paths and instance ids are left out of reports.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nki_kernels.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

NEEDED = {"nki": (0, 2), "neuronx-cc": (2,), "torch-neuronx": (2,), "neuronx-distributed": (0, 15)}
"""The oldest versions that will do; the public index's empty ones (nki 0.0.1, neuronx-cc 1.0,
torch-neuronx 1.0, neuronx-distributed 0.1) are older."""

SIMULATOR = (0, 3)
"""The first NKI with `nki.simulate` (aws-neuron-sdk release-notes/components/nki.rst)."""

PACKAGES = (*NEEDED, "libneuronxla", "torch-xla", "torch", "transformers", "numpy", "ml_dtypes")

SYSTEM_PACKAGES = ("aws-neuronx-dkms", "aws-neuronx-runtime-lib", "aws-neuronx-tools",
                   "aws-neuronx-collectives")  # fmt: skip

SDK_OF_COMPILER = {"2.23": "2.28", "2.24": "2.29", "2.25": "2.30", "2.26": "2.31", "2.27": "2.32"}
"""SDK release by neuronx-cc's version (aws-neuron-sdk src/helperscripts/n2-manifest.json)."""

TOOLS = Path("/opt/aws/neuron/bin")
PROFILERS = ("neuron-explorer", "neuron-profile")
"""`neuron-explorer` replaces `neuron-profile`, with the same interface of `capture` (aws-neuron-sdk
tools/neuron-explorer/how-to-profile-workload.rst); SDK 2.28 has the older name too."""

VISIBLE = "NEURON_RT_VISIBLE_CORES"

SETTINGS = ("NEURON_RT_", "NEURON_LOGICAL", "NEURON_PLATFORM", "NEURON_CC_", "NKI_")
"""Beginnings of the environment variables that a report names."""

NOT_KEYED = ("git", "kernel", "cpus", "memory_gib")
"""What may change without making results another machine's; sources count by their content."""

SOURCES = ("nki_kernels", "nki_sim", "models", "compile", "scripts/validation")


def tool(name: str) -> str | None:
    """The path of a Neuron command, None where there is none."""
    return shutil.which(name) or shutil.which(name, path=str(TOOLS))


def profiler() -> str | None:
    """The profiler that is installed, the newer first."""
    return next((path for name in PROFILERS if (path := tool(name))), None)


def version(package: str) -> str | None:
    """The installed version, None where the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(packages: Sequence[str], simulator: bool = False) -> list[str]:
    """A phrase for each package that is not here, is a stub of its name, or is too old.

    Args:
        packages: names in `NEEDED`.
        simulator: whether `nki` must have one.
    """
    from nki_sim.binding import find_sdk

    found = []
    for name in packages:
        have = version(name)
        least = SIMULATOR if name == "nki" and simulator else NEEDED[name]
        if have is None:
            found.append(f"{name} (not installed)")
        elif _numbers(have) < least:
            text = ".".join(map(str, least))
            found.append(f"{name} >= {text} (found {have}, a stub or too old)")
        elif name == "nki" and find_sdk() is None:
            found.append(f"nki (found {have}, a stub without language and isa)")
    return found


def refuse_without(packages: Sequence[str], device: bool = False, simulator: bool = False) -> None:
    """Refuse where the SDK, a device or the profiler is missing.

    Raises:
        InputError: one sentence that names all that is missing.
    """
    lacking = missing(packages, simulator)
    if device:
        if not Path("/dev/neuron0").exists():
            lacking.append("a Neuron device (no /dev/neuron0; is aws-neuronx-dkms loaded?)")
        if profiler() is None:
            lacking.append("neuron-explorer or neuron-profile (aws-neuronx-tools)")
    if lacking:
        raise InputError(
            f"this needs {', '.join(lacking)}, from the Neuron repositories; --rehearse goes the "
            "whole way without them"
        )


def cores(together: bool) -> tuple[str, str]:
    """The NeuronCores of this process and of the profiler beside it.

    A core belongs to the process that took it until that ends (aws-neuron-sdk
    neuron-runtime/guides/configuration-guide.rst), so the two have one each: 0 and 1, or the first
    and the last that NEURON_RT_VISIBLE_CORES names.

    Args:
        together: whether both are wanted at once.

    Raises:
        InputError: both are wanted and one core is visible, or the variable is no range.
    """
    text = os.environ.get(VISIBLE, "").strip() or "0-1"
    parts = re.split(r"[-,]", text)
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"{VISIBLE} is {text!r}; write core numbers as 0, 0-1 or 0,3")
    first, last = parts[0].strip(), parts[-1].strip()
    if together and first == last:
        raise InputError(
            f"{VISIBLE} is {text!r}, and the profiler needs a core beside this process's: "
            "name two, or run --stages times alone"
        )
    return first, last


def largest_child_gib() -> float:
    """Peak memory of the largest process that this one started, of all so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30, 2)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def environment(rehearsal: bool) -> dict[str, Any]:
    """What the report says about the machine; a rehearsal looks for no device."""
    packages = {name: have for name in PACKAGES if (have := version(name)) is not None}
    compiler = ".".join(packages.get("neuronx-cc", "").split(".")[:2])
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": packages,
        "sdk": SDK_OF_COMPILER.get(compiler),
        "git": _git(),
        "settings": {name: os.environ[name] for name in sorted(os.environ)
                     if name.startswith(SETTINGS)},
    }  # fmt: skip
    if not rehearsal:
        found["instance"] = _instance()
        found["driver"] = _command("modinfo", "-F", "version", "neuron")
        found["system_packages"] = {
            name: have for name in SYSTEM_PACKAGES if (have := _system_version(name)) is not None
        }
        found["profiler"] = _profiler_version()
    return found


def versions_key(found: dict[str, Any]) -> str:
    """Twelve digits for all that decides a result: software, driver, instance and our sources."""
    parts = {name: value for name, value in found.items() if name not in NOT_KEYED}
    parts["settings"] = {
        name: value
        for name, value in found["settings"].items()
        if not name.startswith("NEURON_RT_")  # which cores, how much is logged
    }
    text = json.dumps(parts, sort_keys=True) + sources_key()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sources_key() -> str:
    """A digest of the project's code and data, tests and documents left out."""
    digest = hashlib.sha256()
    files = [p for room in SOURCES for e in ("py", "json") for p in (ROOT / room).rglob(f"*.{e}")]
    for file in sorted(files):
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _git() -> dict[str, Any]:
    commit = _command("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _command("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if commit is None else bool(changed)}


def _instance() -> str | None:
    """The instance type, as `neuron-ls` heads its table with it."""
    path = tool("neuron-ls")
    text = _command(path) if path else None
    found = re.search(r"^instance-type:\s*(\S+)", text or "", re.M)
    return found.group(1) if found else None


def _profiler_version() -> str | None:
    path = profiler()
    return None if path is None else f"{Path(path).name} {_command(path, '--version')}"


def _system_version(name: str) -> str | None:
    for command in (
        ("dpkg-query", "-W", "-f", "${Version}", name),
        ("rpm", "-q", "--queryformat", "%{VERSION}", name),
    ):
        found = _command(*command)
        if found:
            return found
    return None


def _command(*command: str) -> str | None:
    """What a command prints; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
