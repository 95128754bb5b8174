"""The rules that a Neuron graph needs, checked on what torch.export captures."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM, RopeConfig, cache
from models.causal_lm.decode_step import DecodeStep
from tests.models import tiny
from tests.models.tiny import int32

pytestmark = pytest.mark.null

SHAPE = CacheShape(G=2, r=3, S_ctx=8, S_dec=4)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Settings = tuple[Tensor, Tensor, Tensor, Tensor]

CONTEXT_LEN = [5, 8]
PREFILLS: list[Inputs] = [
    (int32([[7, 3, 9, 1, 4, 0, 0, 0]]), int32(CONTEXT_LEN), int32([[0] * 3] * 2), int32([0])),
    (int32([[2, 8, 6, 5, 5, 1, 3, 9]]), int32(CONTEXT_LEN), int32([[0] * 3] * 2), int32([1])),
]
DECODES: list[Inputs] = [
    (
        int32([[[3 + t], [5], [7]], [[11], [13 + t], [17]]]),
        int32(CONTEXT_LEN),
        int32([[t, t, 0], [t, 1, t]]),
        int32([0]),
    )
    for t in (1, 2, 3)
]


# Every option of the network that a family other than Llama has, at once.
EVERYTHING: dict[str, Any] = {
    "qkv_bias": True,
    "qk_norm": True,
    "output_norms": True,
    "norm_plus_one": True,
    "activation": "gelu_pytorch_tanh",
    "windows": (4, None),
    "attention_softcap": 5.0,
    "final_softcap": 9.0,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logit_divisor": 2.0,
    "experts": 5,
    "experts_per_token": 2,
    "rope": RopeConfig("default", 10000.0, fraction=0.5),
}


@pytest.fixture(scope="module", params=[{}, EVERYTHING], ids=["llama", "everything"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def model(options: dict[str, Any]) -> CausalLM:
    network = tiny.model(**options)
    network.allocate(SHAPE)
    return network


@pytest.fixture(scope="module")
def graphs(options: dict[str, Any]) -> dict[str, torch.export.ExportedProgram]:
    model = tiny.model(**options)
    model.allocate(SHAPE)
    inputs = {"prefill": PREFILLS[0], "decode": DECODES[0]}
    return {
        phase: torch.export.export(copy.deepcopy(model), example).run_decompositions({})
        for phase, example in inputs.items()
    }


def test_graphs_equal_eager(
    model: CausalLM, graphs: dict[str, torch.export.ExportedProgram]
) -> None:
    prefill, decode = graphs["prefill"].module(), graphs["decode"].module()
    for inputs in PREFILLS:
        torch.testing.assert_close(prefill(*inputs), model(*inputs), rtol=0, atol=1e-5)
    written = dict(prefill.named_buffers())
    for name, buffer in decode.named_buffers():
        buffer.copy_(written[name])
    for inputs in DECODES:
        torch.testing.assert_close(decode(*inputs), model(*inputs), rtol=0, atol=1e-5)
    eager = dict(model.named_buffers())
    for name, buffer in decode.named_buffers():
        torch.testing.assert_close(buffer, eager[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
class TestRules:
    """ModelBuilder v2's rules for a traceable module."""

    def test_every_state_is_rebound(self, graphs: dict, phase: str, model: CausalLM) -> None:
        mutated = set(graphs[phase].graph_signature.buffers_to_mutate.values())
        states = {name for name, _ in model.named_buffers() if ".cache." in name}
        assert len(states) == 4 * tiny.CONFIG.layers
        assert mutated == states

    def test_states_are_no_part_of_a_checkpoint(
        self, graphs: dict, phase: str, model: CausalLM
    ) -> None:
        assert not [name for name in model.state_dict() if "cache" in name or "rope" in name]

    def test_no_write_in_place(self, graphs: dict, phase: str) -> None:
        for name in operators(graphs[phase]):
            assert not name.removesuffix(".default").endswith("_"), name

    def test_inputs_are_int32_and_named_alike(self, graphs: dict, phase: str) -> None:
        signature = graphs[phase].graph_signature
        assert signature.user_inputs == ("tokens", "context_len", "suffix_len", "group")
        for node in graphs[phase].graph.nodes:
            if node.name in signature.user_inputs:
                assert node.meta["val"].dtype == torch.int32

    def test_attention_is_one_node_a_layer(self, graphs: dict, phase: str) -> None:
        expected = {"prefill": "bifork.flash_attention", "decode": "bifork.bifurcated_attention"}
        own = [name for name in operators(graphs[phase]) if name.startswith("bifork.")]
        assert len(own) == tiny.CONFIG.layers
        assert all(name.startswith(expected[phase]) for name in own)

    def test_no_trigonometry_sort_or_loop(self, graphs: dict, phase: str) -> None:
        forbidden = ("cos", "sin", "pow.Scalar", "sort", "topk", "while", "masked_fill")
        for name in operators(graphs[phase]):
            assert not name.startswith(tuple(f"aten.{word}" for word in forbidden)), name


UNREAD: Settings = (
    torch.zeros(2, 3, 1),
    torch.ones(2, 3),
    torch.ones(2, 3, dtype=torch.int32),
    torch.ones(2, 3),
)
DRAWN: Settings = (
    torch.tensor([[0.1, 0.9, 0.5], [0.0, 0.7, 0.3]]).unsqueeze(-1),
    torch.tensor([[0.0, 1.5, 0.7], [1.0, 1.0, 2.0]]),
    int32([[1, 4, 2], [4, 3, 4]]),
    torch.tensor([[1.0, 0.9, 1.0], [0.5, 1.0, 0.8]]),
)


@pytest.fixture(scope="module")
def drawing(options: dict[str, Any]) -> dict[str, torch.export.ExportedProgram]:
    """The graphs of a network that draws its tokens itself."""
    model = tiny.model(**options)
    model.allocate(SHAPE)
    inputs = {"prefill": (*PREFILLS[0], *UNREAD), "decode": (*DECODES[0], *DRAWN)}
    return {
        phase: torch.export.export(DecodeStep(copy.deepcopy(model), 4), example).run_decompositions(
            {}
        )
        for phase, example in inputs.items()
    }


def test_drawing_graphs_equal_eager(
    model: CausalLM, drawing: dict[str, torch.export.ExportedProgram]
) -> None:
    step = DecodeStep(model, 4)
    prefill, decode = drawing["prefill"].module(), drawing["decode"].module()
    for inputs in PREFILLS:
        expected = step(*inputs, *UNREAD)
        torch.testing.assert_close(prefill(*inputs, *UNREAD), expected, rtol=0, atol=1e-5)
    written = dict(prefill.named_buffers())
    for name, buffer in decode.named_buffers():
        buffer.copy_(written[name])
    for inputs in DECODES:
        tokens, logprobs = decode(*inputs, *DRAWN)
        expected, chances = step(*inputs, *DRAWN)
        assert torch.equal(tokens, expected)
        torch.testing.assert_close(logprobs, chances, rtol=0, atol=1e-5)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
class TestRulesOfDrawing:
    """The same rules where the graph draws: no sort, and only rows go in and out."""

    def test_states_and_inputs(self, drawing: dict, phase: str) -> None:
        check_rules(drawing[phase])
        signature = drawing[phase].graph_signature
        assert len(signature.buffers_to_mutate) == 4 * tiny.CONFIG.layers
        assert signature.user_inputs == (
            *("tokens", "context_len", "suffix_len", "group"),
            *("u", "temperature", "top_k", "top_p"),
        )

    def test_edges(self, drawing: dict, phase: str) -> None:
        """Tokens and log-probabilities of b rows, 8 bytes each; no logits leave a decode graph."""
        graph = drawing[phase]
        outputs = set(graph.graph_signature.user_outputs)
        shapes = {
            node.meta["val"].dtype: tuple(node.meta["val"].shape)
            for node in graph.graph.nodes
            if node.name in outputs
        }
        if phase == "decode":
            assert shapes == {torch.int32: (2, 3, 1), torch.float32: (2, 3, 1)}
        else:
            assert shapes == {torch.float32: (1, tiny.CONFIG.vocab_size)}


@pytest.mark.parametrize("module", [CausalLM, DecodeStep])
def test_signature_lists_tensors(module: type) -> None:
    """Named one by one, none of them a flag; a default could only be None."""
    _, *parameters = inspect.signature(module.forward).parameters.values()
    for each in parameters:
        assert each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert each.annotation == "Tensor"
        assert each.default is inspect.Parameter.empty


def check_rules(graph: torch.export.ExportedProgram) -> None:
    """Fails where a graph holds what no Neuron graph may.

    That is a sort, a loop or branch on data, trigonometry, an integer top-k, a number wider than 32
    bits at an edge, or infinity.
    """
    forbidden = (
        "cos",
        "sin",
        "pow.Scalar",
        "sort",
        "while",
        "cond",
        "masked_fill",
        "_local_scalar",
    )
    users = set(graph.graph_signature.user_inputs) | set(graph.graph_signature.user_outputs)
    for node in graph.graph.nodes:
        name = str(node.target).removeprefix("aten.").removesuffix(".default")
        if node.op == "call_function":
            assert not name.startswith(forbidden), name
            assert not name.endswith("_"), name
            assert all(abs(x) < float("inf") for x in node.args if isinstance(x, float)), node
        if name == "topk":
            assert node.args[0].meta["val"].dtype == torch.float32
        if node.name in users:
            assert node.meta["val"].dtype in (torch.int32, torch.float32)


def operators(graph: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_out_of_place_equals_in_place(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that Neuron's tracer needs, run eagerly: same values, every buffer a new one."""
    other = copy.deepcopy(model)
    monkeypatch.setattr(cache, "out_of_place", lambda buffer: True)
    for inputs in (PREFILLS[0], DECODES[0]):
        before = dict(other.named_buffers())
        kept = {name: buffer.clone() for name, buffer in before.items()}
        functional = other(*inputs)
        with monkeypatch.context() as in_place:
            in_place.setattr(cache, "out_of_place", lambda buffer: False)
            assert torch.equal(model(*inputs), functional)
        for name, buffer in other.named_buffers():
            assert (buffer.data_ptr() != before[name].data_ptr()) == (".cache." in name), name
            assert torch.equal(before[name], kept[name]), name
            assert torch.equal(buffer, dict(model.named_buffers())[name]), name


@pytest.mark.slow
def test_compiled_equals_eager(model: CausalLM) -> None:
    other = copy.deepcopy(model)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    before = [cache.k_suf.data_ptr() for cache in other.caches()]
    with torch.no_grad():
        for inputs in PREFILLS + DECODES:
            torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=0, atol=1e-5)
    # the cache was written where it lies, not copied
    assert [cache.k_suf.data_ptr() for cache in other.caches()] == before
