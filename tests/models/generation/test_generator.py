from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from models.causal_lm import CacheShape, CausalLM
from models.causal_lm.families import FAMILIES
from models.generation import Generator, Progress, Sample, Sampling, generate, plan_shape
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]
NEW = 12
WARM = Sampling(temperature=0.9, top_k=30, top_p=0.95)


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return tiny.model()


def tokens(samples: Sequence[Sample]) -> list[list[int]]:
    return [sample.tokens for sample in samples]


def draw(model: CausalLM, samples: int, **changes: Any) -> list[Sample]:
    options: dict[str, Any] = {"max_new_tokens": NEW, "sampling": WARM, "seed": 3}
    return generate(model, PROMPT, samples=samples, **(options | changes)).samples


def frequent_tokens(model: CausalLM, count: int = 3) -> list[int]:
    """Tokens that occur in the middle of answers, to serve as end-of-sequence ids."""
    drawn = torch.tensor(tokens(draw(model, 64)))[:, 2:10].flatten()
    return drawn.bincount().argsort(descending=True)[:count].tolist()


def test_samples_differ_and_are_reproducible(model: CausalLM) -> None:
    first = draw(model, 8)
    assert tokens(first) == tokens(draw(model, 8))
    assert len({tuple(sample.tokens) for sample in first}) > 4
    assert tokens(first) != tokens(draw(model, 8, seed=4))


def test_fewer_samples_are_the_first_of_more(model: CausalLM) -> None:
    many = tokens(draw(model, 64))
    for samples in (1, 7):
        assert tokens(draw(model, samples)) == many[:samples]


@pytest.mark.parametrize("samples", [1, 7, 64])
@pytest.mark.parametrize("sampling", [WARM, Sampling(0)], ids=["sampled", "greedy"])
def test_bifurcated_equals_ordinary(model: CausalLM, samples: int, sampling: Sampling) -> None:
    eos = frequent_tokens(model)
    ways = {
        way: draw(model, samples, attention=way, sampling=sampling, eos_token_ids=eos)
        for way in ("bifurcated", "ordinary", "auto")
    }
    assert tokens(ways["bifurcated"]) == tokens(ways["ordinary"]) == tokens(ways["auto"])
    for one, other in zip(ways["bifurcated"], ways["ordinary"], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.finish == other.finish


def test_a_finished_sample_changes_no_other(model: CausalLM) -> None:
    eos = frequent_tokens(model)
    free, ended = draw(model, 32), draw(model, 32, eos_token_ids=eos)
    for one, other in zip(free, ended, strict=True):
        ends = [i for i, token in enumerate(one.tokens) if token in eos]
        assert other.tokens == (one.tokens[: ends[0] + 1] if ends else one.tokens)
        assert other.finish == ("eos" if ends else "length")
    assert {sample.finish for sample in ended} == {"eos", "length"}
    assert len({len(sample.tokens) for sample in ended}) > 2


def test_work_ends_with_the_last_sample(model: CausalLM) -> None:
    result = generate(
        model,
        PROMPT,
        samples=3,
        max_new_tokens=100,
        sampling=WARM,
        eos_token_ids=range(tiny.CONFIG.vocab_size),
    )
    assert result.timings.steps == 0
    assert [len(sample.tokens) for sample in result.samples] == [1, 1, 1]
    assert result.timings.tokens_per_second == 0.0


def test_seed_a_sample_equals_separate_runs(model: CausalLM) -> None:
    seeds = [9, 0, 2**63]
    together = draw(model, 3, seed=seeds)
    alone = [draw(model, 1, seed=seed)[0] for seed in seeds]
    assert tokens(together) == tokens(alone)


@pytest.mark.parametrize(
    "shape",
    [
        CacheShape(G=1, r=16, S_ctx=32, S_dec=32),  # padded context, free rows
        CacheShape(G=3, r=4, S_ctx=11, S_dec=11),  # the prompt in two groups, one group free
        CacheShape(G=8, r=1, S_ctx=20, S_dec=15),
    ],
)
def test_any_shape_that_fits_gives_the_same_answers(model: CausalLM, shape: CacheShape) -> None:
    generator = Generator(model, shape)
    for _ in range(2):  # the second run meets the first one's dead slots
        result = generator.run(PROMPT, samples=7, max_new_tokens=NEW, sampling=WARM, seed=3)
        assert tokens(result.samples) == tokens(draw(tiny.model(), 7))


def test_logprobs_are_the_models(model: CausalLM) -> None:
    """Recomputed by prefilling prompt and answer at once."""
    sample = draw(model, 4)[2]
    for length in (1, 5, NEW):
        told = PROMPT + sample.tokens[: length - 1]
        model.allocate(CacheShape(1, 1, len(told), 1))
        logits = model(
            tiny.int32([told]), tiny.int32([len(told)]), tiny.int32([[0]]), tiny.int32([0])
        )
        expected = logits[0].log_softmax(0)[sample.tokens[length - 1]]
        assert sample.logprobs[length - 1] == pytest.approx(float(expected), abs=1e-4)
    assert sample.mean_logprob == pytest.approx(sum(sample.logprobs) / NEW)


def test_greedy_equals_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = LlamaForCausalLM(config).eval()
    ours = tiny.model()
    theirs_by_name = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        theirs_by_name[FAMILIES["llama"].stored_name(name)].data.copy_(weight)
    expected = theirs.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=64,
        do_sample=False,
        pad_token_id=0,
    )[0, len(PROMPT) :].tolist()
    drawn = draw(ours, 3, sampling=Sampling(0), max_new_tokens=64)
    assert tokens(drawn) == [expected] * 3
    assert len(set(expected)) > 5  # not stuck on a token


def test_progress(model: CausalLM) -> None:
    seen: list[Progress] = []
    draw(model, 5, max_new_tokens=4, progress=seen.append)
    assert [(each.phase, each.step) for each in seen] == [
        ("prefill", 0),
        ("decode", 1),
        ("decode", 2),
        ("decode", 3),
        ("decode", 4),
    ]
    assert [each.unfinished for each in seen] == [5, 5, 5, 5, 0]
    assert {(each.samples, each.max_new_tokens) for each in seen} == {(5, 4)}


def test_result_tells_its_cost(model: CausalLM) -> None:
    result = generate(model, PROMPT, samples=6, max_new_tokens=NEW, sampling=WARM, seed=3)
    assert result.shape == CacheShape(G=1, r=6, S_ctx=len(PROMPT), S_dec=NEW - 1)
    assert model.cache_bytes() == result.traffic.bifurcated.stored_padded
    # stored: m_c + b m_d positions, and nothing else
    assert result.traffic.bifurcated.stored_live == result.traffic.bifurcated.stored_padded
    assert result.timings.steps == NEW - 1
    assert result.timings.decoded == 6 * (NEW - 1)
    assert result.timings.prefill > 0
    assert result.timings.decode > 0
    assert result.timings.tokens_per_second == pytest.approx(66 / result.timings.decode)
    ordinary = generate(
        model, PROMPT, samples=6, max_new_tokens=NEW, sampling=WARM, seed=3, attention="ordinary"
    )
    assert ordinary.shape == CacheShape(G=6, r=1, S_ctx=len(PROMPT), S_dec=NEW - 1)
    assert model.cache_bytes() == ordinary.traffic.ordinary.stored_padded
    assert ordinary.traffic == result.traffic


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, r"samples \(n\) is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [1] * 120}, "120 tokens and 12 new .* takes 128 together"),
        ({"prompt": [1, 50]}, "token 50, .* ends at 49"),
        ({"prompt": [1, -1]}, "token -1"),
        ({"attention": "shared"}, "'shared'; it must be auto, bifurcated or ordinary"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 samples"),
    ],
)
def test_requests_that_are_refused(model: CausalLM, changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "samples": 2, "max_new_tokens": NEW} | changes
    with pytest.raises(InputError, match=message):
        generate(model, options.pop("prompt"), **options)


def test_the_longest_that_fits(model: CausalLM) -> None:
    result = generate(model, [1] * 116, samples=2, max_new_tokens=NEW, sampling=WARM)
    assert [len(sample.tokens) for sample in result.samples] == [NEW, NEW]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 2}, "7 samples do not fit"),
        ({"S_ctx": 10}, "11 prompt tokens do not fit"),
        ({"S_dec": 10}, "11 suffix positions do not fit"),
    ],
)
def test_requests_that_do_not_fit_the_shape(
    model: CausalLM, changes: dict[str, int], message: str
) -> None:
    generator = Generator(model, replace(plan_shape(len(PROMPT), 7, NEW), **changes))
    with pytest.raises(InputError, match=message):
        generator.run(PROMPT, samples=7, max_new_tokens=NEW)


def test_damaged_weights_are_told() -> None:
    model = tiny.model()
    model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(InputError, match="not finite at token 0"):
        draw(model, 2)
