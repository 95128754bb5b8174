"""What holds for kernels as a whole: signature, decorator, results, callers, imports."""

from __future__ import annotations

import ast

from nki_sim.language_check.findings import Report
from nki_sim.language_check.reach import Reached, Unit, decorator_path
from nki_sim.language_check.rules import NOTES
from nki_sim.language_check.scopes import Module, Scope
from nki_sim.language_check.tensors import tensor


def check_kernel(unit: Unit, report: Report) -> None:
    """Report what is refused in the signature, the decorator and the `return` of a kernel."""
    file, arguments = unit.module.file, unit.node.args
    if arguments.kwonlyargs and arguments.vararg is None:
        message = (
            "`*` in a kernel's signature is refused; let the arguments with defaults come last"
        )
        report.add("keyword-only", file, arguments.kwonlyargs[0], message)
    for default in (*arguments.defaults, *arguments.kw_defaults):
        if isinstance(default, ast.List):
            message = f"the default `{ast.unparse(default)}` is a list; kernels take tuples"
            report.add("list-default", file, default, message)
    scope = unit.module.scope_at(unit.node)
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        if argument.annotation is not None and _is_list(argument.annotation, scope):
            message = f"argument {argument.arg!r} is declared a list; kernels take tuples"
            report.add("list-annotation", file, argument.annotation, message)
    _decorator(unit, scope, report)
    for node, inside in unit.nodes():
        if isinstance(node, ast.Return) and inside is unit.scope and node.value is not None:
            results = (
                node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else [node.value]
            )
            for result in results:
                made = tensor(result, inside)
                if made is not None and made.buffer not in (None, "shared_hbm"):
                    name = ast.unparse(result)
                    message = f"{name} is returned and lies in {made.buffer}, not in shared_hbm"
                    report.add("output-buffer", file, result, message)


def _is_list(annotation: ast.expr, scope: Scope) -> bool:
    node = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    if isinstance(node, ast.Name) and node.id == "list":
        return scope.owner("list") is None
    return scope.path(node) == "typing.List"


def _decorator(unit: Unit, scope: Scope, report: Report) -> None:
    found = decorator_path(unit.module, unit.node)
    if found is None:
        return
    path, decorator = found
    if path != "nki.jit":
        message = f"{path} does not exist any more"
        report.add("host-api-removed", unit.module.file, decorator, message)
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
        if keyword.arg == "platform_target":
            message = "platform_target= of nki.jit is refused; set NEURON_PLATFORM_TARGET_OVERRIDE"
            report.add("platform-target", unit.module.file, keyword, message)


def check_calls_of_kernels(unit: Unit, report: Report) -> None:
    """Report NKI code that calls a function which is itself decorated as a kernel."""
    for node, scope in unit.nodes():
        if isinstance(node, ast.Call):
            target = scope.function(node.func)
            found = decorator_path(*target) if target is not None else None
            if target is not None and found is not None:
                message = f"{target[1].name} is decorated with {found[0]}; sub-kernels are not"
                report.add("sub-kernel-decorator", unit.module.file, node, message)


def check_host_calls(module: Module, reached: Reached, report: Report) -> None:
    """Report host code of the module that passes a list to one of its kernels."""
    kernels = {unit.node for unit in reached.units if unit.kernel}
    inside = {unit.node for unit in reached.units}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or inside.intersection(module.enclosing_functions(node)):
            continue
        function = node.func.value if isinstance(node.func, ast.Subscript) else node.func
        target = module.scope_at(node).function(function)
        if target is None or target[1] not in kernels:
            continue
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            if isinstance(argument, ast.List):
                message = (
                    f"the list `{ast.unparse(argument)}` is passed to a kernel; kernels take tuples"
                )
                report.add("list-argument", module.file, argument, message)


def check_imports(module: Module, reached: Reached, report: Report) -> None:
    """Report the old namespace where NKI code uses it, and modules that a later version added."""
    used: dict[ast.AST, str] = {}
    for unit in reached.units:
        if unit.module is module:
            for node, scope in unit.nodes():
                if isinstance(node, ast.Name):
                    _note_legacy(node.id, scope, used)
    for owner, kernel in reached.legacy:
        if owner is module:
            for decorator in kernel.decorator_list:
                for node in ast.walk(decorator):
                    if isinstance(node, ast.Name):
                        _note_legacy(node.id, module.scope_at(kernel), used)
    for node, path in used.items():
        message = f"{path} is the namespace of NKI 0.1; use nki.*"
        report.add("legacy-namespace", module.file, node, message)
    for name, path in module.scope.imports.items():
        if path == "nki.typing" or path.startswith("nki.typing."):
            message = "the module nki.typing came with 0.3"
            node = module.scope.import_nodes[name]
            source = f"{NOTES}, 0.3.0 New Features"
            report.add("name-newer", module.file, node, message, ("0.2",), source, "stated")


def _note_legacy(name: str, scope: Scope, used: dict[ast.AST, str]) -> None:
    owner = scope.owner(name)
    if owner is not None and name not in owner.values:
        path = owner.imports.get(name, "")
        if path == "neuronxcc" or path.startswith("neuronxcc.nki"):
            used.setdefault(owner.import_nodes[name], path)
