"""Compiled graphs over eight ranks, for every family, and under continuous batching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compile.export import Cpu
from compile.run import CompiledLM
from models.causal_lm import CacheShape, load
from models.generation import Generator, Request
from models.parallel import SINGLE
from models.pretrained import DEFAULT_MODEL
from tests.compile import making
from tests.compile.making import GREEDY, NEW, OPEN, SAMPLED, asked
from tests.models.causal_lm.families import MODELS
from tests.models.parallel.ranks import Pool

pytestmark = [pytest.mark.null, pytest.mark.slow]

ALWAYS = ("llama-3", "gemma-2", "mixtral")  # the others in the long ring
EIGHT = ["--tp", "8", "--context", "12", "--samples", "3", "--kernels", "torch"]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Eight processes of one gloo group."""
    pool = Pool(tmp_path_factory.mktemp("eight"), world=8)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.long) for n in MODELS]
)
def test_every_family_over_eight_ranks(tmp_path: Path, eight: Pool, name: str) -> None:
    model = making.checkpoint(tmp_path / "model", name)
    options = [*EIGHT, "--top-k", "5"]
    artifact = making.compiled(model, tmp_path / "out", tmp_path / "cache", *options)
    requests = [asked(12, 3, GREEDY), asked(10, 3, SAMPLED)]
    expected = making.eager(model, requests)
    assert len({token for sample in expected[1] for token in sample}) > 4
    planned = artifact.manifest["planned"]
    for found, held in eight.call(8, making.served, artifact.folder, requests):
        assert found == expected
        assert all(abs(held[each] - planned[each]) <= 0.05 * planned[each] for each in held)


def test_the_default_model_over_eight_ranks(tmp_path: Path, eight: Pool) -> None:
    model, requests = Path(DEFAULT_MODEL), [asked(12, 3, GREEDY), asked(10, 3, OPEN)]
    artifact = making.compiled(model, tmp_path / "out", tmp_path / "cache", *EIGHT)
    expected = making.eager(model, requests)
    for found, _ in eight.call(8, making.served, artifact.folder, requests):
        assert found == expected


def test_requests_share_a_bucket(tmp_path: Path) -> None:
    """Continuous batching over compiled graphs: nine samples through five rows."""
    model = making.checkpoint(tmp_path / "model")
    options = ["--context", "12", "--samples", "5", "--kernels", "torch", "--top-k", "5"]
    artifact = making.compiled(model, tmp_path / "out", tmp_path / "cache", *options)
    compiled = CompiledLM(artifact, Cpu().load(artifact, SINGLE))
    shape = CacheShape(G=1, r=5, S_ctx=12, S_dec=NEW - 1)
    prompt = asked(12, 1, SAMPLED).prompt
    requests = [Request(prompt[:k], n, NEW, SAMPLED, seed=k) for k, n in ((9, 6), (4, 3))]
    network = load(model, dtype="float32", kernels="torch")
    (a, b) = (Generator(each, shape).run_all(requests) for each in (compiled, network))
    assert [[s.tokens for s in x.samples] for x in a] == [[s.tokens for s in x.samples] for x in b]
