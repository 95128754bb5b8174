"""The signatures of `nki.language`, `nki.isa` and `nki.collectives` in each version.

`published_signatures.json` holds, for each function and each NKI version at which it changed, its
parameters in order; a trailing `=` marks one with a default. It was made from the API reference
stubs (nki/api) of AWS's documentation repository, aws-neuron/aws-neuron-sdk, at the tags v2.28.0
(NKI 0.2) to v2.32.0 (NKI 0.6).
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from nki_sim.language_check.versions import VERSIONS

LAST_PUBLISHED = "0.6"

# What documents of 0.2 show although its reference does not list it yet: the migration guide to 0.2
# writes nl.dynamic_range and ndarray(address=), the release notes of 0.2.0 announce no_reorder, the
# examples of SDK 2.28 call sequential_range(n), program_id() and ones().
_DOCUMENTED_EARLIER = {
    "nki.language.dynamic_range": ("0.2", "start stop= step="),
    "nki.language.no_reorder": ("0.2", ""),
    "nki.language.ndarray": ("0.2", "shape dtype buffer= name= address="),
    "nki.language.ones": ("0.2", "shape dtype buffer= name="),
    "nki.language.program_id": ("0.2", "axis="),
    "nki.language.sequential_range": ("0.2", "start stop= step="),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a published signature."""

    name: str
    required: bool


@dataclass
class Binding:
    """How a call's arguments meet a signature."""

    arguments: dict[str, ast.expr] = field(default_factory=dict)
    positional: set[str] = field(default_factory=set)
    unknown: list[ast.keyword] = field(default_factory=list)
    extra: list[ast.expr] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@cache
def _table() -> dict[str, dict[str, tuple[Parameter, ...] | None]]:
    raw = json.loads(
        Path(__file__).with_name("published_signatures.json").read_text(encoding="utf-8")
    )
    table: dict[str, dict[str, tuple[Parameter, ...] | None]] = {}
    for module, functions in raw.items():
        for name, changes in functions.items():
            path = f"{module}.{name}"
            if path in _DOCUMENTED_EARLIER:
                version, text = _DOCUMENTED_EARLIER[path]
                changes = {**changes, version: text}
            row: dict[str, tuple[Parameter, ...] | None] = {}
            current: tuple[Parameter, ...] | None = None
            for version in VERSIONS:
                if version in changes:
                    current = None if changes[version] is None else _parameters(changes[version])
                row[version] = current
            table[path] = row
    return table


def _parameters(text: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(word.rstrip("="), not word.endswith("=")) for word in text.split())


def is_function(path: str) -> bool:
    """Whether any version published a function of that dotted name."""
    return path in _table()


def signature(path: str, version: str) -> tuple[Parameter, ...] | None:
    """The parameters of `path` in `version`, None where it is not published; 0.7 is read as 0.6."""
    return _table()[path][version]


def first_version(path: str) -> str:
    """The first version that published the function `path`."""
    return next(version for version, parameters in _table()[path].items() if parameters is not None)


def versions_with(path: str, parameter: str) -> tuple[str, ...]:
    """The versions whose signature of `path` has `parameter`."""
    return tuple(
        version
        for version, parameters in _table()[path].items()
        if parameters is not None and any(parameter == p.name for p in parameters)
    )


def bind(call: ast.Call, parameters: tuple[Parameter, ...]) -> Binding:
    """Match the arguments of `call` to `parameters`, as Python would.

    `*x`, `**x` and a bare `...` among the arguments may stand for anything.
    """
    binding = Binding()
    names = [parameter.name for parameter in parameters]
    starred = any(_open(argument) for argument in call.args)
    for place, argument in enumerate(call.args):
        if _open(argument):
            break
        if place < len(names):
            binding.arguments[names[place]] = argument
            binding.positional.add(names[place])
        else:
            binding.extra.append(argument)
    unpacked = any(keyword.arg is None for keyword in call.keywords)
    for keyword in call.keywords:
        if keyword.arg is None:
            continue
        if keyword.arg not in names:
            binding.unknown.append(keyword)
        elif keyword.arg in binding.arguments:
            binding.extra.append(keyword.value)
        else:
            binding.arguments[keyword.arg] = keyword.value
    if not starred and not unpacked:
        binding.missing = [
            p.name for p in parameters if p.required and p.name not in binding.arguments
        ]
    return binding


def _open(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Starred) or (
        isinstance(argument, ast.Constant) and argument.value is ...
    )
