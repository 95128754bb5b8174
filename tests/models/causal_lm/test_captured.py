"""Decode steps replayed from a CUDA graph, where there is a GPU, against the same steps run."""

from __future__ import annotations

import pytest
import torch

from models.causal_lm import CacheShape, CausalLM, load
from models.causal_lm.captured import CapturedLM
from models.generation import Sampling, generate
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError

PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.mark.null
def test_a_model_on_the_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="needs it on a cuda device"):
        CapturedLM(load(DEFAULT_MODEL))


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, top_k=20, top_p=0.95)])
def test_the_same_tokens_as_without_capture(sampling: Sampling) -> None:
    model: CausalLM = load(DEFAULT_MODEL, device="cuda")
    captured = CapturedLM(model)
    for samples in (3, 5):  # a second cache: graphs over the first one must not be used
        run, replayed = (
            generate(m, PROMPT, samples=samples, max_new_tokens=12, sampling=sampling, seed=3)
            for m in (model, captured)
        )
        assert [s.tokens for s in replayed.samples] == [s.tokens for s in run.samples]


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_fused_step_gives_the_same_logits() -> None:
    model: CausalLM = load(DEFAULT_MODEL, dtype=torch.float32, device="cuda")
    fused = CapturedLM(model, fuse=True)
    fused.allocate(CacheShape(G=1, r=4, S_ctx=32, S_dec=8))
    numbers = torch.tensor([7], dtype=torch.int32), torch.tensor([[1] * 4], dtype=torch.int32)
    inputs = [x.cuda() for x in (torch.full((1, 4, 1), 5, dtype=torch.int32), *numbers)]
    inputs.append(torch.zeros(1, dtype=torch.int32, device="cuda"))
    expected = model(*inputs)
    torch.testing.assert_close(fused(*inputs), expected, rtol=0, atol=1e-5 * float(expected.max()))
