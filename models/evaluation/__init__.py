"""How good answers are: perplexity of a text, and how often samples pass a user's own check."""

from __future__ import annotations

from models.evaluation.commands import Finished, check_command, run_command
from models.evaluation.outcomes import Outcome, judge, summarise
from models.evaluation.perplexity import Perplexity, check_text, perplexity
from models.evaluation.prompts import Prompt, read_prompts
from models.evaluation.records import Records
from models.evaluation.scoring import Scorer, scorer

__all__ = [
    "Finished",
    "Outcome",
    "Perplexity",
    "Prompt",
    "Records",
    "Scorer",
    "check_command",
    "check_text",
    "judge",
    "perplexity",
    "read_prompts",
    "run_command",
    "scorer",
    "summarise",
]
