"""Machines that carry NeuronCores, as data with their sources: cores, memories, degrees.

`instances.json` holds what AWS's architecture pages say of each instance and which tensor-parallel
degrees the Neuron runtime supports on each chip. A core here is a logical one: on trn2 two physical
cores (LNC 2), the setting that the list of degrees is for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nki_kernels.errors import InputError

FILE = Path(__file__).with_name("instances.json")
GIB = 2**30


@dataclass(frozen=True)
class Instance:
    """One machine.

    Attributes:
        name: as EC2 spells it; "trn2-ultraserver" is four trn2u.48xlarge.
        target: of its cores: trn1, inf2 or trn2.
        chips: accelerators.
        cores_per_chip: physical NeuronCores.
        lnc: physical cores a logical one is made of.
        vcpus: of all its hosts.
        host_gib: memory of all its hosts.
        hbm_gib: memory of all its chips.
        hosts: computers it consists of.
        degrees: tensor-parallel degrees that the runtime supports and that its cores suffice for.
        source: of the sizes.
        degrees_source: of the degrees.
    """

    name: str
    target: str
    chips: int
    cores_per_chip: int
    lnc: int
    vcpus: int
    host_gib: int
    hbm_gib: int
    hosts: int
    degrees: tuple[int, ...]
    source: str
    degrees_source: str

    @property
    def cores(self) -> int:
        """Logical NeuronCores."""
        return self.chips * self.cores_per_chip // self.lnc

    @property
    def hbm_per_core(self) -> int:
        """Bytes of HBM behind one logical core: an equal share of its chip's."""
        return self.hbm_gib * GIB // self.cores

    @property
    def host_bytes(self) -> int:
        """Bytes of memory of one of its hosts."""
        return self.host_gib * GIB // self.hosts


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def known() -> list[str]:
    """Names of the instances."""
    return list(_content()["instances"])


def find_instance(name: str) -> Instance:
    """The instance of that name.

    Raises:
        InputError: unknown; lists those that are known.
    """
    content = _content()
    if name not in content["instances"]:
        raise InputError(f"instance is {name!r}; known: {', '.join(known())}")
    fields = dict(content["instances"][name])
    cores = fields["chips"] * fields["cores_per_chip"] // fields["lnc"]
    degrees = tuple(tp for tp in content["degrees"][fields["target"]] if tp <= cores)
    return Instance(
        name=name, degrees=degrees, degrees_source=content["degrees"]["source"], **fields
    )


def check_runtime(instance: Instance, tp: int) -> None:
    """Refuses a degree that the instance has no cores for, or that the runtime does not support.

    Raises:
        InputError: naming the degrees that are possible there, and who says so.
    """
    if tp < 1:
        raise InputError(f"tp is {tp}; it must be at least 1")
    if tp > instance.cores:
        raise InputError(
            f"tp is {tp}; {instance.name} has {instance.cores} cores"
            + (f" (LNC {instance.lnc})" if instance.lnc > 1 else "")
        )
    if tp not in instance.degrees:
        raise InputError(
            f"tp is {tp}; on {instance.name} the Neuron runtime supports "
            f"{', '.join(map(str, instance.degrees))} ({instance.degrees_source})"
        )
