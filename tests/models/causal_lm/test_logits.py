from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM, load
from nki_kernels.errors import InputError
from tests.models import tiny
from tests.models.tiny import int32

pytestmark = pytest.mark.null

TOLERANCE = 1e-4
SHAPE = CacheShape(G=2, r=2, S_ctx=13, S_dec=9)
PROMPT_LENGTHS = (11, 6)


def poison(model: CausalLM) -> None:
    """Fills every cache slot with large finite numbers of both signs."""
    for cache in model.caches():
        for name in cache.names:
            buffer = getattr(cache, name)
            buffer.copy_(torch.where(torch.rand(buffer.shape) < 0.5, -1e4, 1e4))


def sequences(seed: int = 1) -> tuple[list[list[int]], Tensor]:
    """A prompt for each group, and 8 further tokens for each sample [G, r, 8]."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [
        torch.randint(0, tiny.CONFIG.vocab_size, (n,), generator=generator).tolist()
        for n in PROMPT_LENGTHS
    ]
    return prompts, torch.randint(0, tiny.CONFIG.vocab_size, (2, 2, 8), generator=generator)


def run(model: CausalLM, dirty: bool = True) -> tuple[list[Tensor], Tensor]:
    """Prefills both groups; decodes three tokens singly, then twice two, ragged; returns logits.

    Sample (1, 1) starts two tokens late: it sits out the first two steps as a free row.
    """
    prompts, suffix = sequences()
    model.allocate(SHAPE)
    if dirty:
        poison(model)
    context_len = int32(PROMPT_LENGTHS)
    nothing = int32([[0, 0], [0, 0]])
    first = []
    for group, prompt in enumerate(prompts):
        padded = prompt + [0] * (SHAPE.S_ctx - len(prompt) if group == 0 else 0)
        first.append(model(int32([padded]), context_len, nothing, int32([group]))[0])
    late = torch.tensor([[0, 0], [0, 2]])
    logits = torch.full((2, 2, 8, tiny.CONFIG.vocab_size), torch.nan)
    done = torch.zeros(2, 2, dtype=torch.int64)
    for step, n in enumerate((1, 1, 1, 2, 2)):
        free = step < late
        new = torch.stack([suffix[j, i, done[j, i] :][:n] for j in (0, 1) for i in (0, 1)])
        done = torch.where(free, done, done + n)
        step_logits = model(
            new.view(2, 2, n).to(torch.int32), context_len, done.to(torch.int32), int32([0])
        )
        for j, i in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if not free[j, i]:
                logits[j, i, done[j, i] - n : done[j, i]] = step_logits[j, i]
    return first, logits


def check_against(theirs: Any, ours: CausalLM) -> None:
    prompts, suffix = sequences()
    first, logits = run(ours)
    for j, prompt in enumerate(prompts):
        for i in (0, 1):
            tokens = torch.tensor([prompt + suffix[j, i].tolist()])
            with torch.no_grad():
                expected = theirs(tokens).logits[0]
            assert expected.std() > 0.5  # a difference would show
            torch.testing.assert_close(first[j], expected[len(prompt) - 1], rtol=0, atol=TOLERANCE)
            known = ~logits[j, i, :, 0].isnan()
            assert known.sum() == (5 if (j, i) == (1, 1) else 7)
            torch.testing.assert_close(
                logits[j, i, known], expected[len(prompt) :][:8][known], rtol=0, atol=TOLERANCE
            )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("g", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_logits_equal_transformers(make_llama: Any, tmp_path: Path, g: int, tied: bool) -> None:
    theirs = make_llama(num_key_value_heads=g, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert (ours.lm_head.weight is ours.embed_tokens.weight) == tied
    check_against(theirs, ours)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ],
    ids=["biases", "head_dim", "rope-linear", "rope-llama3"],
)
def test_options_equal_transformers(
    make_llama: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    theirs = make_llama(**fields)
    theirs.save_pretrained(tmp_path)
    check_against(theirs, load(tmp_path))


def test_sharded_checkpoint(make_llama: Any, tmp_path: Path) -> None:
    theirs = make_llama()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    check_against(theirs, load(tmp_path))


def test_bfloat16_is_close_and_logits_are_fp32(make_llama: Any, tmp_path: Path) -> None:
    theirs = make_llama().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.dtype == torch.bfloat16
    assert load(tmp_path, dtype="float32").dtype == torch.float32
    first, logits = run(ours)
    wide_first, wide = run(load(tmp_path, dtype="float32"))
    assert first[0].dtype == logits.dtype == torch.float32
    # a few of bf16's 8 significant bits, after two layers
    for narrow, reference in ((first[0], wide_first[0]), (logits.nan_to_num(), wide.nan_to_num())):
        assert (narrow - reference).abs().max() < 0.05 * reference.abs().max()


def test_dead_slots_do_not_change_a_bit() -> None:
    model = tiny.model()
    clean, dirty = run(model, dirty=False), run(model, dirty=True)
    assert torch.equal(clean[0][0], dirty[0][0])
    assert torch.equal(clean[0][1], dirty[0][1])
    assert torch.equal(clean[1].nan_to_num(), dirty[1].nan_to_num())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (int32([[0] * 14]), r"\(1, 14\).*S_ctx = 13"),
        (int32([[0], [0]]), r"\(2, 1\)"),
        (int32([[[0]], [[0]]]), r"\(2, 1, 1\).*r = 2"),
        (int32([0]), "must be"),
    ],
)
def test_tokens_of_another_shape(tokens: Tensor, message: str) -> None:
    model = tiny.model()
    model.allocate(SHAPE)
    with pytest.raises(InputError, match=message):
        model(tokens, int32([1, 1]), int32([[0, 0], [0, 0]]), int32([0]))


def test_no_cache_yet() -> None:
    with pytest.raises(InputError, match="allocate"):
        tiny.model()(int32([[1]]), int32([1]), int32([[0]]), int32([0]))


@pytest.mark.parametrize("name", ["G", "r", "S_ctx", "S_dec"])
def test_empty_shape(name: str) -> None:
    sizes = {"G": 1, "r": 1, "S_ctx": 1, "S_dec": 1}
    with pytest.raises(InputError, match=f"{name} is 0"):
        CacheShape(**(sizes | {name: 0}))
