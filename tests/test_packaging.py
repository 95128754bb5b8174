"""What pyproject.toml promises of the extras."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.null

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

# The empty packages of these names on the public index.
STUBS = {
    "torch-neuronx": "1.0",
    "neuronx-cc": "1.0.post1",
    "neuronx-distributed": "0.1",
    "nki": "0.0.1",
}


def test_the_neuron_extra_refuses_the_public_stubs() -> None:
    wanted = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["neuron"])}
    assert wanted.keys() == STUBS.keys()
    for name, stub in STUBS.items():
        assert not wanted[name].specifier.contains(stub), name


def test_every_extra_is_there() -> None:
    assert {"neuron", "dev", "plot"} <= PROJECT["optional-dependencies"].keys()
