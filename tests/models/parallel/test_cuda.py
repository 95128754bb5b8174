"""Networks over two GPUs and NCCL, where there are two, equal the one on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from models.causal_lm import load
from models.generation import Sampling, generate
from models.pretrained import DEFAULT_MODEL
from tests.models.causal_lm.driver import run, sequences
from tests.models.causal_lm.families import MODELS
from tests.models.parallel import work
from tests.models.parallel.ranks import Pool
from tests.models.parallel.test_networks import SCRIPT, TOLERANCE, Case, error
from tests.models.parallel.test_networks import case as case

pytestmark = [
    pytest.mark.device,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]


@pytest.fixture(scope="session")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two processes of one NCCL group, a GPU each."""
    made = Pool(tmp_path_factory.mktemp("gpus"), world=2, backend="nccl")
    yield made
    made.close()


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_one_rank(gpus: Pool, case: Callable[[str], Case], name: str) -> None:
    config, weights, expected = case(name)
    for kv_split in ("positions", "replicate") if config.g < 2 else ("positions",):
        results = gpus.call(
            2, work.logits, config, weights, SCRIPT, kv_split, None, "torch", "cuda"
        )
        for *got, _ in results:
            assert error(got, expected) < TOLERANCE
            assert error(got, results[0][:2]) == 0


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(0.9, top_p=0.95)], ids=["0", "0.9"])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_equal_those_of_one_rank(
    gpus: Pool, case: Callable[[str], Case], name: str, sampling: Sampling
) -> None:
    config, weights, _ = case(name)
    prompt = sequences(SCRIPT, config.vocab_size)[0][0]
    alone = work.sharded(work.SINGLE, config, weights)
    made = generate(alone, prompt, samples=5, max_new_tokens=24, sampling=sampling, seed=3)
    expected = [sample.tokens for sample in made.samples]
    assert (
        gpus.call(2, work.tokens, config, weights, prompt, sampling, 24, "cuda") == [expected] * 2
    )


def test_the_default_model(gpus: Pool) -> None:
    model = load(DEFAULT_MODEL, dtype=torch.float32)
    first, late = run(model, SCRIPT)
    weights = dict(model.state_dict())
    for *got, _ in gpus.call(
        2, work.logits, model.config, weights, SCRIPT, "positions", None, "auto", "cuda"
    ):
        assert error(got, (first, late)) < TOLERANCE
