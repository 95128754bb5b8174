"""Make ``nki_0_6_api.json`` from a checkout of the published stubs: names, parameters, defaults,
enum values.

    python -m tests.nki_sim.make_api_data AWS_NEURON_SDK/nki/api/nki >
    tests/nki_sim/nki_0_6_api.json
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

MODULES = {
    "nki": "__init__.py",
    "nki.language": "language/__init__.py",
    "nki.isa": "isa/__init__.py",
    "nki.collectives": "collectives/__init__.py",
}


def parameters(arguments: ast.arguments) -> list[list[str | None]]:
    """``[name, source text of the default or None]`` in order; ``*`` and ``**`` mark variadic
    ones."""
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    texts: list[str | None] = [None] * (len(names) - len(arguments.defaults))
    texts += [ast.unparse(d) for d in arguments.defaults]
    found = [[n, t] for n, t in zip(names, texts, strict=True)]
    if arguments.vararg:
        found.append(["*" + arguments.vararg.arg, None])
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        found.append([argument.arg, ast.unparse(default) if default else None])
    if arguments.kwarg:
        found.append(["**" + arguments.kwarg.arg, None])
    return found


def describe(tree: ast.Module) -> dict[str, Any]:
    """The public surface of one stub module."""
    module: dict[str, Any] = {"functions": {}, "classes": {}, "enums": {}, "names": []}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            module["functions"][node.name] = parameters(node.args)
        elif isinstance(node, ast.ClassDef):
            assigned = [a for a in node.body if isinstance(a, ast.Assign)]
            if any(isinstance(b, ast.Name) and b.id == "Enum" for b in node.bases):
                module["enums"][node.name] = {
                    ast.unparse(a.targets[0]): ast.literal_eval(a.value) for a in assigned
                }
                continue
            methods = [f for f in node.body if isinstance(f, ast.FunctionDef)]
            annotated = [a for a in node.body if isinstance(a, ast.AnnAssign)]
            module["classes"][node.name] = {
                "methods": {f.name: parameters(f.args) for f in methods},
                "attributes": [ast.unparse(a.target) for a in annotated]
                + [ast.unparse(a.targets[0]) for a in assigned],
            }
        elif isinstance(node, ast.AnnAssign):
            module["names"].append(ast.unparse(node.target))
        elif isinstance(node, ast.Assign):
            module["names"].extend(ast.unparse(t) for t in node.targets)
    return module


def main() -> None:
    """Print the data of the stubs in the folder named on the command line."""
    folder = Path(sys.argv[1])
    data = {m: describe(ast.parse((folder / f).read_text())) for m, f in MODULES.items()}
    print(json.dumps(data, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
