"""Networks over two and four ranks equal the one over one rank, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_lm import ModelConfig, load
from models.generation import Sampling, generate
from tests.models import tiny
from tests.models.causal_lm import families
from tests.models.causal_lm.driver import Script, run, sequences
from tests.models.causal_lm.families import MODELS
from tests.models.parallel import work
from tests.models.parallel.ranks import Pool

pytestmark = [pytest.mark.null, pytest.mark.slow]

BIASED: dict[str, Any] = {"qkv_bias": True, "o_bias": True, "qk_norm": True}
SCRIPT = Script(prompt_lengths=(21, 9), steps=(1,) * 12 + (3,))
TOLERANCE = 1e-5  # of the largest logit

# Families that are split in different ways; tokens of all are compared in the long ring.
DIFFERENT = ("llama-3", "multi-query", "mixtral", "gemma-2")

Logits = tuple[list[Tensor], Tensor]
Case = tuple[ModelConfig, dict[str, Tensor], Logits]


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Makes each family's model once: its config, its weights, and its logits on one rank."""
    kept: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in kept:
            directory: Path = tmp_path_factory.mktemp(name)
            families.make(name).save_pretrained(directory)
            model = load(directory)
            kept[name] = model.config, dict(model.state_dict()), run(model, SCRIPT)
        return kept[name]

    return make


def error(got: Logits, expected: Logits) -> float:
    """The largest difference of any logit, over the largest logit."""
    mine, theirs = (torch.stack([*first, *late.flatten(0, 2)]) for first, late in (got, expected))
    assert torch.equal(mine.isnan(), theirs.isnan())
    return float((mine - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [2, 4])
def test_logits_equal_those_of_one_rank(
    pool: Pool, case: Callable[[str], Case], name: str, tp: int
) -> None:
    config, weights, expected = case(name)
    for kv_split in ("positions", "replicate") if tp > config.g else ("positions",):
        results = pool.call(tp, work.logits, config, weights, SCRIPT, kv_split)
        for *got, _ in results:
            assert error(got, expected) < TOLERANCE
            assert error(got, results[0][:2]) == 0  # every rank has the same bits


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.9, top_p=0.95)], ids=["0", "0.9"])
@pytest.mark.parametrize(
    "name",
    [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.long) for name in MODELS],
)
@pytest.mark.parametrize("tp", [2, 4])
def test_tokens_equal_those_of_one_rank(
    pool: Pool, case: Callable[[str], Case], name: str, tp: int, sampling: Sampling
) -> None:
    config, weights, _ = case(name)
    prompt = sequences(SCRIPT, config.vocab_size)[0][0]
    alone = work.sharded(work.SINGLE, config, weights)
    made = generate(alone, prompt, samples=5, max_new_tokens=24, sampling=sampling, seed=3)
    expected = [sample.tokens for sample in made.samples]
    assert len({token for sample in expected for token in sample}) > 4
    args: tuple[Any, ...] = (config, weights, prompt, sampling, 24)
    assert pool.call(tp, work.tokens, *args) == [expected] * 4


@pytest.mark.parametrize(
    ("fault", "name", "tp"),
    [
        ("swapped_shard", "llama-3", 2),
        ("missing_sum", "llama-3", 2),
        ("wrong_order", "llama-3", 2),
        ("wrong_head", "llama-3", 2),
        ("wrong_block", "llama-3", 4),
        ("suffix_on_all", "llama-3", 4),
        ("window_from_block", "mistral", 4),
    ],
)
def test_an_error_is_seen(
    pool: Pool, case: Callable[[str], Case], fault: str, name: str, tp: int
) -> None:
    config, weights, expected = case(name)
    results = pool.call(tp, work.logits, config, weights, SCRIPT, "positions", fault)
    assert max(error(got, expected) for *got, _ in results) > 100 * TOLERANCE


@pytest.mark.parametrize(("h", "g"), [(6, 2), (3, 1)])
@pytest.mark.parametrize("kv_split", ["positions", "replicate"])
def test_query_heads_that_do_not_divide(pool: Pool, h: int, g: int, kv_split: str) -> None:
    """Over four ranks: some compute heads of zeros."""
    model = tiny.model(h=h, g=g, max_position=256, **BIASED)
    expected = run(model, SCRIPT)
    weights = dict(model.state_dict())
    for *got, _ in pool.call(4, work.logits, model.config, weights, SCRIPT, kv_split):
        assert error(got, expected) < TOLERANCE


def test_a_split_context_takes_a_part_of_the_memory(
    pool: Pool, case: Callable[[str], Case]
) -> None:
    config, weights, _ = case("multi-query")
    shape = SCRIPT.shape
    unit = 2 * config.layers * config.d * 4  # bytes of a position of one head
    for kv_split, stored in (("positions", -(-shape.S_ctx // 4)), ("replicate", shape.S_ctx)):
        for *_, nbytes in pool.call(4, work.logits, config, weights, SCRIPT, kv_split):
            assert nbytes == unit * (shape.G * stored + shape.suffix_slots)
