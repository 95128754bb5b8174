"""What each registered module holds: from ``nki`` names to the simulator's own modules."""

from __future__ import annotations

from types import ModuleType


def modules() -> dict[str, tuple[ModuleType, bool]]:
    """Module name to (module with its public names, whether it is a package)."""
    from nki_sim import isa, language
    from nki_sim.api import collectives, constants, experimental, meta, nki, typing

    return {
        "nki": (nki, True),
        "nki.language": (language, True),
        "nki.isa": (isa, True),
        "nki.isa.constants": (constants, False),
        "nki.typing": (typing, False),
        "nki.meta": (meta, False),
        "nki.experimental": (experimental, False),
        "nki.collectives": (collectives, False),
    }
