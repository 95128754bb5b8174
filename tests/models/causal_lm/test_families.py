"""Each family against transformers: every logit, greedy answers, and errors that must be caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.causal_lm import CausalLM, checkpoint, load, load_config, network, rope, storage
from models.causal_lm.families import FAMILIES
from models.generation import Sampling, generate
from nki_kernels.errors import InputError
from tests.models.causal_lm import families
from tests.models.causal_lm.driver import Script, check_against, check_poison, sequences
from tests.models.causal_lm.families import MODELS

pytestmark = pytest.mark.null

# The first prompt is three windows long; after 16 single steps a window lies wholly in the suffix.
SCRIPT = Script(prompt_lengths=(21, 9), steps=(1,) * 16 + (3,))

Made = Callable[[str], tuple[Any, Path]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Makes and saves each model once: transformers' own, and its directory."""
    kept: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in kept:
            theirs = families.make(name)
            directory = tmp_path_factory.mktemp(name)
            theirs.save_pretrained(directory)
            kept[name] = theirs, directory
        return kept[name]

    return make


def rebuilt(model: CausalLM, **changes: Any) -> CausalLM:
    """The same weights under a config with `changes`; those of `rope` are of its fields."""
    if isinstance(changes.get("rope"), dict):
        changes["rope"] = replace(model.config.rope, **changes["rope"])
    other = CausalLM(replace(model.config, **changes))
    other.load_state_dict(model.state_dict(), strict=False)
    return other


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(made: Made, name: str) -> None:
    theirs, directory = made(name)
    check_against(theirs, load(directory), SCRIPT)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_other_weights(name: str, seed: int, tmp_path: Path) -> None:
    theirs = families.make(name, seed)
    theirs.save_pretrained(tmp_path)
    check_against(theirs, load(tmp_path), SCRIPT)


@pytest.mark.parametrize("name", ["mistral", "mixtral", "gemma-2"])
def test_dead_slots_do_not_change_a_bit(made: Made, name: str) -> None:
    check_poison(load(made(name)[1]), SCRIPT)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_transformers(made: Made, name: str) -> None:
    theirs, directory = made(name)
    ours = load(directory)
    prompts, _ = sequences(SCRIPT, ours.config.vocab_size)
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        expected = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=64, do_sample=False
        )
        answers = generate(
            ours, prompt, samples=2, max_new_tokens=64, sampling=Sampling(temperature=0)
        )
        for sample in answers.samples:
            assert sample.tokens == expected[0, len(prompt) :].tolist()
            assert len(set(sample.tokens)) > 4  # not one token over and over


FAULTS = [(name, fault) for name, model in MODELS.items() for fault in model.faults]
MISREAD = [(name, fault) for name, model in MODELS.items() for fault in model.misread]


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=[": ".join(pair) for pair in FAULTS])
def test_a_wrong_config_is_seen(made: Made, name: str, fault: str) -> None:
    """Errors as they would stand in the reading of a config, or in what the network makes of it."""
    theirs, directory = made(name)
    wrong = rebuilt(load(directory), **MODELS[name].faults[fault])
    with pytest.raises(AssertionError, match="not close"):
        check_against(theirs, wrong, SCRIPT)


@pytest.mark.parametrize(("name", "fault"), MISREAD, ids=[": ".join(pair) for pair in MISREAD])
def test_a_wrong_table_is_seen(
    made: Made, name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, directory = made(name)
    family = FAMILIES[load_config(directory).family]
    wrong = replace(family, **MODELS[name].misread[fault])
    monkeypatch.setattr(checkpoint, "FAMILIES", {family.model_type: wrong})
    ours = load(directory)
    with pytest.raises(AssertionError, match="not close"):
        check_against(theirs, ours, SCRIPT)


def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The other convention: element 2i turns with element 2i + 1."""
    low, high = x[..., 0::2], x[..., 1::2]
    return torch.stack((low * cos - high * sin, high * cos + low * sin), dim=-1).flatten(-2)


def backwards(scores: torch.Tensor, chosen: int) -> torch.Tensor:
    """Experts chosen with the last one first among equals."""
    return choose_experts(scores.flip(-1), chosen).flip(-1)


def not_scaled(scores: torch.Tensor, chosen: int) -> torch.Tensor:
    """Shares that do not sum to 1."""
    return torch.where(choose_experts(scores, chosen) > 0, scores, 0.0)


choose_experts = network.choose_experts


@pytest.mark.parametrize(
    ("name", "module", "function", "wrong"),
    [
        ("llama-3", rope, "rotate", interleaved),
        ("mixtral", network, "choose_experts", not_scaled),
        ("tied", network, "choose_experts", backwards),
    ],
)
def test_a_wrong_function_is_seen(
    made: Made,
    name: str,
    module: Any,
    function: str,
    wrong: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    theirs, directory = made(name) if name != "tied" else tied(tmp_path, monkeypatch)
    monkeypatch.setattr(module, function, wrong)
    with pytest.raises(AssertionError, match="not close"):
        check_against(theirs, load(directory), SCRIPT)


def tied(directory: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A Mixtral whose router scores tie: all of them in layer 0, the last three in layer 1.

    transformers takes whatever torch.topk puts first among equals; here it gets one with a rule.
    """
    monkeypatch.setattr(torch, "topk", families.stable_topk)
    theirs = families.make("mixtral")
    routers = [w for n, w in theirs.named_parameters() if n.endswith("gate.weight")]
    assert [tuple(weight.shape) for weight in routers] == [(5, 48)] * 3
    routers[0].data.zero_()
    routers[1].data[2:] = 0.0
    theirs.save_pretrained(directory)
    return theirs, directory


def test_tied_router_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, directory = tied(tmp_path, monkeypatch)
    check_against(theirs, load(directory), SCRIPT)


@pytest.mark.parametrize(
    ("scores", "chosen", "expected"),
    [
        ([0.1, 0.4, 0.3, 0.2], 2, [0, 4 / 7, 3 / 7, 0]),
        ([0.25, 0.25, 0.25, 0.25], 2, [0.5, 0.5, 0, 0]),
        ([0.1, 0.3, 0.3, 0.3], 2, [0, 0.5, 0.5, 0]),
        ([0.3, 0.1, 0.3, 0.3], 1, [1, 0, 0, 0]),
        ([0.4, 0.2, 0.2, 0.2], 3, [0.5, 0.25, 0.25, 0]),
        ([0.1, 0.4, 0.3, 0.2], 4, [0.1, 0.4, 0.3, 0.2]),
    ],
)
def test_choice_of_experts(scores: list[float], chosen: int, expected: list[float]) -> None:
    shares = choose_experts(torch.tensor([scores, scores]), chosen)
    torch.testing.assert_close(shares, torch.tensor([expected, expected], dtype=torch.float32))


def test_experts_chosen_are_those_of_topk_where_nothing_ties() -> None:
    scores = torch.rand(200, 8, generator=torch.Generator().manual_seed(0)).softmax(-1)
    values, indices = scores.topk(3)
    expected = torch.zeros_like(scores).scatter(1, indices, values / values.sum(-1, keepdim=True))
    torch.testing.assert_close(choose_experts(scores, 3), expected)


FUSED = "model.layers.1.self_attn.qkv_proj.weight"
EXPERT = "model.layers.2.block_sparse_moe.experts.4.w2.weight"


@pytest.mark.parametrize(
    ("name", "remove", "add", "message"),
    [
        ("phi-3", [FUSED], {}, rf"1 missing \({FUSED}\)"),
        (
            "phi-3",
            [],
            {FUSED: (95, 48)},
            rf"1 of another shape \({FUSED} \[95, 48\] instead of \[96, 48\]\)",
        ),
        (
            "phi-3",
            [],
            {"model.layers.0.mlp.up_proj.weight": (40, 48)},
            r"1 unexpected \(model.layers.0.mlp.up_proj.weight\)",
        ),
        ("mixtral", [EXPERT], {}, rf"1 missing \({EXPERT}\)"),
        (
            "mixtral",
            [],
            {"model.layers.0.block_sparse_moe.experts.5.w1.weight": (40, 48)},
            r"1 unexpected \(model.layers.0.block_sparse_moe.experts.5.w1.weight\)",
        ),
        (
            "gemma-2",
            ["model.layers.1.pre_feedforward_layernorm.weight"],
            {},
            r"1 missing \(model.layers.1.pre_feedforward_layernorm.weight\)",
        ),
        (
            "mistral",
            [],
            {"model.layers.0.self_attn.q_proj.bias": (64,)},
            r"1 unexpected \(model.layers.0.self_attn.q_proj.bias\)",
        ),
        (
            "qwen2",
            ["model.layers.0.self_attn.k_proj.bias"],
            {},
            r"1 missing \(model.layers.0.self_attn.k_proj.bias\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(
    made: Made,
    tmp_path: Path,
    name: str,
    remove: list[str],
    add: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    directory = shutil.copytree(made(name)[1], tmp_path / "checkpoint")
    weights = load_file(directory / "model.safetensors")
    for tensor in remove:
        del weights[tensor]
    save_file(
        weights | {tensor: torch.zeros(shape) for tensor, shape in add.items()},
        directory / "model.safetensors",
    )
    with pytest.raises(InputError, match=message):
        load(directory)


def test_heads_larger_than_the_kernels_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run on the torch path; the kernels say so before weights are read."""
    theirs = families.make("gemma-2", head_dim=272)
    theirs.save_pretrained(tmp_path)
    check_against(theirs, load(tmp_path), SCRIPT)
    monkeypatch.setattr(storage.Stored, "read", None)
    with pytest.raises(InputError, match="d = 272; at most 256 is supported by the NKI kernels"):
        load(tmp_path, kernels="nki")


def test_gemma_in_bfloat16_rounds_the_scale_of_embeddings(made: Made) -> None:
    """As transformers does: sqrt(48) is 6.928, in bfloat16 6.9375."""
    theirs, directory = made("gemma-2")
    ours = load(directory, dtype="bfloat16")
    assert ours.embedding_multiplier == 6.9375
    tokens = torch.arange(8)
    narrow = theirs.model.embed_tokens.weight.detach().to(torch.bfloat16)
    expected = narrow[tokens] * torch.tensor(48**0.5, dtype=torch.bfloat16)
    scaled = network.scaled(ours.embed_tokens(tokens), ours.embedding_multiplier)
    assert torch.equal(scaled, expected)
