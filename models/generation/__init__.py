"""From prompts to ranked answers: `generate` draws them for one prompt, a `Generator` for many."""

from __future__ import annotations

from models.generation.generator import Generator, Network
from models.generation.ranking import Ranked, pass_at_k, pass_at_top, rank
from models.generation.requests import Answers, Request, Sample, Token, check_request
from models.generation.results import Generation, Progress, Timings
from models.generation.sampling import Sampling
from models.generation.single import generate, plan_shape
from models.generation.slots import Occupancy
from models.generation.stopping import check_stop
from models.generation.traffic import Traffic, Way
from models.generation.voting import vote

__all__ = [
    "Answers",
    "Generation",
    "Generator",
    "Network",
    "Occupancy",
    "Progress",
    "Ranked",
    "Request",
    "Sample",
    "Sampling",
    "Timings",
    "Token",
    "Traffic",
    "Way",
    "check_request",
    "check_stop",
    "generate",
    "pass_at_k",
    "pass_at_top",
    "plan_shape",
    "rank",
    "vote",
]
