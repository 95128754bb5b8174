"""Stand-in of neuronx_distributed/utils/model_utils.py, of what inference uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch
from torch_neuronx.utils import get_platform_target


class LogicalNCConfig(IntEnum):
    """Physical cores of a logical one."""

    LNC_1 = 1
    LNC_2 = 2


def get_platform_lnc():
    """Of the variable; else 2 on trn2 and trn3, 1 elsewhere."""
    named = int(os.environ.get("NEURON_LOGICAL_NC_CONFIG", -1))
    if named != -1:
        return LogicalNCConfig(named)
    wide = get_platform_target() in ("trn2", "trn3")
    return LogicalNCConfig.LNC_2 if wide else LogicalNCConfig.LNC_1


@contextmanager
def init_on_device(
    device: torch.device, include_buffers: bool = False, force_custom_init_on_device: bool = False
) -> Iterator[None]:
    """Parameters made inside are on `device`."""
    with device:
        yield
