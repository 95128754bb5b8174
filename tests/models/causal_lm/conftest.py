from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny

MakeLlama = Callable[..., Any]


@pytest.fixture(scope="session")
def make_llama() -> MakeLlama:
    """Makes a random transformers Llama of tiny.CONFIG's sizes; imports transformers late."""

    def make(seed: int = 0, **fields: Any) -> Any:
        import transformers
        from transformers import LlamaConfig, LlamaForCausalLM

        rope = fields.pop("rope_parameters", None)
        if rope is not None and transformers.__version__.startswith("4."):
            rope = dict(rope)
            fields |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        elif rope is not None:
            fields["rope_parameters"] = dict(rope)
        sizes = {
            "vocab_size": tiny.CONFIG.vocab_size,
            "hidden_size": tiny.CONFIG.hidden_size,
            "intermediate_size": tiny.CONFIG.intermediate_size,
            "num_hidden_layers": tiny.CONFIG.layers,
            "num_attention_heads": tiny.CONFIG.h,
            "num_key_value_heads": tiny.CONFIG.g,
            "max_position_embeddings": tiny.CONFIG.max_position,
            "rms_norm_eps": tiny.CONFIG.rms_norm_eps,
            "eos_token_id": None,
            "bos_token_id": None,
        }
        llama = LlamaForCausalLM(LlamaConfig(**(sizes | fields))).eval()
        tiny.randomise(llama.named_parameters(), seed)
        return llama

    return make


@pytest.fixture
def saved(make_llama: MakeLlama, tmp_path: Path) -> Path:
    """A checkpoint directory of a random Llama, single file."""
    directory = tmp_path / "checkpoint"
    make_llama().save_pretrained(directory)
    return directory
