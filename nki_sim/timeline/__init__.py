"""The timeline: what a recorded kernel costs on a NeuronCore, engine by engine.

``profile`` runs a kernel and reports; ``schedule`` is the model, ``constants`` its numbers,
``published`` what it is held against. docs/timeline.md explains them.
"""

from __future__ import annotations

from nki_sim.timeline.profiling import Profile, faster, profile

__all__ = ["Profile", "faster", "profile"]
