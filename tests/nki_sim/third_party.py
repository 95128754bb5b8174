"""Run the examples that AWS publishes, unmodified, on the simulator and compare their results.

``python -m tests.nki_sim.third_party --sdk CHECKOUT --samples CHECKOUT [--json OUT]`` reads
checkouts (bare or not) of aws-neuron-sdk and nki-samples, runs every example that uses the current
API on each generation with warnings as errors, and prints a Markdown table: the example, and for
each target the largest error against an independent expression, or the rule that refuses it there.
Whatever is not run is listed with the reason. Nothing of the checkouts is kept.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import types
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nki_sim

nki_sim.install()

from tests.nki_sim.third_party_cases import CASES, Case  # noqa: E402
from tests.nki_sim.third_party_fragments import (  # noqa: E402
    COMMON,
    FRAGMENTS,
    NOT_RUN,
    Fragment,
)

TARGETS = ("trn1", "trn2", "trn3")
PRELUDE = (
    "import math\nimport numpy as np\nimport nki\nimport nki.isa as nisa\n"
    "import nki.language as nl\nfrom nki_sim.objects import NKIObject\n"
)
ELSEWHERE = ("torch_xla", "torch_neuronx", "jax", "jax.numpy", "mx_toplevel")
OLD = re.compile(
    r"neuronxcc|import nki_jit|nl\.arange|mgrid|par_dim|mask=|load_transpose2d|broadcast_to|"
    r"\w\]? = nisa\.(?!register_alloc)|return nisa\."
)


@dataclass(frozen=True)
class Example:
    """One piece of published code: a file, a documentation block or a docstring block."""

    file: str
    where: str
    code: str


@dataclass(frozen=True)
class Row:
    """What became of one example on one target (target "" where it was not run)."""

    file: str
    name: str
    target: str
    result: str
    detail: str


def unpack(checkout: Path, paths: list[str], folder: Path) -> str:
    """Extract ``paths`` of a checkout's HEAD below ``folder`` and return the commit."""
    git = ["git", "-C", str(checkout)]
    archive = subprocess.run([*git, "archive", "HEAD", *paths], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(line, code) of the literal blocks of a reStructuredText page or docstring."""
    lines = text.split("\n")
    i = 0
    while i < len(lines):
        start = re.match(
            r"(\s*)(?:\.\. code(?:-block)?:: *(?:python|nki)?|.*[^:.\s]::)\s*$", lines[i]
        )
        i += 1
        if not start:
            continue
        first, body = i, []
        while i < len(lines) and (
            not lines[i].strip() or len(lines[i]) - len(lines[i].lstrip()) > len(start.group(1))
        ):
            body.append("" if re.match(r"\s+:[\w-]+:", lines[i]) else lines[i])
            i += 1
        code = textwrap.dedent("\n".join(body)).strip("\n")
        if re.search(r"\b(nl|nisa|nki)\.\w+", code):
            yield first, code


def examples(root: Path, skip: tuple[str, ...]) -> list[Example]:
    """Every example below ``root``: Python files, blocks of pages, blocks of docstrings."""
    found = []
    for path in sorted(root.rglob("*")):
        file = str(path.relative_to(root))
        if file.startswith(skip) or path.suffix not in (".py", ".rst"):
            continue
        text = path.read_text()
        if path.suffix == ".rst":
            found += [Example(file, f"line {line}", code) for line, code in blocks(text)]
        elif "/api/" in file:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    doc = ast.get_docstring(node) or ""
                    found += [Example(file, node.name, code) for _, code in blocks(doc)]
        elif re.search(r"\b(nki|nl|nisa)\b", text):
            found.append(Example(file, "", text))
    return found


@contextlib.contextmanager
def _surroundings(folder: Path) -> Iterator[None]:
    """The environment as it was, packages that are not the example's subject as empty modules."""
    environment, path = dict(os.environ), list(sys.path)
    added = [name for name in ELSEWHERE if name not in sys.modules]
    for name in added:
        module = types.ModuleType(name)
        module.__getattr__ = lambda _: None  # type: ignore[method-assign]
        sys.modules[name] = module
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        for name in added:
            sys.modules.pop(name, None)


def _load(source: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Asserts(ast.NodeTransformer):
    """``assert nl.equal(a, b)`` compares elements, which a tensor's truth value does not."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        test = node.test
        if isinstance(test, ast.Call) and "equal" in ast.unparse(test.func):
            check = ast.parse("assert_all(0)").body[0]
            check.value.args = [test]  # type: ignore[attr-defined]
            return ast.copy_location(check, node)
        return node


def assert_all(flags: Any) -> None:
    """Every element of a tile is not zero."""
    assert flags.values.all(), "nl.equal found a difference"


def _attempt(case: Case | Fragment, target: str, run: Any) -> tuple[str, str]:
    """(result, detail) of one example on one target."""
    newer = TARGETS.index(target) < TARGETS.index(case.since)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("error")
            if case.warns:
                warnings.filterwarnings("ignore", f"(?s).*{case.warns}")
            error = run(target)
    except nki_sim.RuleError as broken:
        expected = newer or (case.rule is not None and broken.rule == case.rule)
        return ("refused" if expected else "FAIL"), f"rule {broken.rule}"
    except (TypeError, NotImplementedError, AssertionError) as other:
        expected = case.refusal is not None and case.refusal in f"{type(other).__name__}: {other}"
        return ("refused" if expected else "FAIL"), f"{type(other).__name__}: {other}"[:160]
    except Exception as other:
        return "FAIL", f"{type(other).__name__}: {other}"[:300]
    if newer or case.rule or case.refusal:
        return "FAIL", "ran, where it should be refused"
    text = "exact" if error == 0 else f"{error:.1e}"
    return "pass", text + (" (warns, as documented)" if case.warns else "")


def run_case(case: Case, source: Path) -> list[Row]:
    """A case on every target."""
    with _surroundings(source.parent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                module = _load(source, "example_" + re.sub(r"\W", "_", source.stem))
        except Exception as error:
            return [Row(case.file, case.name, "", "FAIL", f"{type(error).__name__}: {error}"[:300])]
        function = getattr(module, case.name, None)
        rows = []
        for target in TARGETS:
            result = _attempt(case, target, lambda t: case.run(function, module, t))
            rows.append(Row(case.file, case.name, target, *result))
        return rows


def definitions(code: str) -> str:
    """Definitions, out of ``COMMON``, of the names that a fragment takes for granted."""
    names = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)]
    stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    loaded = {n.id for n in names if isinstance(n.ctx, ast.Load)}
    return "\n".join(line for name, line in COMMON.items() if name in loaded - stored)


def run_fragment(fragment: Fragment, example: Example) -> list[Row]:
    """A fragment inside a kernel of its own, between what it needs and what must then hold."""
    code = re.sub(r"^(import nki.*|from nki.*|import pytest)$", "", example.code, flags=re.M)
    before = fragment.before + "\n" + definitions(fragment.before + "\n" + code)
    body = "\n".join((before, code, fragment.after or "pass"))
    tree = _Asserts().visit(ast.parse("def kernel():\n" + textwrap.indent(body, "    ")))
    ast.fix_missing_locations(tree)
    rows = []
    for target in TARGETS:
        names: dict[str, Any] = {"assert_all": assert_all}
        exec(PRELUDE, names)

        def run(target: str, names: dict[str, Any] = names) -> float:
            exec(compile(tree, f"{example.file} {example.where}", "exec"), names)
            kernel = names["kernel"]
            launch = nki_sim.simulate(kernel, target=target)
            (launch if fragment.cores == 1 else launch[fragment.cores])()
            return 0.0

        result, detail = _attempt(fragment, target, run)
        rows.append(Row(example.file, example.where, target, result, detail.replace("exact", "ok")))
    return rows


def reason(example: Example) -> str:
    """Why an example without a case is not run."""
    for file, key, why in NOT_RUN:
        if file in example.file and key in example.code:
            return why
    if "/test/" in f"/{example.file}" or OLD.search(example.code):
        return "old API (neuronxcc.nki, NKI 0.1)"
    try:
        tree = ast.parse(example.code)
    except SyntaxError as error:
        return f"not valid Python: {error.msg}"
    if any(isinstance(n, ast.Constant) and n.value is Ellipsis for n in ast.walk(tree)):
        return "pseudo-code: parts are left out"
    if not any(isinstance(n, (ast.FunctionDef, ast.Call)) for n in ast.walk(tree)):
        return "no code to run"
    if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body):
        return "imports only"
    defines = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    if "@nki.jit" in example.code or all(isinstance(n, defines) for n in tree.body):
        return "NO CASE"  # running it as a fragment would not call what it defines
    return ""


def run_all(found: list[Example], root: Path, scratch: Path) -> list[Row]:
    """One row per example and target, and one per example that is not run."""
    rows: list[Row] = []
    fragments = list(FRAGMENTS)
    for number, example in enumerate(found):
        cases = [
            c
            for c in CASES
            if example.file.endswith(c.file)
            and (example.where == "" or f"def {c.name}(" in example.code)
            and (not c.where or c.where in example.code)
        ]
        if cases:
            source = root / example.file
            if example.where:
                source = scratch / f"block_{number}.py"
                source.write_text(PRELUDE + example.code)
            for case in cases:
                rows += [
                    Row(example.file, f"{case.name} {example.where}".strip(), *_rest(r))
                    for r in run_case(case, source)
                ]
            continue
        fragment = next(
            (f for f in fragments if f.file in example.file and f.key in example.code), None
        )
        why = reason(example)
        if fragment is None and not why:
            fragment = Fragment(example.file, "")
        if fragment is not None:
            rows += run_fragment(fragment, example)
        else:
            result = "FAIL" if why == "NO CASE" else "not run"
            rows.append(Row(example.file, example.where, "", result, why))
    return rows


def _rest(row: Row) -> tuple[str, str, str]:
    return row.target, row.result, row.detail


def table(rows: list[Row]) -> str:
    """The rows as two Markdown tables: examples that were run, one line each, and the others."""
    lines = ["| file | example | trn1 | trn2 | trn3 |", "| --- | --- | --- | --- | --- |"]
    ran: dict[tuple[str, str], dict[str, list[str]]] = {}
    left: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.result == "not run":
            left.setdefault((row.file, row.detail), []).append(row.name)
            continue
        text = row.detail if row.result == "pass" else f"{row.result}: {row.detail}"
        by = ran.setdefault((row.file, row.name), {})
        by.setdefault(row.target, []).append(text.replace("|", "/"))
    for (file, name), by in ran.items():
        cells = ["; ".join(dict.fromkeys(by.get(t, by.get("", [])))) for t in TARGETS]
        lines.append(f"| {file} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "| not run | examples | why |", "| --- | --- | --- |"]
    for (file, why), names in left.items():
        where = ", ".join(n.removeprefix("line ") for n in dict.fromkeys(names) if n)
        lines.append(f"| {file} | {where} | {why} |")
    return "\n".join(lines)


def main() -> int:
    """Run everything; the exit status says whether anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdk", type=Path, required=True, help="checkout of aws-neuron-sdk")
    parser.add_argument("--samples", type=Path, required=True, help="checkout of nki-samples")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sdk, samples, scratch = folder / "sdk", folder / "samples", folder / "scratch"
        scratch.mkdir()
        commits = {
            "aws-neuron-sdk": unpack(options.sdk, ["nki"], sdk),
            "nki-samples": unpack(options.samples, ["src", "contributed", "test"], samples),
        }
        rows = run_all(examples(sdk, ("nki/library", "nki/_ext", "nki/scripts")), sdk, scratch)
        rows += run_all(examples(samples, ("test/integration",)), samples, scratch)
    for repository, commit in commits.items():
        print(f"{repository} {commit}")
    print(table(rows))
    ran = [r for r in rows if r.result == "pass"]
    print(
        f"\n{len({(r.file, r.name) for r in ran})} examples run, {len(ran)} runs pass, "
        f"{sum(r.result == 'refused' for r in rows)} are refused as they should be, "
        f"{sum(r.result == 'not run' for r in rows)} examples are not run, "
        f"{sum(r.result == 'FAIL' for r in rows)} runs fail"
    )
    if options.json:
        text = json.dumps({"commits": commits, "rows": [asdict(r) for r in rows]}, indent=1)
        options.json.write_text(text + "\n")
    return int(any(r.result == "FAIL" for r in rows))


if __name__ == "__main__":
    sys.exit(main())
