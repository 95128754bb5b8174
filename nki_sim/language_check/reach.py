"""Which code is NKI code: the kernels of a module, and the functions and classes that they reach.

The compiler inlines every function that a kernel calls, so it parses them too (AWS: NKI Language
Guide, Compilation Model). A name that NKI code mentions counts as reached even where it is not
called, because functions may be passed and stored.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from nki_sim.language_check.names import HOST_APIS
from nki_sim.language_check.scopes import Definition, Function, Module, Scope
from nki_sim.language_check.versions import LanguageCheckError

_LEGACY = "neuronxcc.nki"
_DECORATORS = ("nki.jit", *HOST_APIS)


@dataclass(eq=False)
class Unit:
    """One function of NKI code; `kernel` when it is where compilation starts."""

    module: Module
    node: Function
    kernel: bool = False

    @property
    def scope(self) -> Scope:
        return self.module.scopes[self.node]

    def nodes(self) -> Iterator[tuple[ast.AST, Scope]]:
        """Every node of the body, nested functions included, with the scope of its names.

        Decorators and annotations are left out: they are not NKI code.
        """
        for statement in self.node.body:
            yield from _walk(self.module, statement, self.scope)


@dataclass(eq=False)
class Reached:
    """All NKI code of a check."""

    units: list[Unit]
    classes: list[tuple[Module, ast.ClassDef]]
    legacy: list[tuple[Module, Function]]

    @property
    def modules(self) -> list[Module]:
        return list(dict.fromkeys(unit.module for unit in self.units))


def _walk(module: Module, node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    yield node, scope
    inner = module.scopes.get(node, scope)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        inside = inner if name == "body" or not isinstance(node, Function | ast.Lambda) else scope
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(module, child, inside)


def decorator_path(module: Module, function: Function) -> tuple[str, ast.expr] | None:
    """The decorator that makes `function` a kernel, with its node; None for other functions."""
    scope = module.scope_at(function)
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        path = scope.path(target)
        if path == "functools.partial" and isinstance(decorator, ast.Call) and decorator.args:
            path = scope.path(decorator.args[0])
        if path is not None and (path in _DECORATORS or path.startswith(f"{_LEGACY}.")):
            return path, decorator
    return None


def _kernels(module: Module) -> Iterator[tuple[Function, bool]]:
    """The kernels of a module and whether they are of the old neuronxcc namespace."""
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            found = decorator_path(module, node)
            if found is not None:
                yield node, found[0].startswith(_LEGACY)
        elif isinstance(node, ast.Call) and node.args:
            # `nki.jit(function)` and `nki.simulate(function)`, as in host code.
            scope = module.scope_at(node)
            if scope.path(node.func) in ("nki.jit", "nki.simulate"):
                target = scope.function(node.args[0])
                if target is not None and target[0] is module:
                    yield target[1], False


def _named(module: Module, name: str) -> Function:
    """The function called `name`, "Class.method" and "outer.inner" included."""
    matches = []
    for node in ast.walk(module.tree):
        if isinstance(node, Function):
            parts = [node.name]
            current = module.parents.get(node)
            while current is not None:
                if isinstance(current, Function | ast.ClassDef):
                    parts.insert(0, current.name)
                current = module.parents.get(current)
            qualified = ".".join(parts)
            if qualified == name or qualified.endswith(f".{name}"):
                matches.append((len(parts), -node.lineno, node))
    if not matches:
        raise LanguageCheckError(f"{module.file} defines no function {name!r}")
    return min(matches, key=lambda match: match[:2])[2]


def reach(module: Module, function: str | None) -> Reached:
    """Everything that the kernels of `module`, or the one `function`, bring before the compiler.

    Raises:
        LanguageCheckError: when `function` is not there, or none was named and none is a kernel.
    """
    reached = Reached([], [], [])
    if function is None:
        starts = list(dict.fromkeys(_kernels(module)))
        if not starts:
            raise LanguageCheckError(
                f"{module.file} decorates no function with nki.jit; name the one to check"
            )
    else:
        named = _named(module, function)
        found = decorator_path(module, named)
        starts = [(named, found is not None and found[0].startswith(_LEGACY))]
    reached.legacy = [(module, node) for node, legacy in starts if legacy]
    seen: set[ast.AST] = set()
    queue = [Unit(module, node, kernel=True) for node, legacy in starts if not legacy]
    while queue:
        unit = queue.pop(0)
        if unit.node in seen or any(
            outer in seen for outer in unit.module.enclosing_functions(unit.node)
        ):
            continue
        seen.add(unit.node)
        reached.units.append(unit)
        mentioned = [
            target
            for node, scope in unit.nodes()
            if isinstance(node, ast.Name | ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and (target := scope.definition(node)) is not None
        ]
        if unit.kernel:
            mentioned += _argument_classes(unit)
        for target in mentioned:
            if isinstance(target.node, Function):
                queue.append(Unit(target.module, target.node))
            else:
                _reach_class(target.module, target.node, seen, reached, queue)
    return reached


def _reach_class(
    module: Module, node: ast.ClassDef, seen: set[ast.AST], reached: Reached, queue: list[Unit]
) -> None:
    if node in seen:
        return
    seen.add(node)
    reached.classes.append((module, node))
    queue.extend(Unit(module, item) for item in node.body if isinstance(item, Function))
    for base in node.bases:
        found = module.scope_at(node).class_(base)
        if found is not None:
            _reach_class(*found, seen, reached, queue)


def _argument_classes(unit: Unit) -> list[Definition]:
    """Classes that annotate a kernel's arguments: the compiler imports them (Language Guide)."""
    outside = unit.module.scope_at(unit.node)
    found = []
    for argument in (*unit.node.args.posonlyargs, *unit.node.args.args, *unit.node.args.kwonlyargs):
        if argument.annotation is not None:
            for node in ast.walk(argument.annotation):
                target = outside.definition(node)
                if target is not None and isinstance(target.node, ast.ClassDef):
                    found.append(target)
    return found
