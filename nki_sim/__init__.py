"""A NeuronCore in NumPy: the ``nki`` module for machines without the AWS Neuron SDK.

    import nki_sim
    result = nki_sim.simulate(kernel, target="trn1")(a, b)  # any kernel, also beside the SDK

    nki_sim.install()  # from here on `import nki` works, in third-party code too
    import nki

The simulator needs NumPy, ml_dtypes and threadpoolctl only.
"""

from __future__ import annotations

from typing import Any

from nki_sim import binding
from nki_sim.binding import install
from nki_sim.errors import (
    AdviceWarning,
    BindingError,
    DeadlockError,
    NkiValidationError,
    RuleError,
    ShapesOnlyError,
    SimulatorError,
    UnwrittenReadWarning,
)
from nki_sim.kernel import Simulation
from nki_sim.rebind import rebound
from nki_sim.targets import Target, get_target
from nki_sim.timeline import Profile, profile
from nki_sim.trace import Trace
from nki_sim.usage import MemoryReport, Usage, memory_report, memory_usage


def simulate(
    kernel: Any,
    target: str | Target | None = None,
    trace: Trace | None = None,
    exact_matmul: bool = False,
) -> Simulation:
    """Run ``kernel`` on the simulator, whichever ``nki`` its module is bound to.

    Args:
        kernel: a function, an ``@nki.jit`` kernel of ours or of the SDK, or ``kernel[2]`` for two
            cores.
        target: trn1, inf2, gen2, trn2, gen3, trn3 or gen4; default from
            NEURON_PLATFORM_TARGET_OVERRIDE, else trn3.
        trace: a ``Trace`` to fill with every instruction.
        exact_matmul: sum matmuls in an order that does not depend on tile shapes (slower).

    Returns:
        A callable: NumPy arrays or torch CPU tensors in, the same kind out. What the kernel writes
        to an HBM argument is visible in the caller's array.
    """
    return Simulation(rebound(kernel), target, trace, exact_matmul)


__all__ = [
    "AdviceWarning",
    "BindingError",
    "DeadlockError",
    "MemoryReport",
    "NkiValidationError",
    "Profile",
    "RuleError",
    "ShapesOnlyError",
    "SimulatorError",
    "Target",
    "Trace",
    "UnwrittenReadWarning",
    "Usage",
    "binding",
    "get_target",
    "install",
    "memory_report",
    "memory_usage",
    "profile",
    "simulate",
]
