"""Candidates without a sort, and the decode step that draws among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM
from models.causal_lm.decode_step import DecodeStep
from models.causal_lm.draw import MOST_CANDIDATES, find_candidates
from models.generation.sampling import Sampling, choose
from nki_kernels.errors import InputError
from tests.models import tiny
from tests.models.tiny import int32

pytestmark = pytest.mark.null

# One row of each kind: greedy, cut by top-k, by top-p, by both, and hardly at all.
SAMPLINGS = [
    Sampling(0, top_k=7),
    Sampling(1.3, top_k=4),
    Sampling(0.7, top_k=9, top_p=0.6),
    Sampling(1e-30, top_k=3),
    Sampling(2.0, top_k=9, top_p=0.99),
    Sampling(1.0, top_k=1, top_p=0.5),
]
SHAPE = CacheShape(G=2, r=3, S_ctx=8, S_dec=6)


def logits_with(levels: int, vocab: int, seed: int = 0) -> Tensor:
    """Of four rows; there are only so many values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels, (4, vocab), generator=generator).float() / 7


@pytest.mark.parametrize("levels", [1, 3, 40, 100_000])
@pytest.mark.parametrize("k", [1, 2, 7, 50, 300, 2000])
def test_candidates_are_those_of_a_stable_sort(k: int, levels: int) -> None:
    logits = logits_with(levels, 2000)
    found = find_candidates(logits, k, 2000)
    ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found.logits, ranked[:, :k])
    assert torch.equal(found.ids, ids[:, :k].to(torch.int32))
    total = ranked[:, 0] + found.weight.log()
    torch.testing.assert_close(total, logits.logsumexp(-1))


def test_order_of_the_largest_number_of_candidates() -> None:
    logits = logits_with(500, MOST_CANDIDATES)
    found = find_candidates(logits, MOST_CANDIDATES, MOST_CANDIDATES)
    assert torch.equal(found.ids.long(), logits.sort(dim=-1, descending=True, stable=True)[1])


@pytest.mark.parametrize(
    ("k", "vocab", "message"),
    [
        (0, 10, "k is 0; candidates must be 1 to 4096"),
        (4097, 5000, "k is 4097"),
        (3, 2**24 + 1, r"token ids must be below 2\*\*24"),
    ],
)
def test_what_cannot_be_put_in_order_is_refused(k: int, vocab: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_candidates(torch.zeros(1, 10), k, vocab)


def prefilled(**changes: object) -> CausalLM:
    model = tiny.model(**changes)
    model.allocate(SHAPE)
    lengths, nothing = int32([5, 8]), int32([[0] * 3] * 2)
    model(int32([[7, 3, 9, 1, 4, 0, 0, 0]]), lengths, nothing, int32([0]))
    model(int32([[2, 8, 6, 5, 5, 1, 3, 9]]), lengths, nothing, int32([1]))
    return model


def settings() -> tuple[Tensor, Tensor, Tensor]:
    """temperature, top_k and top_p of each row, [G, r]."""
    return (
        torch.tensor([each.temperature for each in SAMPLINGS]).view(2, 3),
        int32([each.top_k for each in SAMPLINGS]).view(2, 3),
        torch.tensor([each.top_p for each in SAMPLINGS]).view(2, 3),
    )


@pytest.mark.parametrize("n", [1, 2])
def test_a_step_draws_what_the_host_draws(n: int) -> None:
    """Every row with its own setting, and candidates to spare."""
    model = prefilled()
    u = torch.randint(0, 2**24, (40, 2, 3, n), generator=torch.Generator().manual_seed(5)) / 2**24
    inputs = (
        int32([[[3, 4][:n], [5, 6][:n], [7, 8][:n]], [[9, 1][:n], [2, 3][:n], [4, 5][:n]]]),
        int32([5, 8]),
        int32([[n] * 3] * 2),
        int32([0]),
    )
    logits = model(*inputs)  # [G, r, n, vocab]
    step = DecodeStep(model, 9)
    drawn = set()
    for each in u:
        tokens, logprobs = step(*inputs, each, *settings())
        assert tokens.dtype == torch.int32 and tokens.shape == logprobs.shape == (2, 3, n)
        for row, sampling in enumerate(SAMPLINGS):
            j, i = divmod(row, 3)
            expected, chance = choose(logits[j, i], each[j, i], sampling)
            assert tokens[j, i].tolist() == expected.tolist()
            torch.testing.assert_close(logprobs[j, i], chance)
        drawn.add(tuple(tokens.flatten().tolist()))
    assert len(drawn) > 10


def test_a_prefill_gives_logits() -> None:
    model = prefilled()
    inputs = (int32([[7, 3, 9]]), int32([3, 8]), int32([[0] * 3] * 2), int32([0]))
    unread = torch.zeros(2, 3, 1)
    logits = DecodeStep(model, 4)(*inputs, unread, *settings())
    assert torch.equal(logits, model(*inputs))


@pytest.mark.parametrize("candidates", [0, 5000])
def test_number_of_candidates(candidates: int) -> None:
    with pytest.raises(InputError, match=f"candidates is {candidates}; it must be 1 to 4096"):
        DecodeStep(tiny.model(), candidates)
