"""From prompts to ranked answers: `generate` draws them for one prompt, a `Generator` for many."""

from __future__ import annotations

from models.generation.draft_model import DraftModel, check_draft
from models.generation.drafts import Drafter, PromptLookup, Speculation
from models.generation.generator import Generator
from models.generation.network import Network
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
    "DraftModel",
    "Drafter",
    "Generation",
    "Generator",
    "Network",
    "Occupancy",
    "Progress",
    "PromptLookup",
    "Ranked",
    "Request",
    "Sample",
    "Sampling",
    "Speculation",
    "Timings",
    "Token",
    "Traffic",
    "Way",
    "check_draft",
    "check_request",
    "check_stop",
    "generate",
    "pass_at_k",
    "pass_at_top",
    "plan_shape",
    "rank",
    "vote",
]
