"""The published signatures: the data reads, and calls bind as Python would bind them."""

from __future__ import annotations

import ast

import pytest

from nki_sim.language_check import signatures

pytestmark = pytest.mark.null


def _call(text: str) -> ast.Call:
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call)
    return node


@pytest.mark.parametrize(
    ("path", "version", "names"),
    [
        ("nki.isa.register_move", "0.2", ["dst", "imm"]),
        ("nki.isa.register_move", "0.3", ["dst", "src"]),
        ("nki.isa.dma_compute", "0.2", ["dst", "srcs", "scales", "reduce_op", "name"]),
        ("nki.isa.iota", "0.6", ["dst", "pattern", "offset", "channel_multiplier", "name"]),
        ("nki.isa.iota", "0.7", ["dst", "pattern", "offset", "channel_multiplier", "name"]),
    ],
)
def test_signatures_follow_the_versions(path: str, version: str, names: list[str]) -> None:
    parameters = signatures.signature(path, version)
    assert parameters is not None
    assert [parameter.name for parameter in parameters] == names


def test_functions_know_when_they_came() -> None:
    assert signatures.first_version("nki.language.fori_loop") == "0.6"
    assert signatures.first_version("nki.isa.dma_copy") == "0.2"
    assert signatures.signature("nki.isa.activate2", "0.3") is None
    assert not signatures.is_function("nki.isa.absent")


def test_binding() -> None:
    parameters = signatures.signature("nki.isa.tensor_copy", "0.6")
    assert parameters is not None
    binding = signatures.bind(_call("f(a, engine=e, mask=m)"), parameters)
    assert set(binding.arguments) == {"dst", "engine"}
    assert binding.positional == {"dst"}
    assert [keyword.arg for keyword in binding.unknown] == ["mask"]
    assert binding.missing == ["src"]
    for open_call in ("f(*a)", "f(**a)", "f(..., name=n)"):
        assert signatures.bind(_call(open_call), parameters).missing == []
    assert len(signatures.bind(_call("f(a, b, c, d, e)"), parameters).extra) == 1
