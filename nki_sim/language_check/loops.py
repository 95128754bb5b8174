"""Loops that run on the device: which version has which, and what may happen inside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from nki_sim.language_check import signatures
from nki_sim.language_check.findings import Report
from nki_sim.language_check.reach import Unit
from nki_sim.language_check.rules import LOOPS, TO_06
from nki_sim.language_check.scopes import Module, Scope

_DYNAMIC_RANGE = "nki.language.dynamic_range"
_STRUCTURED = ("nki.language.fori_loop", "nki.language.while_loop")
_REGISTER_WRITERS = ("nki.isa.register_move", "nki.isa.register_load")
_ARITHMETIC_SINCE = {"nki.language.dynamic_range": "0.3", "nki.language.fori_loop": "0.6"}


def check_loops(unit: Unit, report: Report) -> None:
    """Report dynamic loops that a version does not take, and misuse of variables and bodies."""
    for node, scope in unit.nodes():
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            if scope.path(node) == _DYNAMIC_RANGE:
                message = "nl.dynamic_range was removed; write nl.fori_loop"
                report.add("dynamic-range-removed", unit.module.file, node, message)
        elif isinstance(node, ast.While) and _is_register(node.test, scope):
            message = (
                f"`while {ast.unparse(node.test)}` on a register was removed; write nl.while_loop"
            )
            report.add("register-while-removed", unit.module.file, node, message)
        elif isinstance(node, ast.For):
            _dynamic_for(unit.module, node, scope, report)
        elif isinstance(node, ast.With):
            _no_reorder(unit.module, node, scope, report)
        elif isinstance(node, ast.Call):
            _structured(unit.module, node, scope, report)


def _is_register(node: ast.expr, scope: Scope) -> bool:
    """Whether the expression is a name that always stands for an allocated register."""
    if not isinstance(node, ast.Name):
        return False
    owner = scope.owner(node.id)
    values = owner.values.get(node.id, []) if owner is not None else []
    return bool(values) and all(
        isinstance(value, ast.Call) and scope.path(value.func) == "nki.isa.register_alloc"
        for value in values
    )


def _dynamic_for(module: Module, loop: ast.For, scope: Scope, report: Report) -> None:
    if not (isinstance(loop.iter, ast.Call) and scope.path(loop.iter.func) == _DYNAMIC_RANGE):
        return
    _step(module, loop.iter, _DYNAMIC_RANGE, report)
    if isinstance(loop.target, ast.Name) and loop.target.id != "_":
        _variable(module, loop.target.id, loop.body, scope, _DYNAMIC_RANGE, report)


def _structured(module: Module, call: ast.Call, scope: Scope, report: Report) -> None:
    path = scope.path(call.func)
    if path not in _STRUCTURED:
        return
    parameters = signatures.signature(path, signatures.LAST_PUBLISHED) or ()
    body_argument = signatures.bind(call, parameters).arguments.get("body_fun")
    target = scope.function(body_argument) if body_argument is not None else None
    if path.endswith("fori_loop"):
        _step(module, call, path, report)
    if target is None:
        return
    owner, body = target
    returned = [
        node.value
        for node, inside in Unit(owner, body).nodes()
        if isinstance(node, ast.Return) and node.value is not None and inside is owner.scopes[body]
    ]
    values = [
        value for value in returned if not (isinstance(value, ast.Constant) and value.value is None)
    ]
    if path.endswith("fori_loop"):
        for value in values[:1]:
            message = f"{body.name} is the body of a fori_loop and returns a value"
            report.add("fori-body-returns", owner.file, value, message)
        if body.args.args:
            _variable(target[0], body.args.args[0].arg, body.body, owner.scopes[body], path, report)
    elif not values:
        message = f"{body.name} is the body of a while_loop and returns no next condition"
        report.add("while-body-returns-nothing", owner.file, body, message)


def _step(module: Module, call: ast.Call, path: str, report: Report) -> None:
    parameters = signatures.signature(path, signatures.LAST_PUBLISHED) or ()
    step = signatures.bind(call, parameters).arguments.get("step")
    try:
        value = ast.literal_eval(step) if step is not None else 1
    except ValueError:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        message = f"the step of a dynamic loop is a positive integer, not {value!r}"
        report.add("loop-step", module.file, step or call, message)


def _variable(
    module: Module, name: str, body: list[ast.stmt], scope: Scope, path: str, report: Report
) -> None:
    """Report arithmetic on the loop variable `name`, writes to it, and it as offset in 0.3."""
    since, source = _ARITHMETIC_SINCE[path], TO_06 if path.endswith("fori_loop") else LOOPS
    versions = tuple(v for v in report.versions if since <= v <= "0.6")
    for statement in body:
        for node in ast.walk(statement):
            used: list[ast.expr] = []
            if isinstance(node, ast.BinOp):
                used = [node.left, node.right]
            elif isinstance(node, ast.Compare):
                used = [node.left, *node.comparators]
            elif isinstance(node, ast.UnaryOp):
                used = [node.operand]
            elif isinstance(node, ast.If | ast.IfExp | ast.While):
                used = [node.test]
            if any(_is_variable(item, name, module, scope) for item in used):
                place = node.test if isinstance(node, ast.If | ast.IfExp | ast.While) else node
                message = f"{name} is a register of the device here: Python cannot compute with it"
                report.add(
                    "loop-variable-arithmetic", module.file, place, message, versions, source
                )
            if isinstance(node, ast.Call):
                _uses(module, node, name, scope, path, report)


def _is_variable(node: ast.expr, name: str, module: Module, scope: Scope) -> bool:
    return (
        isinstance(node, ast.Name)
        and node.id == name
        and module.scope_at(node).owner(name) is scope
    )


def _uses(
    module: Module, call: ast.Call, name: str, scope: Scope, path: str, report: Report
) -> None:
    if path != _DYNAMIC_RANGE:
        return
    for keyword in call.keywords:
        if keyword.arg == "scalar_offset" and _is_variable(keyword.value, name, module, scope):
            message = f"{name} is a scalar in 0.3, not a register, and cannot be a scalar_offset"
            report.add("loop-variable-offset", module.file, keyword.value, message)
    writer = module.scope_at(call).path(call.func)
    if writer in _REGISTER_WRITERS:
        parameters = signatures.signature(writer, signatures.LAST_PUBLISHED) or ()
        dst = signatures.bind(call, parameters).arguments.get("dst")
        if dst is not None and _is_variable(dst, name, module, scope):
            message = f"{name} is the variable of a dynamic loop and cannot be written"
            report.add("loop-variable-written", module.file, dst, message)


def _no_reorder(module: Module, block: ast.With, scope: Scope, report: Report) -> None:
    entered = [
        item.context_expr.func for item in block.items if isinstance(item.context_expr, ast.Call)
    ]
    if not any(scope.path(function) == "nki.language.no_reorder" for function in entered):
        return
    for statement in block.body:
        for node, loop in _dynamic_loops(module, statement, set()):
            message = f"{loop} runs on the device and cannot stand inside no_reorder"
            report.add("no-reorder-loop", module.file, node, message)


def _dynamic_loops(
    module: Module, root: ast.AST, seen: set[ast.AST]
) -> Iterator[tuple[ast.AST, str]]:
    """The dynamic loops under `root`, through the functions called there."""
    for node in ast.walk(root):
        scope = module.scope_at(node)
        if isinstance(node, ast.While) and _is_register(node.test, scope):
            yield node, "a `while` on a register"
        elif isinstance(node, ast.Call):
            path = scope.path(node.func)
            if path == _DYNAMIC_RANGE or path in _STRUCTURED:
                yield node, path.replace("nki.language", "nl")
                continue
            target = scope.function(node.func)
            if target is not None and target[1] not in seen:
                seen.add(target[1])
                for _, loop in _dynamic_loops(target[0], target[1], seen):
                    yield node, f"{loop} in {target[1].name}"
                    break
