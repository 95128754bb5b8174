from __future__ import annotations

from typing import Any

import pytest
import torch

from models.causal_lm import ModelConfig, RopeConfig, rope

pytestmark = pytest.mark.null


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda parameters: parameters["rope_type"],
)
def test_tables_equal_transformers(make_llama: Any, parameters: dict[str, Any]) -> None:
    theirs = make_llama(rope_parameters=parameters, max_position_embeddings=512)
    config = ModelConfig.from_hf(theirs.config.to_dict())
    assert config.rope.kind == parameters["rope_type"]
    positions = torch.arange(512)  # past the original 64 of llama3
    cos, sin = theirs.model.rotary_emb(torch.zeros(1), positions[None])
    ours_cos, ours_sin = rope.tables(config.rope, config.d, 512)
    half = config.d // 2
    torch.testing.assert_close(ours_cos, cos[0, :, :half], rtol=0, atol=2e-5)
    torch.testing.assert_close(ours_sin, sin[0, :, :half], rtol=0, atol=2e-5)


def test_scaling_changes_the_tables() -> None:
    plain = rope.tables(RopeConfig("default", 1e4), 12, 100)[0]
    for scaled in (
        RopeConfig("linear", 1e4, 4.0),
        RopeConfig("llama3", 1e4, 8.0, 1.0, 4.0, 64),
    ):
        assert not torch.allclose(plain, rope.tables(scaled, 12, 100)[0], atol=0.1)


def test_rotation_is_half_split_and_keeps_length() -> None:
    cos, sin = rope.tables(RopeConfig("default", 1e4), 4, 3)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(3, 1, 4)
    turned = rope.rotate(x, cos[:, None], sin[:, None])
    torch.testing.assert_close(turned[0, 0], x[0, 0])
    # element 0 turns with element 2, by one radian a position
    angle = torch.tensor(1.0)
    assert turned[1, 0, 0] == pytest.approx(float(angle.cos() * 1 - angle.sin() * 3))
    assert turned[1, 0, 2] == pytest.approx(float(angle.cos() * 3 + angle.sin() * 1))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
