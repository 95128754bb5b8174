"""``nki.experimental``: the structured loops, under the name that the register docstrings use."""

from __future__ import annotations

from nki_sim.language.loops import fori_loop, while_loop

__all__ = ["fori_loop", "while_loop"]
