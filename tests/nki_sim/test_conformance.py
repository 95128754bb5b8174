"""Our public names and signatures against those of the published NKI 0.6 stubs.

``nki_0_6_api.json`` holds names, parameters in order, defaults as source text, and enum values,
made from
aws-neuron-sdk ``nki/api/nki`` (SDK 2.32): data only.
"""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path

import pytest

import nki_sim.isa
import nki_sim.language
from nki_sim.api import collectives, nki

pytestmark = pytest.mark.null

API = json.loads((Path(__file__).parent / "nki_0_6_api.json").read_text())
MODULES = {
    "nki": nki,
    "nki.isa": nki_sim.isa,
    "nki.language": nki_sim.language,
    "nki.collectives": collectives,
}
FUNCTIONS = [(m, f) for m in API for f in API[m]["functions"]]


def value_of(text, module):
    """A default of the stubs as our value."""
    if text == "...":
        return ...
    names = {**vars(nki_sim.language), **vars(MODULES[module])}
    return eval(text, {"__builtins__": {"True": True, "False": False, "None": None}}, names)


def parameters(function):
    kinds = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [
        (kinds.get(p.kind, "") + p.name, p.default)
        for p in inspect.signature(function).parameters.values()
    ]


def same_signature(ours, published, module):
    ours = parameters(ours)
    assert [name for name, _ in ours] == [name for name, _ in published]
    for (name, default), (_, text) in zip(ours, published, strict=True):
        if text is None:
            assert default is inspect.Parameter.empty, name
        elif text == "...":
            assert default is not inspect.Parameter.empty, name
        else:
            assert default == value_of(text, module), name


@pytest.mark.parametrize(("module", "function"), FUNCTIONS, ids=[f"{m}.{f}" for m, f in FUNCTIONS])
def test_signature(module, function):
    same_signature(getattr(MODULES[module], function), API[module]["functions"][function], module)


@pytest.mark.parametrize("module", API)
def test_names_and_enums(module):
    for name in API[module]["names"]:
        assert hasattr(MODULES[module], name), name
    for name, members in API[module]["enums"].items():
        ours = getattr(MODULES[module], name)
        assert issubclass(ours, enum.Enum)
        assert {m.name: m.value for m in ours} == members, name


def test_classes():
    for module in ("nki.isa", "nki.language"):
        for name, members in API[module]["classes"].items():
            ours = getattr(MODULES[module], name)
            for method, published in members["methods"].items():
                found = inspect.getattr_static(ours, method)
                if isinstance(found, property):
                    assert published == [["self", None]]
                    continue
                same_signature(getattr(ours, method), published, module)
            for attribute in members["attributes"]:
                known = hasattr(ours, attribute) or attribute in getattr(
                    ours, "__annotations__", {}
                )
                slots = {s for c in ours.__mro__ for s in getattr(c, "__slots__", ())}
                assert known or attribute in slots, (name, attribute)


def test_what_is_not_built_says_so():
    for function in API["nki.collectives"]["functions"]:
        count = sum(d is None for _, d in API["nki.collectives"]["functions"][function])
        with pytest.raises(NotImplementedError, match=f"nki.collectives.{function}$"):
            getattr(collectives, function)(*[None] * count)
    for name in ("scalar_load", "NkiScalar"):
        with pytest.raises(NotImplementedError, match=name):
            getattr(nki_sim.isa, name)
    with pytest.raises(AttributeError):
        _ = nki_sim.isa.never_existed
