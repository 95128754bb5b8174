"""From a model and a prompt to ranked answers: `generate` draws them, `rank` orders them."""

from __future__ import annotations

from models.generation.generator import (
    Generation,
    Generator,
    Progress,
    Sample,
    Timings,
    check_request,
    generate,
    plan_shape,
)
from models.generation.ranking import Ranked, pass_at_k, pass_at_top, rank
from models.generation.sampling import Sampling
from models.generation.traffic import Traffic, Way

__all__ = [
    "Generation",
    "Generator",
    "Progress",
    "Ranked",
    "Sample",
    "Sampling",
    "Timings",
    "Traffic",
    "Way",
    "check_request",
    "generate",
    "pass_at_k",
    "pass_at_top",
    "plan_shape",
    "rank",
]
