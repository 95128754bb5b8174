"""Llama-style networks: config, families, layers, caches and checkpoints.

`find_checkpoint` turns a directory or hub id into a directory; `Tokenizer.load` and `load` read it.
"""

from __future__ import annotations

from models.causal_lm.cache import CacheShape
from models.causal_lm.checkpoint import load
from models.causal_lm.config import ModelConfig, RopeConfig
from models.causal_lm.directory import find_checkpoint, load_config
from models.causal_lm.network import CausalLM
from models.causal_lm.tokenizer import GenerationDefaults, Tokenizer

__all__ = [
    "CacheShape",
    "CausalLM",
    "GenerationDefaults",
    "ModelConfig",
    "RopeConfig",
    "Tokenizer",
    "find_checkpoint",
    "load",
    "load_config",
]
