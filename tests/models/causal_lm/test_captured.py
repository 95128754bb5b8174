"""Decode steps replayed from a CUDA graph, where there is a GPU, against the same steps run."""

from __future__ import annotations

import pytest
import torch

from models.causal_lm import CausalLM, load
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
@pytest.mark.parametrize("fuse", [False, True])
def test_the_same_tokens_as_without_capture(fuse: bool) -> None:
    model: CausalLM = load(DEFAULT_MODEL, device="cuda")
    captured = CapturedLM(model, fuse=fuse)
    for samples in (3, 5):  # a second cache: graphs over the first one must not be used
        run, replayed = (
            generate(m, PROMPT, samples=samples, max_new_tokens=12, sampling=Sampling(), seed=3)
            for m in (model, captured)
        )
        assert [s.tokens for s in replayed.samples] == [s.tokens for s in run.samples]
