"""A parsed module and its scopes: what each name in it means, without importing anything."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass, field

from nki_sim.language_check import signatures
from nki_sim.language_check.versions import LanguageCheckError

Function = ast.FunctionDef | ast.AsyncFunctionDef
Body = ast.Module | Function | ast.Lambda

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_STAR_MODULES = ("nki.language", "nki.isa", "nki.collectives")


@dataclass(eq=False)
class Scope:
    """The names bound in a module or a function, and the scope around it.

    Attributes:
        values: for each name bound by assignments, the expressions; None for any other binding.
    """

    module: Module
    node: Body
    parent: Scope | None
    imports: dict[str, str] = field(default_factory=dict)
    import_nodes: dict[str, ast.stmt] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    values: dict[str, list[ast.expr | None]] = field(default_factory=dict)

    def binds(self, name: str) -> bool:
        return any(
            name in table for table in (self.values, self.imports, self.functions, self.classes)
        )

    def owner(self, name: str) -> Scope | None:
        """The scope, this one or one around it, that binds `name`."""
        scope: Scope | None = self
        while scope is not None and not scope.binds(name):
            scope = scope.parent
        return scope

    def path(self, node: ast.AST) -> str | None:
        """The dotted name that an expression stands for: `nl.exp` -> "nki.language.exp".

        None where it is not certain, as for a name that more than an import binds.
        """
        if isinstance(node, ast.Attribute):
            base = self.path(node.value)
            return None if base is None else f"{base}.{node.attr}"
        if not isinstance(node, ast.Name):
            return None
        owner = self.owner(node.id)
        if owner is None:
            return self._from_star(node.id)
        if node.id in owner.values:
            values = owner.values[node.id]
            alias = values[0] if len(values) == 1 and node.id not in owner.imports else None
            # An alias of an API name (`FP32 = nl.float32`); anything but a dotted name is a value
            # of its own.
            return owner.path(alias) if isinstance(alias, ast.Attribute) else None
        return owner.imports.get(node.id)

    def _from_star(self, name: str) -> str | None:
        if hasattr(builtins, name):
            return None  # Which of the two a star import leaves is not certain.
        root = self
        while root.parent is not None:
            root = root.parent
        for module in root.stars:
            if module in _STAR_MODULES and (
                signatures.is_function(f"{module}.{name}") or name in ("NKIObject", "NkiTensor")
            ):
                return f"{module}.{name}"
        return None

    def definition(self, node: ast.AST) -> Definition | None:
        """The function or class that a name refers to, here or in a module to follow."""
        if isinstance(node, ast.Name):
            owner = self.owner(node.id)
            if owner is not None and node.id not in owner.values:
                found = owner.functions.get(node.id) or owner.classes.get(node.id)
                if found is not None:
                    return Definition(owner.module, found)
        path = self.path(node)
        return None if path is None else self.module.elsewhere(path)

    def function(self, node: ast.AST) -> tuple[Module, Function] | None:
        """As `definition`, functions only."""
        found = self.definition(node)
        if found is None or not isinstance(found.node, Function):
            return None
        return found.module, found.node

    def class_(self, node: ast.AST) -> tuple[Module, ast.ClassDef] | None:
        """As `definition`, classes only."""
        found = self.definition(node)
        if found is None or not isinstance(found.node, ast.ClassDef):
            return None
        return found.module, found.node


@dataclass(eq=False)
class Module:
    """One source file: its tree, the scope of every function in it, and the modules to follow."""

    name: str
    file: str
    tree: ast.Module
    others: dict[str, Module]
    scopes: dict[ast.AST, Scope] = field(default_factory=dict)
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)

    @classmethod
    def parse(cls, source: str, name: str, file: str, others: dict[str, Module]) -> Module:
        """Parse `source`.

        Raises:
            LanguageCheckError: when it is not Python.
        """
        try:
            tree = ast.parse(source, filename=file)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            place = f"{file}:{line}" if line else file
            raise LanguageCheckError(
                f"{place} does not parse: {getattr(error, 'msg', error)}"
            ) from error
        module = cls(name, file, tree, others)
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                module.parents[child] = node
        _build(module, tree, None)
        return module

    @property
    def scope(self) -> Scope:
        return self.scopes[self.tree]

    def scope_at(self, node: ast.AST) -> Scope:
        """The scope that a node's names are looked up in."""
        current: ast.AST | None = node
        while current is not None:
            if current in self.scopes and current is not node:
                return self.scopes[current]
            current = self.parents.get(current)
        return self.scope

    def elsewhere(self, path: str) -> Definition | None:
        """The function or class `package.module.name` of another module whose source was given."""
        name, _, attribute = path.rpartition(".")
        target = name.lstrip(".")
        for known, module in self.others.items():
            relative = name != target and (known == target or known.endswith(f".{target}"))
            if target and (known == name or relative):
                scope = module.scope
                found = scope.functions.get(attribute) or scope.classes.get(attribute)
                if found is not None:
                    return Definition(module, found)
        return None

    def enclosing_functions(self, node: ast.AST) -> Iterator[Function]:
        """The functions around `node`, innermost first."""
        current = self.parents.get(node)
        while current is not None:
            if isinstance(current, Function):
                yield current
            current = self.parents.get(current)


@dataclass(frozen=True, eq=False)
class Definition:
    """A function or class and the module that defines it."""

    module: Module
    node: Function | ast.ClassDef


def _build(module: Module, node: Body, parent: Scope | None) -> None:
    scope = Scope(module, node, parent)
    module.scopes[node] = scope
    if not isinstance(node, ast.Module):
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
        for argument in named:
            scope.values.setdefault(argument.arg, []).append(None)
    body = node.body if isinstance(node.body, list) else [node.body]
    for statement in body:
        _collect(scope, statement)
    # Names declared global or nonlocal belong to a scope outside.
    for statement in body:
        for inner in _own_nodes(statement):
            if isinstance(inner, ast.Global | ast.Nonlocal):
                for name in inner.names:
                    scope.values.pop(name, None)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """`node` and what is in it, without the inside of other functions and classes."""
    yield node
    if isinstance(node, Function | ast.Lambda | ast.ClassDef):
        return
    for child in ast.iter_child_nodes(node):
        yield from _own_nodes(child)


def _collect(scope: Scope, node: ast.AST) -> None:
    """Enter the bindings that `node` makes into `scope`, and build the scopes inside it."""
    module = scope.module
    if isinstance(node, Function):
        scope.functions[node.name] = node
        for part in (
            *node.decorator_list,
            *node.args.defaults,
            *filter(None, node.args.kw_defaults),
        ):
            _collect(scope, part)
        _build(module, node, scope)
        return
    if isinstance(node, ast.ClassDef):
        scope.classes[node.name] = node
        for statement in node.body:
            if isinstance(statement, Function):
                _build(module, statement, scope)
            elif isinstance(statement, ast.ClassDef):
                _collect(scope, statement)
        return
    if isinstance(node, ast.Lambda):
        _build(module, node, scope)
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        _collect_import(scope, node)
    elif (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Name)
    ):
        scope.values.setdefault(node.targets[0].id, []).append(node.value)
        _collect(scope, node.value)
        return
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        if node.value is not None:
            scope.values.setdefault(node.target.id, []).append(node.value)
            _collect(scope, node.value)
        return
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        # The targets of comprehensions are entered too: what they hide is then not certain, which
        # is the safe side.
        scope.values.setdefault(node.id, []).append(None)
    elif isinstance(node, ast.ExceptHandler) and node.name:
        scope.values.setdefault(node.name, []).append(None)
    for child in ast.iter_child_nodes(node):
        _collect(scope, child)


def _collect_import(scope: Scope, node: ast.Import | ast.ImportFrom) -> None:
    entries: list[tuple[str, str]] = []
    if isinstance(node, ast.Import):
        for alias in node.names:
            entries.append(
                (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
            )
    else:
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                scope.stars.append(base)
            else:
                joint = "" if not base or base.endswith(".") else "."
                entries.append((alias.asname or alias.name, f"{base}{joint}{alias.name}"))
    for name, path in entries:
        # Of `try: import nki ... except ImportError: import neuronxcc.nki as nki`, the first is
        # the one that counts.
        if name not in scope.imports:
            scope.imports[name] = path
            scope.import_nodes[name] = node
