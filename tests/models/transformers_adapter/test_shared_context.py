"""`generate` of transformers' own models over a shared context: their eager tokens, fewer bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from models.transformers_adapter import SharedContextCache, share_context
from nki_kernels.errors import InputError
from tests.models.tiny import randomise

pytestmark = pytest.mark.null

VOCAB, LAYERS, G_HEADS, D = 60, 2, 2, 8
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": G_HEADS,
    "head_dim": D,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "mistral, window 6": ("Mistral", {"sliding_window": 6}),
    "gemma2, soft-cap, window 5": (
        "Gemma2",
        {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gpt-oss, sinks, window 5": (
        "GptOss",
        {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}
NEW = 12
# One prompt; and three of different lengths, padded at the left, one of a single token.
ONE = torch.tensor([[1, 14, 15, 9, 26, 5, 35, 8, 9, 7]])
THREE = torch.tensor([[1, 4, 8, 15, 16, 23], [0, 0, 1, 42, 5, 9], [0, 0, 0, 0, 0, 1]])


def mask(ids: torch.Tensor) -> torch.Tensor:
    return (ids != 0).long()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    name, changes = FAMILIES[request.param]
    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    made = getattr(transformers, f"{name}ForCausalLM")._from_config(
        config, attn_implementation="eager"
    )
    randomise(made.named_parameters())
    return made.eval()


def answers(model: Any, ids: torch.Tensor, shared: bool, **options: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    cache = share_context(model, ids, mask(ids)) if shared else None
    torch.manual_seed(7)
    return model.generate(
        input_ids=ids, attention_mask=mask(ids), past_key_values=cache, max_new_tokens=NEW,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("ids", [ONE, THREE], ids=["one prompt", "three, padded"])
def test_tokens_are_those_of_eager(model: Any, ids: torch.Tensor) -> None:
    for options in (
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 5, "temperature": 0.8, "top_p": 0.95},
    ):
        expected = answers(model, ids, shared=False, **options)
        assert torch.equal(answers(model, ids, shared=True, **options), expected)
        assert expected.shape[1] > ids.shape[1] + 6  # long enough to pass every window
        assert len({tuple(row[ids.shape[1] :]) for row in expected.tolist()}) > 1 or len(ids) == 1


@pytest.mark.parametrize("samples", [1, 6])
def test_a_prompt_is_stored_once(model: Any, samples: int) -> None:
    """m_c + b·m_d positions: the prompt without its last token, which each sample has itself."""
    cache = share_context(model, ONE)
    unit = 2 * LAYERS * G_HEADS * D * 4
    m_c = ONE.shape[1] - 1
    assert cache.nbytes() == unit * m_c
    model.generate(
        ONE, attention_mask=mask(ONE), past_key_values=cache, do_sample=True, max_new_tokens=NEW,
        num_return_sequences=samples, eos_token_id=None,
    )  # fmt: skip
    assert cache.nbytes() == unit * (m_c + samples * NEW)
    cache.reset()
    assert cache.nbytes() == unit * m_c


def test_a_context_can_be_used_again(model: Any) -> None:
    cache = share_context(model, ONE)

    def draw() -> torch.Tensor:
        torch.manual_seed(1)
        cache.reset()
        return model.generate(
            ONE, attention_mask=mask(ONE), past_key_values=cache, do_sample=True, max_new_tokens=4,
            num_return_sequences=3,
        )  # fmt: skip

    assert torch.equal(draw(), draw())


def test_the_setting_can_stay_on(model: Any) -> None:
    """Without a shared context it is transformers' own attention: logits, padding, other caches."""
    model.set_attn_implementation("eager")
    expected = model(THREE, attention_mask=mask(THREE)).logits
    plain = model.generate(THREE, attention_mask=mask(THREE), max_new_tokens=5, do_sample=False)
    model.set_attn_implementation("bifurcated")
    live = mask(THREE).bool()
    logits = model(THREE, attention_mask=mask(THREE)).logits
    torch.testing.assert_close(logits[live], expected[live], rtol=0, atol=2e-5)
    again = model.generate(THREE, attention_mask=mask(THREE), max_new_tokens=5, do_sample=False)
    assert torch.equal(again, plain)


@pytest.fixture(scope="module")
def llama() -> Any:
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    randomise(made.named_parameters())
    return made.eval()


def test_from_pretrained(llama: Any, tmp_path: Any) -> None:
    llama.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="bifurcated"
    )
    assert torch.equal(
        answers(loaded, ONE, shared=True, do_sample=False),
        answers(llama, ONE, shared=False, do_sample=False),
    )


def test_other_attention_would_miss_the_context(llama: Any) -> None:
    cache = share_context(llama, ONE)
    llama.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="'sdpa'; a SharedContextCache is read by 'bifurcated'"):
        llama.generate(ONE, attention_mask=mask(ONE), past_key_values=cache, max_new_tokens=2)


def test_another_mask_is_seen(llama: Any) -> None:
    cache = share_context(llama, THREE, mask(THREE))
    with pytest.raises(InputError, match=r"lets row 1 see 6 positions .* answer have 4"):
        llama.generate(
            THREE, attention_mask=torch.ones_like(THREE), past_key_values=cache, max_new_tokens=2
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search is not supported"),
    ],
)
def test_ways_of_decoding_that_are_refused(
    llama: Any, options: dict[str, Any], message: str
) -> None:
    cache = share_context(llama, ONE)
    with pytest.raises(InputError, match=message):
        llama.generate(
            ONE, attention_mask=mask(ONE), past_key_values=cache, max_new_tokens=4, **options
        )


def test_rows_must_share_the_prompts(llama: Any) -> None:
    cache = share_context(llama, THREE, mask(THREE))
    with pytest.raises(InputError, match="2 rows are decoded with the contexts of 3 prompts"):
        llama(torch.tensor([[3], [4]]), past_key_values=cache, use_cache=True)


@pytest.mark.parametrize(
    ("ids", "attention_mask", "message"),
    [
        (ONE, torch.ones(1, 3), r"attention_mask has shape \[1, 3\]"),
        (THREE, torch.ones(3, 6).tril(3), "no padding at the left"),
        (torch.tensor([1, 2]), None, r"shape \[2\]"),
        (torch.zeros(1, 0, dtype=torch.long), None, r"shape \[1, 0\]"),
    ],
)
def test_prompts_that_are_refused(
    llama: Any, ids: torch.Tensor, attention_mask: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        share_context(llama, ids, attention_mask)


def test_layers_that_are_refused(llama: Any) -> None:
    llama.config.layer_types = ["full_attention", "chunked_attention"]
    try:
        with pytest.raises(InputError, match="chunked_attention; supported: full_attention, sl"):
            share_context(llama, ONE)
    finally:
        del llama.config.layer_types


def test_it_is_a_cache(llama: Any) -> None:
    cache = share_context(llama, ONE)
    assert isinstance(cache, SharedContextCache)
    assert isinstance(cache, transformers.Cache)
    assert cache.get_seq_length() == ONE.shape[1] - 1
