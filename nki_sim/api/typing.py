"""Shape annotations of kernel parameters, ``nt.tensor[128, 512]``: documentation, not checked."""

from __future__ import annotations

from typing import Any

from nki_sim.objects import NKIObject


class tensor(NKIObject):
    """A tensor annotation, optionally with sizes."""

    def __class_getitem__(cls, shape: Any) -> type[tensor]:
        return cls
