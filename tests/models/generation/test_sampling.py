from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.generation.randomness import uniforms
from models.generation.sampling import Sampling, candidates, choose
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null

logit = st.one_of(st.floats(-20, 20, width=32), st.sampled_from([0.0, 1.0, -3e38]))
logit_rows = st.lists(logit, min_size=1, max_size=30).map(lambda row: torch.tensor([row]))
settings_of_sampling = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 35),
    top_p=st.floats(0.01, 1),
)
unit = st.integers(0, 2**24 - 1).map(lambda k: k / 2**24)


def reference(row: Tensor, sampling: Sampling) -> dict[int, float]:
    """The distribution drawn from, in fp64 and plain loops: token id -> probability."""
    logits = row.double().numpy()
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = order[: sampling.top_k or None]
    weights = [float(np.exp((logits[i] - logits[order[0]]) / sampling.temperature)) for i in order]
    total, kept, reached = sum(weights), [], 0.0
    for i, weight in zip(order, weights, strict=True):
        kept.append((i, weight))
        reached += weight / total
        if reached >= sampling.top_p:
            break
    total = sum(weight for _, weight in kept)
    return {i: weight / total for i, weight in kept}


def probabilities(logits: Tensor, sampling: Sampling) -> dict[int, float]:
    """The same from the implementation: the differences of its cumulative sum."""
    ids, cumulative = candidates(logits, sampling)
    steps = torch.diff(cumulative[0], prepend=torch.zeros(1)) / cumulative[0, -1]
    return {int(i): float(p) for i, p in zip(ids[0], steps, strict=True) if p > 0}


@given(logits=logit_rows, sampling=settings_of_sampling)
def test_distribution(logits: Tensor, sampling: Sampling) -> None:
    expected, got = reference(logits[0], sampling), probabilities(logits, sampling)
    edge = Sampling(sampling.temperature, sampling.top_k, max(sampling.top_p - 1e-5, 1e-9))
    inner = set(reference(logits[0], edge))
    # rounding may decide whether the candidate at the edge of top-p is in, and drops the tiniest
    assert {i for i in inner if expected[i] > 1e-6} <= set(got)
    wider = Sampling(sampling.temperature, sampling.top_k, min(sampling.top_p + 1e-5, 1.0))
    assert set(got) <= set(reference(logits[0], wider))
    if set(got) == set(expected):
        for i, p in expected.items():
            assert got[i] == pytest.approx(p, abs=2e-6)


@given(logits=logit_rows, sampling=settings_of_sampling, u=unit)
def test_choice_is_a_candidate(logits: Tensor, sampling: Sampling, u: float) -> None:
    tokens, logprobs = choose(logits, torch.tensor([u]), sampling)
    ids, cumulative = candidates(logits, sampling)
    kept = probabilities(logits, sampling)
    assert int(tokens) in kept or sampling.greedy
    expected = logits[0].double().log_softmax(0)[int(tokens)]
    assert float(logprobs) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
    if not sampling.greedy:
        rank = ids[0].tolist().index(int(tokens))
        below = float(cumulative[0, rank - 1]) if rank else 0.0
        total = float(cumulative[0, -1])
        assert below <= np.float32(u) * np.float32(total) < float(cumulative[0, rank])


@given(rows=st.lists(st.tuples(st.integers(0, 2**32), unit), min_size=2, max_size=8))
def test_rows_do_not_touch_each_other(rows: list[tuple[int, float]]) -> None:
    logits = torch.stack(
        [torch.randn(17, generator=torch.Generator().manual_seed(seed)) * 3 for seed, _ in rows]
    )
    u = torch.tensor([u for _, u in rows])
    sampling = Sampling(0.8, top_k=9, top_p=0.9)
    together = choose(logits, u, sampling)[0]
    alone = [int(choose(logits[i : i + 1], u[i : i + 1], sampling)[0]) for i in range(len(rows))]
    assert together.tolist() == alone


def test_frequencies() -> None:
    """100,000 draws against the distribution: chi-square, 99.9 % point."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, 0.25])
    sampling = Sampling(temperature=0.7, top_k=6, top_p=0.95)
    expected = reference(logits, sampling)
    assert 1 < len(expected) < 6
    u = torch.from_numpy(uniforms((11, 0), 0, 100_000))
    tokens, _ = choose(logits.expand(len(u), -1), u, sampling)
    counts = torch.bincount(tokens, minlength=8).double()
    assert counts[[i for i in range(8) if i not in expected]].sum() == 0
    chi_square = sum(
        float((counts[i] - p * len(u)) ** 2 / (p * len(u))) for i, p in expected.items()
    )
    assert chi_square < {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}[len(expected) - 1]


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    assert choose(logits, torch.zeros(1), Sampling(0))[0].item() == 1
    assert choose(logits, torch.zeros(1), Sampling(1.0, top_k=1))[0].item() == 1
    ids, _ = candidates(logits, Sampling(1.0, top_k=2))
    assert ids.tolist() == [[1, 2]]
    for u, token in ((0.0, 1), (0.49, 1), (0.5, 2), (0.99, 2)):
        assert choose(logits, torch.tensor([u]), Sampling(1.0, top_k=2))[0].item() == token


def test_equal_logits_stay_in_order_of_their_ids() -> None:
    """Far more ties than a sort keeps in order by chance."""
    logits = torch.randint(0, 3, (2, 20_000), generator=torch.Generator().manual_seed(0)).float()
    ids, _ = candidates(logits, Sampling())
    expected = [sorted(range(20_000), key=lambda i: (-row[i], i)) for row in logits.tolist()]
    assert ids.tolist() == expected


def test_top_p_keeps_the_candidate_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert set(probabilities(logits, Sampling(1.0, top_p=0.5))) == {0}
    assert set(probabilities(logits, Sampling(1.0, top_p=0.51))) == {0, 1}
    assert set(probabilities(logits, Sampling(1.0, top_p=1e-6))) == {0}
    # top-p comes after top-k and counts what top-k left: 0.5 / 0.75 of two candidates
    assert set(probabilities(logits, Sampling(1.0, top_k=2, top_p=0.6))) == {0}


def test_smallest_temperature_is_greedy_and_finite() -> None:
    logits = torch.tensor([[-50.0, 80.0, 79.0]])
    tokens, logprobs = choose(logits, torch.tensor([1 - 2.0**-24]), Sampling(1e-30))
    assert tokens.item() == 1
    assert logprobs.item() == pytest.approx(-0.3133, abs=1e-4)


def test_logprob_is_of_the_model_not_of_the_sampling() -> None:
    logits = torch.tensor([[1.0, 0.0]])
    for sampling in (Sampling(0), Sampling(0.3), Sampling(1.0, top_k=1), Sampling(1.0, top_p=0.1)):
        tokens, logprobs = choose(logits, torch.zeros(1), sampling)
        assert tokens.item() == 0
        assert logprobs.item() == pytest.approx(-0.31326, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**values)
