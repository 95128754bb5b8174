"""Calls of the nki modules against the signature of each version, and names that came or went."""

from __future__ import annotations

import ast
from collections import defaultdict

from nki_sim.language_check import names, signatures
from nki_sim.language_check.findings import Report
from nki_sim.language_check.reach import Unit
from nki_sim.language_check.rules import REFERENCE, Evidence, rule
from nki_sim.language_check.scopes import Scope
from nki_sim.language_check.signatures import LAST_PUBLISHED, Binding
from nki_sim.language_check.tensors import base_tensor, tensor
from nki_sim.language_check.versions import VERSIONS, span

_ENUM_PARAMETERS = frozenset(("engine", "dge_mode", "oob_mode", "reduce_cmd"))
_NOT_IN_HARDWARE = frozenset(("nki.language.divide", "nki.language.mod", "nki.language.fmod"))


def check_names_and_calls(unit: Unit, report: Report) -> None:
    """Report names and calls of the nki modules that some version does not have."""
    file = unit.module.file
    for node, scope in unit.nodes():
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            path = scope.path(node)
            if path is not None and path.startswith("nki."):
                _name(path, node, file, report)
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Subscript)
            and tensor(node.value.value, scope) is not None
        ):
            message = f"`{ast.unparse(node)}` slices a slice; index the tensor once"
            report.add("nested-slicing", file, node, message)
        if isinstance(node, ast.Call):
            path = scope.path(node.func)
            if path is not None and signatures.is_function(path):
                used = not isinstance(unit.module.parents.get(node), ast.Expr)
                _call(path, node, used, scope, file, report)
            _view_method(node, scope, file, report)


def _name(path: str, node: ast.expr, file: str, report: Report) -> None:
    short = path.replace("nki.language.", "nl.").replace("nki.isa.", "nisa.")
    if path in names.REMOVED_IN_02:
        instead, source, evidence = names.REMOVED_IN_02[path]
        message = f"{short} belongs to NKI 0.1; {instead}"
        report.add("name-removed", file, node, message, None, source, evidence)
    elif path in names.DYNAMIC_COPIES:
        message = f"{short} is gone; use nisa.tensor_copy with .ap(scalar_offset=...)"
        report.add("dynamic-copy-removed", file, node, message)
    elif path in names.HOST_APIS:
        report.add("host-api-removed", file, node, f"{path} does not exist any more")
    elif path in names.ADDED:
        since, source, evidence = names.ADDED[path]
        _newer(path, short, since, node, file, report, source, evidence == "stated")
    elif signatures.is_function(path) and not _is_operator(path):
        announced = names.ANNOUNCED.get(path)
        since = signatures.first_version(path)
        _newer(
            path, short, since, node, file, report, announced or REFERENCE, announced is not None
        )


def _newer(
    path: str,
    short: str,
    since: str,
    node: ast.expr,
    file: str,
    report: Report,
    source: str,
    stated: bool,
) -> None:
    versions = VERSIONS[: VERSIONS.index(since)]
    if versions:
        evidence: Evidence = "stated" if stated else "published"
        report.add(
            "name-newer", file, node, f"{short} came with {since}", versions, source, evidence
        )


def _is_operator(path: str) -> bool:
    """Whether a name of `nki.language` may be an operator of instructions, which 0.2 has too.

    0.2 lists activation functions and ALU operators in tables; only their *calls* came with 0.3.
    """
    return path.startswith("nki.language.") and signatures.first_version(path) == "0.3"


def _call(path: str, call: ast.Call, used: bool, scope: Scope, file: str, report: Report) -> None:
    if _is_operator(path):
        announced = names.ANNOUNCED.get(path)
        short = path.replace("nki.language.", "nl.")
        _newer(
            path,
            f"calling {short}",
            "0.3",
            call,
            file,
            report,
            announced or REFERENCE,
            announced is not None,
        )
    bindings: dict[str, Binding] = {}
    for version in VERSIONS:
        parameters = signatures.signature(path, version)
        if parameters is not None:
            bindings[version] = signatures.bind(call, parameters)
    _keywords(path, bindings, file, report)
    _missing(path, call, used, bindings, file, report)
    newest = (
        bindings[LAST_PUBLISHED]
        if LAST_PUBLISHED in bindings
        else next(reversed(bindings.values()))
    )
    _values(path, call, newest, scope, file, report)
    _order(path, bindings, scope, file, report)
    _hardware(path, call, newest, file, report)


def _keywords(path: str, bindings: dict[str, Binding], file: str, report: Report) -> None:
    unknown: dict[ast.keyword, list[str]] = defaultdict(list)
    for version, binding in bindings.items():
        for keyword in binding.unknown:
            # Every instruction takes a name (Scheduling APIs); some references of 0.2 to 0.4 leave
            # it out.
            if keyword.arg != "name":
                unknown[keyword].append(version)
    module, function = path.rpartition(".")[::2]
    for keyword, versions in unknown.items():
        name = str(keyword.arg)
        removed = names.REMOVED_KEYWORDS
        rule_id = (
            removed.get((path, name)) or removed.get((module, name)) or removed.get((None, name))
        )
        if rule_id is not None:
            refused = tuple(v for v in versions if v in rule(rule_id).versions)
            report.add(rule_id, file, keyword, f"{function} takes no {name}=", refused)
            continue
        published = signatures.versions_with(path, name)
        versions = [version for version in versions if version <= LAST_PUBLISHED]
        if published and all(version < published[0] for version in versions):
            announced = names.ANNOUNCED_KEYWORDS.get((path, name))
            message = f"{name}= of {function} came with {published[0]}"
            evidence: Evidence = "stated" if announced else "published"
            report.add("keyword-newer", file, keyword, message, versions, announced, evidence)
        else:
            message = f"{function} takes no {name}="
            report.add("keyword-unknown", file, keyword, message, versions)


def _missing(
    path: str, call: ast.Call, used: bool, bindings: dict[str, Binding], file: str, report: Report
) -> None:
    function = path.rpartition(".")[2]
    missing: dict[str, list[str]] = defaultdict(list)
    extra: list[str] = []
    for version, binding in bindings.items():
        for name in binding.missing:
            # A call of 0.1 passes what comes after dst and uses the result.
            unwritten = "dst" in binding.arguments and used
            if path.startswith("nki.isa.") and (name == "dst" or unwritten):
                missing["dst"].append(version)
            elif not binding.unknown and version <= LAST_PUBLISHED:
                missing[name].append(version)
        if binding.extra and version <= LAST_PUBLISHED:
            extra.append(version)
    if path.startswith("nki.isa.") and "dst" in missing:
        message = f"{function} writes into dst and returns no tile"
        report.add("dst-missing", file, call, message, missing.pop("dst"))
    for name, versions in missing.items():
        report.add("argument-missing", file, call, f"{function} needs {name}", versions)
    if extra:
        message = f"{function} is given more than its signature takes"
        report.add("argument-extra", file, call, message, extra)


def _values(
    path: str, call: ast.Call, binding: Binding, scope: Scope, file: str, report: Report
) -> None:
    """Arguments whose written value settles that they are refused."""
    function, arguments = path.rpartition(".")[2], binding.arguments
    if path.startswith("nki.isa."):
        for name in _ENUM_PARAMETERS & arguments.keys():
            value = arguments[name]
            if (
                isinstance(value, ast.Constant)
                and isinstance(value.value, int)
                and not isinstance(value.value, bool)
            ):
                message = f"{name} of {function} takes a member of nisa.{name}, not {value.value}"
                report.add("enum-integer", file, value, message)
    buffer = arguments.get("buffer")
    if isinstance(buffer, ast.Constant) and isinstance(buffer.value, str):
        message = f"buffer {buffer.value!r} is a string; write nl.{buffer.value}"
        report.add("buffer-string", file, buffer, message)
    if path == "nki.isa.memset":
        made = base_tensor(arguments.get("dst"), scope)
        filler = arguments.get("value")
        if (
            made is not None
            and made.integer
            and isinstance(filler, ast.Constant)
            and isinstance(filler.value, float)
        ):
            message = f"memset of an {made.dtype} tensor takes an integer, not {filler.value}"
            report.add("memset-type", file, filler, message)
    elif path == "nki.isa.dma_copy":
        made = base_tensor(arguments.get("src"), scope)
        if made is not None and made.buffer == "psum":
            src = arguments["src"]
            message = f"dma_copy cannot read {ast.unparse(src)} from PSUM; copy it to SBUF first"
            report.add("dma-from-psum", file, src, message)
    elif path == "nki.isa.tensor_reduce":
        made, axis = tensor(arguments.get("data"), scope), arguments.get("axis")
        if (
            made is not None
            and made.rank is not None
            and made.rank > 2
            and isinstance(axis, ast.Constant)
            and axis.value == 1
            and not isinstance(axis.value, bool)
        ):
            data = ast.unparse(arguments["data"])
            message = f"axis=1 is not the last of the {made.rank} dimensions of {data}"
            report.add("reduce-axis", file, axis, message)


def _order(
    path: str, bindings: dict[str, Binding], scope: Scope, file: str, report: Report
) -> None:
    """Positional arguments in the order of another version."""
    if path == "nki.isa.dma_compute":
        for version, binding in bindings.items():
            for name in (n for n in ("scales", "reduce_op") if n in binding.positional):
                value = binding.arguments[name]
                operator = (scope.path(value) or "").startswith("nki.language.")
                numbers = isinstance(value, ast.List | ast.Tuple | ast.Constant) and not (
                    isinstance(value, ast.Constant) and value.value is None
                )
                if (name == "scales" and operator) or (name == "reduce_op" and numbers):
                    order = "scales, reduce_op" if version == "0.2" else "reduce_op, scales"
                    written = ast.unparse(value)
                    message = (
                        f"{written} stands for {name}; dma_compute takes {order} in this order"
                    )
                    refused = ("0.2",) if version == "0.2" else span("0.3")
                    report.add("dma-compute-order", file, value, message, refused)
                    break
    elif path == "nki.isa.affine_select":
        binding = bindings[LAST_PUBLISHED]
        on_true = binding.arguments.get("on_true_tile")
        if "on_true_tile" in binding.positional and isinstance(on_true, ast.Constant):
            message = "offset of affine_select is a keyword since 0.3, not the third argument"
            report.add("affine-select-order", file, on_true, message)


def _hardware(path: str, call: ast.Call, binding: Binding, file: str, report: Report) -> None:
    """Convenience functions that AWS's simulator runs and its compiler does not take."""
    function = path.rpartition(".")[2]
    message = None
    if path in _NOT_IN_HARDWARE:
        message = f"nl.{function} has no instruction"
    elif path == "nki.language.power" and _is_number(binding.arguments.get("y")):
        message = "nl.power takes a tile as exponent, not a scalar"
    elif path == "nki.language.random_seed" and _is_number(binding.arguments.get("seed")):
        message = "nl.random_seed takes a [1, 1] tensor, not a scalar"
    elif path == "nki.language.matmul":
        given = binding.arguments.get("transpose_x")
        unpacked = any(keyword.arg is None for keyword in call.keywords)
        if (given is None and not unpacked) or (
            isinstance(given, ast.Constant) and given.value is False
        ):
            message = "nl.matmul is only supported with transpose_x=True"
    if message is not None:
        report.add("nl-not-in-hardware", file, call, message)


def _is_number(node: ast.expr | None) -> bool:
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _view_method(call: ast.Call, scope: Scope, file: str, report: Report) -> None:
    function = call.func
    if (
        isinstance(function, ast.Attribute)
        and function.attr in names.VIEW_METHODS_OF_05
        and base_tensor(function.value, scope) is not None
    ):
        report.add("view-method-newer", file, call, f"NkiTensor.{function.attr} came with 0.5")
