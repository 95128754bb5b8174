"""Which code is checked: kernels, what they reach, through which names."""

from __future__ import annotations

from pathlib import Path

import pytest

from nki_sim.language_check import Finding, LanguageCheckError, check_file, check_source

pytestmark = pytest.mark.null


def _places(findings: list[Finding]) -> list[tuple[str, int]]:
    return [(finding.rule, finding.line) for finding in findings]


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("import nki\nimport nki.language as nl", "nl.arange"),
        ("import nki, nki.language", "nki.language.arange"),
        ("import nki\nfrom nki import language", "language.arange"),
        ("import nki\nfrom nki.language import arange as indices", "indices"),
        ("import nki\nimport nki.language as nl\na = nl.arange", "a"),
    ],
)
def test_aliases_of_the_modules_are_resolved(imports: str, name: str) -> None:
    source = f"{imports}\n@nki.jit\ndef k(x):\n    return {name}(4)\n"
    assert [finding.rule for finding in check_source(source)] == ["name-removed"]


@pytest.mark.parametrize(
    "kernel",
    [
        "from nki import jit\n@jit\ndef k(x):\n    return x is None\n",
        "import nki as n\n@n.jit\ndef k(x):\n    return x is None\n",
        "import nki\n@nki.jit()\ndef k(x):\n    return x is None\n",
        "import nki, functools\n@functools.partial(nki.jit)\ndef k(x):\n    return x is None\n",
        "import nki\ndef k(x):\n    return x is None\nrun = nki.jit(k)\n",
        "import nki\ndef test():\n    @nki.jit\n    def k(x):\n        return x is None\n",
        "try:\n    import nki\nexcept ImportError:\n    import neuronxcc.nki as nki\n"
        "@nki.jit\ndef k(x):\n    return x is None\n",
    ],
)
def test_kernels_are_recognised(kernel: str) -> None:
    assert [finding.rule for finding in check_source(kernel)] == ["is-operator"]


def test_star_import_resolves_published_names_but_no_builtins() -> None:
    source = (
        "import nki\nfrom nki.language import *\n"
        "@nki.jit\ndef k(x):\n    load(x)\n    return min(1, 2)\n"
    )
    assert _places(check_source(source)) == [("name-newer", 5)]


def test_a_local_name_hides_the_import() -> None:
    source = (
        "import nki\nimport nki.language as nl\n@nki.jit\ndef k(nl):\n    return nl.arange(4)\n"
    )
    assert check_source(source) == []


HELPERS = """import nki


def host(x):
    return x is None


def inner(x):
    return x is None


def passed(x):
    return x is not None


def outer(x, fn):
    inner(x)
    return fn(x)


@nki.jit
def k(x):
    def nested(y):
        return y is None

    return nested(outer(x, passed))


@nki.jit
def other(x):
    return x is None
"""


def test_helpers_are_followed_and_host_code_is_not() -> None:
    lines = [finding.line for finding in check_source(HELPERS, function="k")]
    assert lines == [9, 13, 24]


def test_all_kernels_of_a_file_are_checked() -> None:
    assert [finding.line for finding in check_source(HELPERS)] == [9, 13, 24, 31]


def test_a_named_function_needs_no_decorator() -> None:
    assert [finding.line for finding in check_source(HELPERS, function="inner")] == [9]


def test_methods_of_classes_in_use_are_followed() -> None:
    source = (
        "import nki\nimport nki.language as nl\n"
        "class A(nl.NKIObject):\n    def f(self):\n        return self is None\n"
        "class Unused(nl.NKIObject):\n    def f(self):\n        return self is None\n"
        "@nki.jit\ndef k(x):\n    A().f()\n"
    )
    assert _places(check_source(source)) == [("is-operator", 5)]
    assert _places(check_source(source, function="Unused.f")) == [("is-operator", 8)]


@pytest.mark.parametrize(
    ("statement", "call"),
    [
        ("import pkg.helpers as hp", "hp.h"),
        ("from pkg.helpers import h", "h"),
        ("from pkg import helpers", "helpers.h"),
        ("from .helpers import h as g", "g"),
        ("from . import helpers", "helpers.h"),
    ],
)
def test_other_modules_are_followed_when_given(statement: str, call: str) -> None:
    source = f"import nki\n{statement}\n@nki.jit\ndef k(x):\n    return {call}(x)\n"
    helper = "def h(x):\n    return x is None\n"
    assert check_source(source) == []
    found = check_source(source, sources={"pkg.helpers": helper})
    assert [(f.file, f.line, f.column) for f in found] == [("<pkg.helpers>", 2, 12)]


def test_recursion_ends() -> None:
    source = (
        "import nki\nimport nki.language as nl\ndef a(x):\n    b(x)\ndef b(x):\n    a(x)\n"
        "@nki.jit\ndef k(x):\n    with nl.no_reorder():\n        a(x)\n"
    )
    assert check_source(source) == []


def test_kernels_of_the_old_namespace_are_only_told_to_move() -> None:
    source = (
        "import neuronxcc.nki as nki\nimport neuronxcc.nki.language as nl\n"
        "@nki.jit\ndef k(x):\n    return nl.arange(4) is None\n"
    )
    assert _places(check_source(source)) == [("legacy-namespace", 1)]
    assert check_source(source, versions=["0.3"]) == []


def test_a_name_bound_twice_is_not_certain() -> None:
    source = (
        "import nki\nimport nki.language as nl\n@nki.jit\ndef k(x, flag):\n"
        "    o = nl.ndarray((1, 1), nl.float32, nl.hbm)\n"
        "    if flag:\n        o = x\n    return o\n"
    )
    assert check_source(source) == []


def test_findings_are_ordered_and_carry_columns() -> None:
    source = "import nki\n@nki.jit\ndef k(x):\n    a = 1; b = x is None\n    return x is None\n"
    assert [(f.line, f.column) for f in check_source(source)] == [(4, 16), (5, 12)]


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("def k(:\n", {}, "f.py:1 does not parse"),
        ("def k(x):\n    pass\n", {}, "nki.jit"),
        ("def k(x):\n    pass\n", {"function": "j"}, "'j'"),
        ("def k(x):\n    pass\n", {"function": "k", "versions": ["0.1"]}, "'0.1'"),
    ],
)
def test_bad_input_is_refused(source: str, options: dict, words: str) -> None:
    with pytest.raises(LanguageCheckError, match=words):
        check_source(source, "f.py", **options)


def test_versions_may_be_written_out() -> None:
    source = "import nki\n@nki.jit\ndef k(x):\n    return x is None\n"
    found = check_source(source, versions=["0.4.0", "0.3", "0.7"])
    assert [finding.versions for finding in found] == [("0.3", "0.4")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LanguageCheckError, match=r"absent\.py"):
        check_file(tmp_path / "absent.py")
