"""What the processes of a test do: a network from its shards, run, sampled, or made wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.causal_lm import CacheShape, CausalLM, ModelConfig
from models.causal_lm.decode_step import DecodeStep
from models.causal_lm.draw import find_candidates
from models.generation import Sampling, generate
from models.parallel import SINGLE as SINGLE
from models.parallel import TensorParallel
from nki_kernels.attention_state.reference import MASK
from tests.models import tiny
from tests.models.causal_lm.driver import Script, run
from tests.models.causal_lm.test_export import check_rules

Weights = Mapping[str, Tensor]


def sharded(
    parallel: TensorParallel, config: ModelConfig, weights: Weights, **options: Any
) -> CausalLM:
    """This rank's part of the network that has `weights`."""
    model = CausalLM(config, parallel=parallel, **options)
    parts = {name: shard.take(weights[name]) for name, shard in model.shards().items()}
    left = model.load_state_dict(parts, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"embed_tokens.rank_util.rank", "lm_head.weight"}
    return model


def logits(
    parallel: TensorParallel,
    config: ModelConfig,
    weights: Weights,
    script: Script,
    kv_split: str = "positions",
    fault: str | None = None,
    kernels: str = "auto",
    device: str = "cpu",
) -> tuple[list[Tensor], Tensor, int]:
    """`driver.run` over poisoned caches, and the bytes of this rank's cache."""
    model = sharded(parallel, config, weights, kv_split=kv_split, kernels=kernels, device=device)
    if fault is not None:
        FAULTS[fault](model)
    return *run(model, script), model.cache_bytes()


def tokens(
    parallel: TensorParallel,
    config: ModelConfig,
    weights: Weights,
    prompt: list[int],
    sampling: Sampling,
    new: int,
    device: str = "cpu",
) -> list[list[int]]:
    """Of five samples."""
    model = sharded(parallel, config, weights, device=device)
    made = generate(model, prompt, samples=5, max_new_tokens=new, sampling=sampling, seed=3)
    return [sample.tokens for sample in made.samples]


def swapped_shard(model: CausalLM) -> None:
    """Rank 0 has the up projection of rank 1, and the other way round."""
    weight = model.layers[1].mlp.up_proj.weight
    every = model.parallel.gather(weight.data.unsqueeze(0), 0)
    other = {0: 1, 1: 0}.get(model.parallel.rank, model.parallel.rank)
    weight.data.copy_(every[other])


def missing_sum(model: CausalLM) -> None:
    """The ranks' attention outputs are not added up."""
    model.layers[1].self_attn.o_proj.reduce_output = False


def wrong_head(model: CausalLM) -> None:
    """Every rank has the first key/value head."""
    weight = model.layers[0].self_attn.k_proj.weight
    weight.data.copy_(model.parallel.gather(weight.data.unsqueeze(0), 0)[0])


def wrong_block(model: CausalLM) -> None:
    """Every replica keeps the first block of the context."""
    model._kept = lambda positions, group: _with_replica(model, 0, "_kept", positions, group)


def suffix_on_all(model: CausalLM) -> None:
    """Every replica counts every sample's suffix."""
    part = model._part

    def wrong(context_len: Tensor, suffix_len: Tensor) -> Any:
        from dataclasses import replace

        return replace(part(context_len, suffix_len), suffix_len=suffix_len)

    model._part = wrong


def wrong_order(model: CausalLM) -> None:
    """Vocabulary shards are taken for each other's."""
    weight = model.embed_tokens.weight
    every = model.parallel.gather(weight.data.unsqueeze(0), 0)
    weight.data.copy_(every.flip(0)[model.parallel.rank])


def window_from_block(model: CausalLM) -> None:
    """A window is counted from the keys that are here, not from where the query is."""
    for layer in model.layers:
        attention = layer.self_attn
        attend = attention._decode_part

        def wrong(q: Tensor, part: Any, attend: Any = attend) -> Tensor:
            from dataclasses import replace

            own = part.context_len[:, None] + part.suffix_len - 1
            return attend(q, replace(part, query_position=own.to(torch.int32)))

        attention._decode_part = wrong


def _with_replica(model: CausalLM, replica: int, method: str, *args: Any) -> Any:
    before, model._replica = model._replica, lambda: torch.tensor([replica], dtype=torch.int32)
    try:
        return getattr(type(model), method)(model, *args)
    finally:
        model._replica = before


FAULTS: dict[str, Callable[[CausalLM], None]] = {
    each.__name__: each
    for each in (
        swapped_shard,
        missing_sum,
        wrong_head,
        wrong_block,
        suffix_on_all,
        wrong_order,
        window_from_block,
    )
}


def candidates(
    parallel: TensorParallel, logits: Tensor, k: int, swapped: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Of whole `logits` [rows, vocab], of which this rank is given its part."""
    vocab = logits.shape[-1]
    count = -(-vocab // parallel.size)
    padded = F.pad(logits, (0, count * parallel.size - vocab), value=MASK)
    rank = parallel.rank
    local = padded[:, rank * count : (rank + 1) * count]
    told = parallel.size - 1 - rank if swapped else rank
    found = find_candidates(local, k, vocab, parallel, tiny.int32([told]))
    return found.logits, found.ids, found.weight


def drawn(
    parallel: TensorParallel, config: ModelConfig, weights: Weights, inputs: list[Any], k: int
) -> list[tuple[Tensor, Tensor]]:
    """Tokens and log-probabilities of decode steps; the first of `inputs` are prefills."""
    model = sharded(parallel, config, weights)
    model.allocate(CacheShape(G=2, r=3, S_ctx=8, S_dec=4))
    step = DecodeStep(model, k)
    made = [step(*each) for each in inputs]
    return [each for each in made if isinstance(each, tuple)]


def exported(
    parallel: TensorParallel, config: ModelConfig, weights: Weights, inputs: list[Any], k: int
) -> dict[str, Any]:
    """What the graphs of a prefill, `inputs[0]`, and of a decode step, `inputs[1]`, hold and give.

    For each the operators by name, the states written, and the largest difference from eager code.
    """
    told = {}
    for phase, example in zip(("prefill", "decode"), inputs, strict=True):
        model = sharded(parallel, config, weights)
        model.allocate(CacheShape(G=2, r=3, S_ctx=8, S_dec=4))
        step = DecodeStep(model, k)
        step(*inputs[0])  # something to read
        graph = torch.export.export(step, example).run_decompositions({})
        check_rules(graph)
        made, expected = graph.module()(*example), step(*example)
        if isinstance(made, Tensor):
            made, expected = [made], [expected]
        told[phase] = (
            [str(node.target) for node in graph.graph.nodes if node.op == "call_function"],
            sorted(graph.graph_signature.buffers_to_mutate.values()),
            max(float((a - b).abs().max()) for a, b in zip(made, expected, strict=True)),
        )
    return told
