"""The pytest plugin: a fixture that runs kernels on the simulator, and an option for its target.

Registered by the ``pytest11`` entry point of the distribution; where that is not installed,
``-p nki_sim.pytest_plugin`` loads it.
"""

from __future__ import annotations

from typing import Any

import pytest

from nki_sim import binding
from nki_sim.kernel import Simulation
from nki_sim.rebind import rebound
from nki_sim.trace import Trace


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--nki-target``: the generation that ``nki_simulate`` simulates."""
    parser.addoption(
        "--nki-target",
        default=None,
        help="NeuronCore generation for the nki_simulate fixture: trn1, inf2, trn2, trn3 "
        "(default: NEURON_PLATFORM_TARGET_OVERRIDE, else trn3)",
    )


class Simulator:
    """What the fixture hands out: call it with a kernel and arrays.

    Attributes:
        target: the generation asked for on the command line, or None.
        trace: the record of the last call.
    """

    def __init__(self, target: str | None) -> None:
        self.target = target
        self.trace = Trace()

    def __call__(self, kernel: Any, *args: Any, target: str | None = None, **kwargs: Any) -> Any:
        self.trace = Trace()
        return Simulation(rebound(kernel), target or self.target, self.trace)(*args, **kwargs)


@pytest.fixture
def nki_simulate(request: pytest.FixtureRequest) -> Simulator:
    """``nki_simulate(kernel, *arrays, target=None)`` with ``nki`` importable, ours or the SDK's."""
    binding.bind()
    return Simulator(request.config.getoption("--nki-target"))
