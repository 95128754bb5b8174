"""Loading a kernel binds `nki`, nothing before does. Then it runs on the simulator or a core."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


def load(module: str, name: str) -> Callable[..., Any]:
    """The kernel `name` of `module`, with `nki` bound: the SDK's where installed, else ours."""
    from nki_sim import binding

    binding.bind()
    kernel: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return kernel


def simulate(kernel: Callable[..., Any], target: str, *args: Any, **kwargs: Any) -> Any:
    """Run `kernel` on our simulator, as a core of generation `target`; also beside the SDK.

    How many instructions it had is logged at level INFO.
    """
    import nki_sim

    trace = nki_sim.Trace()
    result = nki_sim.simulate(kernel, target=target, trace=trace)(*args, **kwargs)
    name = getattr(kernel, "__name__", type(kernel).__name__)
    logger.info("%s on %s: %d instructions", name, target, len(trace))
    return result


def logical_cores(target: str) -> int:
    """Physical cores that a logical one of a graph is made of (LNC), 1 or 2.

    Of NEURON_LOGICAL_NC_CONFIG, which the runtime and neuronx-distributed read too; else what cores
    of `target` have by default (AWS Neuron documentation, "Logical NeuronCore configuration").
    """
    named = os.environ.get("NEURON_LOGICAL_NC_CONFIG")
    return int(named) if named else 2 if target in ("trn2", "trn3") else 1


def on_device(kernel: Callable[..., Any], *args: Any, lnc: int = 1, **kwargs: Any) -> Any:
    """Run `kernel` on a Neuron device, as `lnc` physical cores (an int, as AWS's LNC page says)."""
    launched = kernel[lnc] if lnc > 1 else kernel  # type: ignore[index]
    return launched(*args, **kwargs)
