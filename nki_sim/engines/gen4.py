"""Instructions of NeuronCore-v4: their signatures; the simulator does not compute them yet.

On older targets they break the availability rule; on gen4 they raise ``NotImplementedError``.
"""

from __future__ import annotations

from typing import Any, NoReturn

from nki_sim import rules
from nki_sim.enums import reduce_cmd as Reduce
from nki_sim.machine import current

reduce_cmd = Reduce


def _missing(name: str) -> NoReturn:
    core = current()
    if core.version < 4:
        rules.broken(rules.AVAILABILITY, name, core.target.generation, "needs gen4")
    raise NotImplementedError(f"nki.isa.{name}")


def nc_matmul_mx(
    dst: Any, stationary: Any, moving: Any, stationary_scale: Any, moving_scale: Any,
    tile_position: Any = None, tile_size: Any = None, accumulate: Any = None, name: Any = None,
) -> NoReturn:  # fmt: skip
    """Matrix product of MX tiles with their block scales."""
    _missing("nc_matmul_mx")


def quantize_mx(dst: Any, src: Any, dst_scale: Any, name: Any = None) -> NoReturn:
    """Quantise to MXFP8 with one scale per 32 elements."""
    _missing("quantize_mx")


def activate2(
    dst: Any, op: Any, data: Any, imm0: Any, imm1: Any, op0: Any, op1: Any, relu_param: Any = 0.0,
    reverse0: Any = False, reverse1: Any = False, reduce_op: Any = None, reduce_res: Any = None,
    reduce_cmd: Any = Reduce.idle, name: Any = None,
) -> NoReturn:  # fmt: skip
    """An activation with two configurable scalar operators before it."""
    _missing("activate2")


def exponential(
    dst: Any, src: Any, max_value: Any = 0.0, reduce_res: Any = None,
    reduce_cmd: Any = Reduce.idle, reduce_init: Any = 0.0, name: Any = None,
) -> NoReturn:  # fmt: skip
    """exp(src - max_value) on VectorE."""
    _missing("exponential")


def rand2(dst: Any, min: Any, max: Any, name: Any = None) -> NoReturn:
    """Uniform random numbers in [min, max]."""
    _missing("rand2")
