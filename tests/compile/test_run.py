"""Compiled graphs against the network itself: tokens, buckets, memory, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compile.artifact import Artifact
from compile.run import CompiledLM
from models.causal_lm import CacheShape, load
from models.generation import Generator, Request, Sampling, generate
from models.parallel import SINGLE
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from tests.compile import serving
from tests.compile.serving import NEW
from tests.models.causal_lm import families
from tests.models.causal_lm.families import MODELS
from tests.models.parallel.ranks import Pool

pytestmark = [pytest.mark.null, pytest.mark.slow]

PROMPT = [5, 9, 2, 33, 17, 4, 8, 40, 21, 3, 11, 6]
SAMPLINGS = [Sampling(0), Sampling(0.9, top_k=8, top_p=0.95)]
ALWAYS = ("llama-3", "gemma-2", "mixtral")  # the others in the long ring


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Eight processes of one gloo group."""
    pool = Pool(tmp_path_factory.mktemp("eight"), world=8)
    yield pool
    pool.close()


def eager(checkpoint: Path, samples: int, samplings: list[Sampling]) -> list[list[list[int]]]:
    model = load(checkpoint, dtype=torch.float32, kernels="torch")
    made = (
        generate(model, PROMPT, samples=samples, max_new_tokens=NEW, sampling=each, seed=3)
        for each in samplings
    )
    return [[sample.tokens for sample in each.samples] for each in made]


@pytest.mark.parametrize(
    "name",
    [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.long) for n in MODELS],
)
def test_every_family_over_eight_ranks(tmp_path: Path, eight: Pool, name: str) -> None:
    checkpoint, folder = tmp_path / "model", tmp_path / "artefact"
    families.make(name, num_hidden_layers=1).save_pretrained(checkpoint)
    artifact = serving.made(checkpoint, folder, candidates=8, tp=8)
    expected = eager(checkpoint, 3, SAMPLINGS)
    assert len({token for sample in expected[1] for token in sample}) > 4
    planned = artifact.manifest["planned"]
    for found, nbytes in eight.call(8, serving.tokens, folder, PROMPT, 3, SAMPLINGS):
        assert found == expected
        for what in ("weights", "kv"):
            assert abs(nbytes[what] - planned[what]) <= 0.05 * planned[what], what


def test_the_default_model_over_eight_ranks(tmp_path: Path, eight: Pool) -> None:
    folder, samplings = tmp_path / "artefact", [Sampling(0), Sampling(1.0)]
    serving.made(Path(DEFAULT_MODEL), folder, tp=8)
    expected = eager(Path(DEFAULT_MODEL), 3, samplings)
    for found, _ in eight.call(8, serving.tokens, folder, PROMPT, 3, samplings):
        assert found == expected


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The default model's first layer, with two contexts and two numbers of samples."""
    folder = tmp_path_factory.mktemp("buckets")
    checkpoint = folder / "model"
    families.make("llama-3", num_hidden_layers=1).save_pretrained(checkpoint)
    sizes: dict[str, Any] = {"contexts": (6, 12), "samples": (2, 5)}
    return serving.made(checkpoint, folder / "artefact", candidates=8, **sizes)


@pytest.fixture(scope="module")
def compiled(buckets: Artifact) -> CompiledLM:
    """It, loaded and warmed up."""
    made = serving.served(buckets, SINGLE)
    assert len(made.warm_up()) == 6
    return made


@pytest.mark.parametrize(
    ("prompt", "samples", "shape"),
    [(6, 1, (2, 6)), (6, 2, (2, 6)), (6, 3, (5, 6)), (7, 2, (2, 12)), (12, 5, (5, 12))],
)
def test_the_smallest_bucket_that_holds_a_request(
    compiled: CompiledLM, buckets: Artifact, prompt: int, samples: int, shape: tuple[int, int]
) -> None:
    """One after the other over the same buffers, which hold what the one before left."""
    found = compiled.route(prompt, samples, NEW)
    assert found == CacheShape(G=1, r=shape[0], S_ctx=shape[1], S_dec=NEW - 1)
    model = load(buckets.folder.parent / "model", kernels="torch")
    for sampling in SAMPLINGS:
        asked: dict[str, Any] = {"max_new_tokens": NEW, "sampling": sampling, "seed": 3}
        made = Generator(compiled, found).run(PROMPT[:prompt], samples=samples, **asked)
        expected = generate(model, PROMPT[:prompt], samples=samples, **asked)
        assert [s.tokens for s in made.samples] == [s.tokens for s in expected.samples]


def test_requests_share_a_bucket(compiled: CompiledLM, buckets: Artifact) -> None:
    """Continuous batching over compiled graphs: nine samples through five rows."""
    model = load(buckets.folder.parent / "model", kernels="torch")
    shape = CacheShape(G=1, r=5, S_ctx=12, S_dec=NEW - 1)
    requests = [Request(PROMPT[:k], n, NEW, SAMPLINGS[1], seed=k) for k, n in ((9, 6), (4, 3))]
    (a, b) = (Generator(each, shape).run_all(requests) for each in (compiled, model))
    assert [[s.tokens for s in x.samples] for x in a] == [[s.tokens for s in x.samples] for x in b]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((13, 2, NEW), "13 prompt tokens, 2 samples and 6 new tokens; .* up to 12, 5 and 6"),
        ((6, 6, NEW), "6 samples"),
        ((6, 2, NEW + 1), "7 new tokens"),
    ],
)
def test_a_request_that_no_bucket_holds(
    compiled: CompiledLM, asked: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compiled.route(*asked)


def test_a_draw_that_no_graph_does(compiled: CompiledLM) -> None:
    compiled.check_sampling(Sampling(0.9, top_k=8))
    compiled.check_sampling(Sampling(0))
    for sampling, said in ((Sampling(0.9, top_k=9), "top-k 9"), (Sampling(0.9), "top-k off")):
        with pytest.raises(InputError, match=f"the request has {said}; .* at most 8 tokens"):
            compiled.check_sampling(sampling)
    with pytest.raises(InputError, match="no graph was compiled for CacheShape"):
        compiled.allocate(CacheShape(G=1, r=4, S_ctx=12, S_dec=5))


def test_ordinary_decoding_copies_the_context(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    families.make("llama-3", num_hidden_layers=1).save_pretrained(checkpoint)
    artifact = serving.made(checkpoint, tmp_path / "a", attention="ordinary", candidates=8)
    shape = CacheShape(**artifact.manifest["cache"])
    assert shape.G == 3 and shape.r == 1
    found, nbytes = serving.tokens(SINGLE, artifact.folder, PROMPT, 3, SAMPLINGS)
    assert found == eager(checkpoint, 3, SAMPLINGS)
    assert nbytes["kv"] == artifact.manifest["planned"]["kv"]


def test_nki_operators_stay_in_the_graph(tmp_path: Path) -> None:
    """And the simulator runs them."""
    checkpoint = tmp_path / "model"
    families.make("llama-3", num_hidden_layers=1).save_pretrained(checkpoint)
    artifact = serving.made(checkpoint, tmp_path / "a", candidates=8, kernels="nki")
    graphs = [*(artifact.folder / "graphs").glob("decode*.pt2")]
    program = torch.export.load(graphs[0])
    assert any("bifurcated_attention" in str(node.target) for node in program.graph.nodes)
    found, _ = serving.tokens(SINGLE, artifact.folder, PROMPT, 3, SAMPLINGS)
    assert found == eager(checkpoint, 3, SAMPLINGS)


def test_a_graph_holds_no_weight(buckets: Artifact) -> None:
    """The same graph serves any weights; the file is smaller than one of its matrices could be."""
    for path in (buckets.folder / "graphs").iterdir():
        program = torch.export.load(path)
        for name, weight in program.state_dict.items():
            assert weight.untyped_storage().nbytes() <= 8, name
