"""The project's network behind `generate`: transformers' arguments, tokens and padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from models.generation import PromptLookup, Speculation
from models.pretrained import DEFAULT_MODEL
from models.transformers_adapter import BifurcatedForCausalLM
from nki_kernels.errors import InputError
from tests.models.tiny import randomise
from tests.models.transformers_adapter.test_shared_context import ONE, SIZES, THREE, mask

pytestmark = pytest.mark.null


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BifurcatedForCausalLM]:
    """The same checkpoint in transformers and here."""
    directory: Path = tmp_path_factory.mktemp("llama")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    randomise(theirs.named_parameters())
    theirs.eval().requires_grad_(False).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((DEFAULT_MODEL / name).read_bytes())
    return theirs, BifurcatedForCausalLM.from_pretrained(directory)


@pytest.mark.parametrize("ids", [ONE, THREE], ids=["one prompt", "three, padded"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 20},
        {"max_length": 17},
        {"max_new_tokens": 20, "eos_token_id": [2, 7, 11, 13], "pad_token_id": 59},
        {"max_new_tokens": 9, "do_sample": True, "top_k": 1},
        {"max_new_tokens": 5, "eos_token_id": 59, "num_beams": 1, "use_cache": True},
    ],
    ids=str,
)
def test_greedy_equals_transformers(pair: Any, ids: torch.Tensor, options: dict) -> None:
    theirs, ours = pair
    expected = theirs.generate(ids, attention_mask=mask(ids), **options)
    assert torch.equal(ours.generate(ids, attention_mask=mask(ids), **options), expected)
    assert expected.shape[1] > ids.shape[1]


def test_a_generation_config_as_transformers_takes_it(pair: Any) -> None:
    theirs, ours = pair
    config = transformers.GenerationConfig(max_new_tokens=7, pad_token_id=0, eos_token_id=2)
    expected = theirs.generate(ONE, generation_config=config, attention_mask=mask(ONE))
    assert torch.equal(ours.generate(ONE, config), expected)


def test_samples(pair: Any) -> None:
    _, ours = pair
    options: dict[str, Any] = {
        "attention_mask": mask(THREE), "do_sample": True, "max_new_tokens": 8, "eos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(3)
    first = ours.generate(input_ids=THREE, num_return_sequences=4, **options)
    assert first.shape == (12, THREE.shape[1] + 8)
    assert torch.equal(first[:, : THREE.shape[1]], THREE.repeat_interleave(4, dim=0))
    assert len({tuple(row) for row in first.tolist()}) > 8
    torch.manual_seed(3)
    assert torch.equal(ours.generate(THREE, num_return_sequences=4, **options), first)
    assert not torch.equal(ours.generate(THREE, num_return_sequences=4, **options), first)
    drafted = ours.generate(
        THREE, num_return_sequences=4, **options, seed=5, speculation=Speculation(PromptLookup(), 3)
    )
    assert torch.equal(drafted, ours.generate(THREE, num_return_sequences=4, **options, seed=5))


def test_sampled_tokens_have_transformers_distribution(pair: Any) -> None:
    """First tokens of 4,000 samples beside the probabilities of transformers' own logits."""
    theirs, ours = pair
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 1, "temperature": 1.5}
    drawn = ours.generate(ONE, num_return_sequences=4000, seed=1, **options)[:, -1]
    p = (theirs(ONE).logits[0, -1] / 1.5).double()
    p[p < p.topk(50).values[-1]] = -torch.inf  # top_k is 50 unless told otherwise, as in theirs
    p = p.softmax(0)
    counts = drawn.bincount(minlength=len(p)).double()
    assert not counts[p == 0].any()
    expected = 4000 * p
    rare = expected < 5
    cells = [
        (counts[~rare], expected[~rare]),
        (counts[rare].sum()[None], expected[rare].sum()[None]),
    ]
    chi2 = sum(float(((n - e).square() / e.clamp(min=1e-9)).sum()) for n, e in cells)
    degrees = int((~rare).sum())
    assert chi2 < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams not supported; what has an effect: do_sample, eos_token_id"),
        ({"repetition_penalty": 1.2, "min_p": 0.1}, "min_p, repetition_penalty not supported"),
        ({"logits_processor": [object()]}, "logits_processor not supported"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate not supported"),
        ({"assistant_model": object()}, "assistant_model not supported"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids not supported"),
        ({"min_new_tokens": 3}, "min_new_tokens not supported"),
        ({"num_return_sequences": 2}, "num_return_sequences`? "),
        ({"do_sample": True, "temperature": -1.0}, r"temperature is -1\.0"),
        ({"do_sample": True, "top_p": 0.0}, r"top_p is 0\.0"),
        ({"max_length": 4}, "max_length is 4 and the prompts have 10 tokens already"),
        ({"max_new_tokens": 1000}, "takes 128 together"),
        ({"attention_mask": torch.ones(1, 9)}, r"must have the prompts' shape \[1, 10\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_refused(pair: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pair[1].generate(ONE, **options)


def test_no_prompt(pair: Any) -> None:
    with pytest.raises(InputError, match="input_ids is missing"):
        pair[1].generate(max_new_tokens=3)
