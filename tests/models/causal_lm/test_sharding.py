"""Which part of which weight a rank holds, without any process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.causal_lm import CacheShape, CausalLM
from models.causal_lm.sharding import KVSplit, Shard, kv_bytes, legal_degrees, split_heads
from models.parallel import Ranks, TensorParallel
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

BIASED = {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "qk_norm": True}


def rank(index: int, tp: int) -> TensorParallel:
    return TensorParallel(Ranks(index, tp))


@pytest.mark.parametrize(
    ("h", "g", "legal"),
    [
        (32, 8, [1, 2, 4, 8, 16, 32, 64]),
        (32, 32, [1, 2, 4, 8, 16, 32, 64]),
        (12, 2, [1, 2, 4, 6, 8, 12, 16, 32, 64]),
        (12, 4, [1, 2, 4, 8, 12, 16, 32, 64]),
        (12, 3, [1, 3, 6, 12]),
        (6, 1, [1, 2, 3, 4, 6, 8, 16, 32, 64]),
        (14, 2, [1, 2, 4, 8, 14, 16, 32, 64]),
    ],
)
def test_legal_degrees(h: int, g: int, legal: list[int]) -> None:
    assert legal_degrees(replace(tiny.CONFIG, h=h, g=g)) == legal


def test_an_illegal_degree_is_told_without_weights() -> None:
    message = "tp is 3; 4 query heads and 2 key/value heads can be split over 1, 2, 4, 8, 16, 32, "
    with pytest.raises(InputError, match=message):
        CausalLM(tiny.CONFIG, device="meta", parallel=rank(0, 3))
    with pytest.raises(InputError, match="kv_split is 'halves'; it must be positions or replicate"):
        CausalLM(tiny.CONFIG, kv_split="halves")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("g", "tp"), [(3, 1), (3, 3), (3, 6), (3, 12), (1, 8), (2, 8), (2, 32), (4, 8)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_shards_make_up_each_weight(g: int, tp: int, tied: bool) -> None:
    """Every element is on some rank, in its place; beyond the end are zeros."""
    config = replace(tiny.CONFIG, h=12, g=g, tie_word_embeddings=tied, experts=2, **BIASED)
    config = replace(config, experts_per_token=1)
    whole = CausalLM(config)
    tiny.randomise(whole.named_parameters())
    weights = dict(whole.named_parameters())
    networks = [CausalLM(config, device="meta", parallel=rank(r, tp)) for r in range(tp)]
    every = [network.shards() for network in networks]
    for network, shards in zip(networks, every, strict=True):
        own = {n: p for n, p in network.named_parameters() if "rank_util" not in n}
        assert shards.keys() == own.keys() == weights.keys()
        assert {n: s.shape for n, s in shards.items()} == {n: p.shape for n, p in own.items()}
    for name, weight in weights.items():
        parts = [shards[name] for shards in every]
        assert {part.whole for part in parts} == {tuple(weight.shape)}
        if parts[0].dim is None:
            assert tp == 1 or "norm" in name or "router" in name or name.endswith("_proj.bias")
            assert all(torch.equal(part.take(weight), weight) for part in parts)
            continue
        dim, seen = parts[0].dim, torch.zeros_like(weight)
        for part in parts:
            taken = part.take(weight)
            start, stop = part.live
            live = stop - start
            assert taken.narrow(dim, live, taken.shape[dim] - live).count_nonzero() == 0
            seen.narrow(dim, start, live).copy_(taken.narrow(dim, 0, live))
        assert torch.equal(seen, weight), name


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("kv_split", ["positions", "replicate"])
def test_bytes_of_a_rank_are_those_of_its_cache(tp: int, kv_split: KVSplit) -> None:
    config, shape = replace(tiny.CONFIG, h=8, g=2), CacheShape(G=2, r=3, S_ctx=13, S_dec=5)
    told = kv_bytes(config, shape, tp, kv_split, itemsize=4)
    for r in range(tp):
        model = CausalLM(config, parallel=rank(r, tp), kv_split=kv_split)
        model.allocate(shape)
        assert model.cache_bytes() == told.context + told.suffix
        caches = model.caches()
        assert sum(c.k_ctx.nbytes + c.v_ctx.nbytes for c in caches) == told.context


def test_a_quarter_of_the_context_at_four_ranks_a_head() -> None:
    """Llama 3 8B's heads, and a context of 8K."""
    config = replace(tiny.CONFIG, layers=32, h=32, g=8, d=128)
    shape = CacheShape(G=1, r=16, S_ctx=8192, S_dec=128)
    split, copies = (
        kv_bytes(config, shape, 32, each, itemsize=2) for each in ("positions", "replicate")
    )
    assert copies.context == kv_bytes(config, shape, 8, "positions", itemsize=2).context
    assert split.context * 4 == copies.context == 128 << 20
    assert split.suffix == copies.suffix == 32 << 20


def test_heads_lie_with_the_key_value_head_that_they_read() -> None:
    config = replace(tiny.CONFIG, h=32, g=8)
    for tp in legal_degrees(config):
        for r in range(tp):
            heads = split_heads(config, tp, r)
            readers = range(heads.first_query, heads.first_query + heads.queries)
            read = {i // config.p for i in readers}
            assert read == (set(range(heads.first, heads.first + heads.g)) if readers else set())
            assert heads.replicas == max(tp // 8, 1)


@pytest.mark.parametrize(("h", "g", "tp"), [(4, 2, 8), (14, 2, 4), (14, 2, 16), (6, 1, 4)])
def test_every_query_head_is_on_one_rank(h: int, g: int, tp: int) -> None:
    config = replace(tiny.CONFIG, h=h, g=g)
    every = [split_heads(config, tp, r) for r in range(tp)]
    assert len({heads.h for heads in every}) == 1
    own = [i for a in every for i in range(a.first_query, a.first_query + a.queries)]
    assert own == list(range(h))


def test_a_part_behind_the_end_is_zero() -> None:
    weight = torch.arange(10.0).view(5, 2)
    assert Shard((5, 2), 0, 6, 8).take(weight).tolist() == [[0, 0], [0, 0]]
    assert Shard((5, 2), 0, 4, 6).take(weight).tolist() == [[8, 9], [0, 0]]
    assert Shard((5, 2), 1, 1, 3).take(weight)[:2].tolist() == [[1, 0], [3, 0]]


def test_a_rank_without_processes_says_so() -> None:
    model = CausalLM(tiny.CONFIG, parallel=rank(1, 2))
    model.allocate(CacheShape(G=1, r=1, S_ctx=4, S_dec=4))
    with pytest.raises(InputError, match="this process has joined no group"):
        model(tiny.int32([[1, 2]]), tiny.int32([2]), tiny.int32([[0]]), tiny.int32([0]))
