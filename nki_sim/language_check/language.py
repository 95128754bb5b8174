"""Python that the NKI language lacks: operators, generators, keys, classes, outside state."""

from __future__ import annotations

import ast

from nki_sim.language_check.findings import Report
from nki_sim.language_check.reach import Unit
from nki_sim.language_check.scopes import Module, Scope

_ENUM_BASES = ("enum.Enum",)
_MUTATORS = frozenset(
    ("append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "update", "add")
)
_MUTABLE_CALLS = frozenset(("list", "dict", "set"))


def check_function(unit: Unit, report: Report) -> None:
    """Report what the body of `unit` writes that the language lacks."""
    file = unit.module.file
    if isinstance(unit.node, ast.AsyncFunctionDef):
        report.add("async", file, unit.node, f"`async def {unit.node.name}` is not NKI code")
    for node, scope in unit.nodes():
        if isinstance(node, ast.Compare):
            _compare(node, scope, file, report)
        elif isinstance(node, ast.BinOp):
            for side in (node.left, node.right):
                _enum_operator(side, node, scope, file, report)
        elif isinstance(node, ast.Yield | ast.YieldFrom):
            report.add("generator", file, node, "`yield` makes this function a generator")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            report.add("async", file, node, "coroutines are not NKI code")
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if key is not None:
                    _key(key, scope, file, report)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            if _is_dict(node.value, scope):
                _key(node.slice, scope, file, report)
        elif isinstance(node, ast.Global):
            message = (
                f"`global {', '.join(node.names)}` makes the kernel depend on state outside it"
            )
            report.add("external-state", file, node, message)
        _mutation(node, scope, file, report)


def _compare(node: ast.Compare, scope: Scope, file: str, report: Report) -> None:
    operands = [node.left, *node.comparators]
    for place, operator in enumerate(node.ops):
        if isinstance(operator, ast.Is | ast.IsNot):
            old, new = ("is", "==") if isinstance(operator, ast.Is) else ("is not", "!=")
            report.add("is-operator", file, node, f"`{old}` is refused; compare with `{new}`")
        elif isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            for side in operands[place : place + 2]:
                _enum_operator(side, node, scope, file, report)


def _enum_operator(side: ast.expr, node: ast.expr, scope: Scope, file: str, report: Report) -> None:
    if isinstance(side, ast.Attribute):
        found = scope.class_(side.value)
        if found is not None and _is_enum(*found):
            message = f"`{ast.unparse(side)}` is an enumeration member: only == and != apply to it"
            report.add("enum-operator", file, node, message)


def _is_dict(node: ast.expr, scope: Scope) -> bool:
    if not isinstance(node, ast.Name):
        return False
    owner = scope.owner(node.id)
    values = owner.values.get(node.id, []) if owner is not None else []
    return bool(values) and all(
        isinstance(value, ast.Dict)
        or (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id == "dict"
        )
        for value in values
    )


def _key(key: ast.expr, scope: Scope, file: str, report: Report) -> None:
    plain = isinstance(key, ast.Constant) and not isinstance(key.value, str)
    member = False
    if isinstance(key, ast.Attribute):
        found = scope.class_(key.value)
        member = found is not None and _is_enum(*found)
    if plain or member or isinstance(key, ast.Tuple):
        report.add(
            "dict-key", file, key, f"dictionary keys are strings; `{ast.unparse(key)}` is not"
        )


def _mutation(node: ast.AST, scope: Scope, file: str, report: Report) -> None:
    target: ast.expr | None = None
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        target = node.value
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _MUTATORS
    ):
        target = node.func.value
    if isinstance(target, ast.Name) and _is_module_container(target.id, scope):
        message = f"`{target.id}` lives outside the kernel, which may only depend on its arguments"
        report.add("external-state", file, node, message)


def _is_module_container(name: str, scope: Scope) -> bool:
    owner = scope.owner(name)
    if owner is None or owner.parent is not None or name in owner.imports:
        return False
    return any(
        isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
        or (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id in _MUTABLE_CALLS
        )
        for value in owner.values.get(name, [])
    )


def check_class(module: Module, node: ast.ClassDef, report: Report) -> None:
    """Report a class of NKI code whose bases or decorator the language does not have."""
    bases = _bases(module, node)
    if any(_is_exception(base) for base in bases):
        return
    wrong = [base for base in bases if not _is_nki_object(base) and base not in _ENUM_BASES]
    if wrong or len(bases) > 1:
        listed = ", ".join(wrong or bases)
        message = f"class {node.name} inherits from {listed}; only NKIObject or Enum are taken"
        report.add("class-inheritance", module.file, node, message)
    elif not bases:
        message = f"class {node.name} is used in NKI code and does not inherit from NKIObject"
        report.add("class-base-missing", module.file, node, message)
    elif _is_nki_object(bases[0]) and _is_frozen(module, node):
        message = f"class {node.name} is a frozen dataclass, which cannot be instantiated"
        report.add("frozen-dataclass", module.file, node, message)


def _bases(module: Module, node: ast.ClassDef) -> list[str]:
    scope = module.scope_at(node)
    bases = [scope.path(base) or ast.unparse(base) for base in node.bases]
    return [base for base in bases if base != "object"]


def _is_nki_object(base: str) -> bool:
    return base.rpartition(".")[2] == "NKIObject"


def _is_exception(base: str) -> bool:
    return base.rpartition(".")[2].endswith(("Error", "Exception", "Warning"))


def _is_enum(module: Module, node: ast.ClassDef) -> bool:
    return any(base.startswith("enum.") for base in _bases(module, node))


def _is_frozen(module: Module, node: ast.ClassDef) -> bool:
    scope = module.scope_at(node)
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and scope.path(decorator.func) == "dataclasses.dataclass"
        ):
            for keyword in decorator.keywords:
                if keyword.arg == "frozen" and isinstance(keyword.value, ast.Constant):
                    return bool(keyword.value.value)
    return False
