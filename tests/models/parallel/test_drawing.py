"""Tokens drawn inside the graph over several ranks, and the graphs themselves."""

from __future__ import annotations

import pytest
import torch

from models.generation import Sampling
from models.parallel import SINGLE
from tests.models import tiny
from tests.models.causal_lm.test_draw import logits_with
from tests.models.causal_lm.test_export import DECODES, DRAWN, EVERYTHING, PREFILLS, UNREAD
from tests.models.parallel import work
from tests.models.parallel.ranks import Pool

pytestmark = [pytest.mark.null, pytest.mark.slow]

INPUTS = [(*each, *UNREAD) for each in PREFILLS] + [(*each, *DRAWN) for each in DECODES]


@pytest.mark.parametrize("levels", [2, 100_000])
@pytest.mark.parametrize(("k", "vocab"), [(1, 50), (7, 50), (40, 50), (50, 50), (64, 1999)])
@pytest.mark.parametrize("tp", [2, 4])
def test_candidates_of_all_ranks(pool: Pool, tp: int, k: int, vocab: int, levels: int) -> None:
    """More candidates than a rank has tokens, ties across ranks, and a padded vocabulary."""
    logits = logits_with(levels, vocab)
    ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
    for values, found, weight in pool.call(tp, work.candidates, logits, k):
        assert torch.equal(values, ranked[:, :k])
        assert torch.equal(found, ids[:, :k].to(torch.int32))
        torch.testing.assert_close(ranked[:, 0] + weight.log(), logits.logsumexp(-1))
    wrong = pool.call(tp, work.candidates, logits, k, True)
    assert not torch.equal(wrong[0][1], ids[:, :k].to(torch.int32))  # a swapped rank is seen


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"g": 1}], ids=["llama", "everything", "g1"])
@pytest.mark.parametrize("tp", [2, 4])
def test_steps_draw_the_tokens_of_one_rank(pool: Pool, tp: int, options: dict) -> None:
    model = tiny.model(**options)
    weights = dict(model.state_dict())
    expected = work.drawn(SINGLE, model.config, weights, INPUTS, 4)
    assert len({int(token) for tokens, _ in expected for token in tokens.flatten()}) > 5
    for made in pool.call(tp, work.drawn, model.config, weights, INPUTS, 4):
        for (tokens, logprobs), (theirs, chances) in zip(made, expected, strict=True):
            assert torch.equal(tokens, theirs)
            torch.testing.assert_close(logprobs, chances, rtol=0, atol=1e-5)


# Sums over the ranks: the embedding; in each layer, behind attention and the feed-forward layer.
SUMS = 1 + 2 * tiny.CONFIG.layers


@pytest.mark.parametrize(
    ("tp", "options", "gathers"),
    [
        (2, {}, 1),  # the candidates
        (4, {}, 1 + 2 * tiny.CONFIG.layers),  # and of the replicas: the queries, the states
    ],
    ids=["llama", "positions"],
)
def test_graphs_hold_the_collectives_and_keep_the_rules(
    pool: Pool, tp: int, options: dict, gathers: int
) -> None:
    model = tiny.model(**options)
    inputs = [INPUTS[0], INPUTS[2]]
    states = 4 * tiny.CONFIG.layers
    results = pool.call(tp, work.exported, model.config, dict(model.state_dict()), inputs, 4)
    for result in results:
        for phase, (operators, written, difference) in result.items():
            assert len(written) == states and all(".cache." in name for name in written)
            assert difference < 1e-5
            sums = [name for name in operators if "_c10d_functional.all_reduce" in name]
            assert len(sums) == SUMS
            gathered = [name for name in operators if "all_gather_into_tensor" in name]
            assert len(gathered) == (gathers if phase == "decode" else 1)  # of the logits


def test_greedy_needs_one_candidate() -> None:
    assert Sampling(0).candidates == Sampling(1.0, top_k=1).candidates == 1
    assert Sampling(1.0, top_k=50).candidates == 50
    assert Sampling(1.0, top_p=0.5).candidates is None
    assert Sampling(1.0, top_k=5000).candidates is None
