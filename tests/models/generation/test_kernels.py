"""The model over the NKI kernels on the simulator, beside the torch reference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.causal_lm import CacheShape, CausalLM, load
from models.generation import Generation, Generator, Request, Sampling, generate
from nki_kernels.errors import InputError
from tests.models import tiny
from tests.models.causal_lm import families

pytestmark = pytest.mark.sim

PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]
WARM = Sampling(temperature=0.9, top_p=0.95)


def network(kernels: str, target: str = "trn1", dtype: torch.dtype = torch.float32) -> CausalLM:
    model = CausalLM(tiny.CONFIG, dtype=dtype, kernels=kernels, target=target)
    tiny.randomise(model.named_parameters())
    return model


def draw(model: CausalLM, samples: int, **options: Any) -> Generation:
    return generate(
        model, PROMPT, samples=samples, max_new_tokens=5, sampling=WARM, seed=3, **options
    )


def tokens(result: Generation) -> list[list[int]]:
    return [sample.tokens for sample in result.samples]


def logprobs(result: Generation) -> list[float]:
    return [logprob for sample in result.samples for logprob in sample.logprobs]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterable[list[str]]:
    """Targets of the kernels that were simulated."""
    from nki_kernels import launch

    calls: list[str] = []
    simulate = launch.simulate

    def counting(kernel: Any, target: str, *args: Any, **options: Any) -> Any:
        calls.append(target)
        return simulate(kernel, target, *args, **options)

    monkeypatch.setattr(launch, "simulate", counting)
    return calls


@pytest.mark.parametrize("attention", ["bifurcated", "ordinary"])
@pytest.mark.parametrize("samples", [1, 7, 64])
def test_same_tokens(counted: list[str], samples: int, attention: str) -> None:
    reference = draw(network("torch"), samples, attention=attention)
    assert not counted
    simulated = draw(network("nki"), samples, attention=attention)
    assert counted == ["trn1"] * (tiny.CONFIG.layers * 5)  # prefill and four steps
    assert tokens(simulated) == tokens(reference)
    assert logprobs(simulated) == pytest.approx(logprobs(reference), abs=1e-5)


def test_prompts_side_by_side(counted: list[str]) -> None:
    """Two prompts in two groups of two rows, rows refilled, a context copied."""
    requests = [
        Request(PROMPT, samples=5, max_new_tokens=4, sampling=WARM, seed=3),
        Request([8, 9, 7], samples=3, max_new_tokens=3, sampling=WARM, seed=1),
    ]
    drawn = {}
    for kernels in ("torch", "nki"):
        generator = Generator(network(kernels), CacheShape(2, 2, 16, 4))
        answers = generator.run_all(requests)
        drawn[kernels] = [sample.tokens for each in answers for sample in each.samples]
    assert generator.occupancy.prefills == 2
    assert generator.occupancy.copies == 1
    assert len(counted) == tiny.CONFIG.layers * (2 + generator.occupancy.steps)
    assert drawn["nki"] == drawn["torch"]


@pytest.mark.parametrize(
    ("name", "changes", "options"),
    [
        ("mistral", {}, {}),
        ("gemma-2", {}, {}),
        ("gemma-2", {"head_dim": 256}, {}),
        ("qwen2-window", {}, {"kv_dtype": "fp8"}),
        ("gemma-2", {"head_dim": 256}, {"kv_dtype": "fp8", "target": "trn2"}),
    ],
    ids=["window", "soft-cap", "wide heads", "fp8 caches", "all of it, on trn2"],
)
def test_greedy_tokens_of_families(
    counted: list[str],
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """A prompt longer than the window, answers that leave it behind; the torch form's tokens."""
    families.make(name, **changes).save_pretrained(tmp_path)
    prompt, new = [*PROMPT, *PROMPT[::-1]], 10
    drawn = {}
    for kernels in ("torch", "nki"):
        model = load(tmp_path, kernels=kernels, **options)
        drawn[kernels] = generate(
            model, prompt, samples=3, max_new_tokens=new, sampling=Sampling(temperature=0)
        )
    assert len(counted) == 3 * new  # layers; a prefill and nine steps
    assert tokens(drawn["nki"]) == tokens(drawn["torch"])
    assert logprobs(drawn["nki"]) == pytest.approx(logprobs(drawn["torch"]), abs=1e-4)


def test_target_is_handed_on(counted: list[str]) -> None:
    draw(network("nki", target="trn2"), 2)
    assert set(counted) == {"trn2"}


def steps(model: CausalLM) -> list[torch.Tensor]:
    """Logits of a prefill, and of a decode step of three samples, one of them a free row."""
    model.allocate(CacheShape(G=1, r=3, S_ctx=16, S_dec=4))
    context_len, group = tiny.int32([len(PROMPT)]), tiny.int32([0])
    padded = tiny.int32([PROMPT + [0] * (16 - len(PROMPT))])
    first = model(padded, context_len, tiny.int32([[0, 0, 0]]), group)
    new, suffix_len = tiny.int32([[[4], [7], [0]]]), tiny.int32([[1, 1, 0]])
    return [first, model(new, context_len, suffix_len, group)[:, :2]]


def test_bfloat16() -> None:
    wide = steps(network("torch"))
    reference = steps(network("torch", dtype=torch.bfloat16))
    simulated = steps(network("nki", dtype=torch.bfloat16))
    for ours, theirs, exact in zip(simulated, reference, wide, strict=True):
        # no farther from fp32 than the reference's own bf16 rounding, give or take its size
        assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max()
        assert not torch.equal(ours, exact)


def test_exported_graphs_run_the_kernels(counted: list[str]) -> None:
    """A captured graph holds the operator, and the operator still chooses the kernel."""
    model = network("nki")
    expected = steps(model)
    counted.clear()
    context_len, group = tiny.int32([len(PROMPT)]), tiny.int32([0])
    inputs = (tiny.int32([[[4], [7], [0]]]), context_len, tiny.int32([[1, 1, 0]]), group)
    graph = torch.export.export(model, inputs).run_decompositions({}).module()
    assert not counted
    assert torch.equal(graph(*inputs)[:, :2], expected[1])
    assert counted == ["trn1"] * tiny.CONFIG.layers


@pytest.mark.parametrize(
    ("options", "message"), [({"kernels": "cuda"}, "'cuda'"), ({"target": "trn9"}, "'trn9'")]
)
def test_unknown_kernels_and_target(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(network(**({"kernels": "nki"} | options)), 1)
