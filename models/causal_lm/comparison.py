"""A checkpoint in this network beside transformers, or beside another checkpoint in this network.

Every layer, every logit and greedy tokens are compared. The two never share memory: the reference
runs first and leaves its hidden states, logits and tokens, then the other is fed the same tokens.
Either holds all its weights, or those of one layer at a time, which are then read again for each
forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.causal_lm.cache import CacheShape
from models.causal_lm.checkpoint import (
    dtypes,
    find_weights,
    load,
    rank_shards,
    read_weights,
    unit_scales,
)
from models.causal_lm.directory import load_config, weight_files
from models.causal_lm.network import CausalLM
from models.causal_lm.storage import open_files
from nki_kernels.errors import InputError

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 16 * 2.0**-8}
"""Largest difference of logits that is rounding, as a fraction of the largest logit. bfloat16 has
8 bits, and the two networks round in other places."""


@dataclass
class Run:
    """What a network made of a prompt and the tokens after it.

    Attributes:
        hidden: after each layer, of the prompt, [S, hidden] fp32.
        logits: after the prompt and after each further token, [steps + 1, vocab] fp32.
    """

    hidden: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """The likeliest token of each place."""
        return [int(logits.argmax()) for logits in self.logits]


@dataclass(frozen=True)
class Comparison:
    """How far two runs are apart.

    Attributes:
        layers: largest difference after each layer, as a fraction of its largest element.
        logits: the same of the logits of each step.
        mean: root mean square of all logits' differences, as a fraction of theirs.
        tolerance: what the logits may differ by.
        theirs: the reference's greedy tokens.
        ours: the other's, each after the reference's tokens before it.
        ties: places where the reference's two best are within twice the tolerance.
    """

    layers: list[float]
    logits: list[float]
    mean: float
    tolerance: float
    theirs: list[int]
    ours: list[int]
    ties: list[int]

    @property
    def first_wrong_layer(self) -> int | None:
        """The first layer after which more differs than the logits may."""
        return next((i for i, d in enumerate(self.layers) if not d <= self.tolerance), None)

    @property
    def wrong_tokens(self) -> list[int]:
        """Places of greedy tokens that differ, ties left out."""
        pairs = enumerate(zip(self.theirs, self.ours, strict=True))
        return [i for i, (a, b) in pairs if a != b and i not in self.ties]

    @property
    def equal(self) -> bool:
        """Whether logits and greedy tokens are the same."""
        return all(d <= self.tolerance for d in self.logits) and not self.wrong_tokens


def compare(theirs: Run, ours: Run, tolerance: float) -> Comparison:
    """Compares two runs that were fed the same tokens; `theirs` is the reference."""
    ties = []
    for i, logits in enumerate(theirs.logits):
        best = logits.topk(2).values
        if float(best[0] - best[1]) <= 2 * tolerance * float(logits.abs().max()):
            ties.append(i)
    right, found = torch.stack(theirs.logits), torch.stack(ours.logits)
    return Comparison(
        layers=[apart(a, b) for a, b in zip(theirs.hidden, ours.hidden, strict=True)],
        logits=[apart(a, b) for a, b in zip(theirs.logits, ours.logits, strict=True)],
        mean=float((right - found).square().mean().sqrt() / right.square().mean().sqrt()),
        tolerance=tolerance,
        theirs=theirs.tokens,
        ours=ours.tokens,
        ties=ties,
    )


def apart(expected: Tensor, found: Tensor) -> float:
    """The largest difference as a fraction of the largest expected element; NaN where one is."""
    return float((expected - found).abs().max() / expected.abs().max())


def memory_needed(directory: Path, dtype: torch.dtype, by_layer: bool) -> int:
    """Bytes of weights in memory at once."""
    sizes: dict[str, int] = {"": 0}
    for name, shard in rank_shards(load_config(directory)).items():
        part = name.split(".")[1] if by_layer and name.startswith("layers.") else ""
        sizes[part] = sizes.get(part, 0) + math.prod(shard.whole) * dtype.itemsize
    return sizes.pop("") + max(sizes.values(), default=0)


def run_transformers(
    directory: Path, prompt: list[int], steps: int, dtype: torch.dtype, by_layer: bool
) -> Run:
    """Runs transformers' own network greedily, with its cache.

    Raises:
        InputError: transformers cannot load the checkpoint, or not one layer at a time.
    """
    try:
        model = (_their_layers if by_layer else _their_whole)(directory, dtype)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"transformers does not load {directory}: {reason[0]}") from error
    run = Run()
    tokens, past = torch.tensor([prompt]), None
    with torch.no_grad():
        for step in range(steps + 1):
            with _hidden_states(model.model.layers, run if step == 0 else None):
                out = model(tokens, past_key_values=past, use_cache=True)
            past = out.past_key_values
            run.logits.append(out.logits[0, -1].float())
            tokens = run.logits[-1].argmax().view(1, 1)
    return run


def run_ours(
    directory: Path,
    prompt: list[int],
    given: list[int] | int,
    dtype: torch.dtype,
    by_layer: bool,
    kernels: str = "auto",
) -> Run:
    """Runs this network on the prompt and then, one after the other, on the tokens `given`.

    Where `given` is a number it takes so many steps with its own greedy tokens.
    """
    if by_layer:
        model = _our_layers(directory, dtype, kernels)
    else:
        model = load(directory, dtype=dtype, kernels=kernels, progress=True)
    run = Run()
    steps = given if isinstance(given, int) else len(given)
    model.allocate(CacheShape(G=1, r=1, S_ctx=len(prompt), S_dec=max(1, steps)))

    def int32(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    length, group = int32([len(prompt)]), int32([0])
    with torch.no_grad():
        with _hidden_states(model.layers, run):
            run.logits.append(model(int32([prompt]), length, int32([[0]]), group)[0])
        for step in range(steps):
            token = run.tokens[-1] if isinstance(given, int) else given[step]
            logits = model(int32([[[token]]]), length, int32([[step + 1]]), group)
            run.logits.append(logits.flatten())
    return run


@contextmanager
def _hidden_states(layers: Any, run: Run | None) -> Iterator[None]:
    """Adds what each layer gives to `run`."""

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if run is not None:
            hidden = output[0] if isinstance(output, tuple) else output
            run.hidden.append(hidden.detach().flatten(0, -2).float())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _their_whole(directory: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=dtype, attn_implementation="eager",
        local_files_only=True, trust_remote_code=False,
    ).eval()  # fmt: skip


def _their_layers(directory: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(directory), local_files_only=True)
    with _weights_on_meta():
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        ).eval()
    stored = open_files(weight_files(directory))
    tied = bool(model.config.tie_word_embeddings)
    unknown = [name for name in model.state_dict() if name not in stored
               and not (tied and name == "lm_head.weight")]  # fmt: skip
    if unknown:
        raise InputError(
            f"transformers stores {unknown[0]} in another form than {directory} does; it "
            "can only be compared as a whole"
        )

    def read(names: list[str], prefix: str = "") -> dict[str, Tensor]:
        return {name: stored[prefix + name].read(dtype) for name in names}

    resident = [n for n, _ in model.named_parameters() if ".layers." not in n and n in stored]
    model.load_state_dict(read(resident), strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    for i, layer in enumerate(model.model.layers):
        names = list(layer.state_dict())
        _on_demand(layer, partial(read, names, f"model.layers.{i}."))
    return model


@contextmanager
def _weights_on_meta() -> Iterator[None]:
    """Modules made meanwhile have parameters without storage; their buffers are real."""
    register = nn.Module.register_parameter

    def without_storage(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        if weight is not None:
            weight = nn.Parameter(weight.to("meta"), requires_grad=False)
        register(module, name, weight)

    setattr(nn.Module, "register_parameter", without_storage)  # noqa: B010 -- mypy
    try:
        yield
    finally:
        setattr(nn.Module, "register_parameter", register)  # noqa: B010


def _our_layers(directory: Path, dtype: torch.dtype, kernels: str) -> CausalLM:
    config = load_config(directory)
    model = CausalLM(config, dtype=dtype, device="meta", kernels=kernels)
    parts = find_weights(directory, config)
    held = dtypes(model)
    resident = {name: part for name, part in parts.items() if not name.startswith("layers.")}
    weights = {**read_weights(resident, held), **unit_scales(model, parts)}
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    for i, layer in enumerate(model.layers):
        prefix = f"layers.{i}."
        mine = {n.removeprefix(prefix): p for n, p in parts.items() if n.startswith(prefix)}
        _on_demand(layer, partial(read_weights, mine, {n: held[prefix + n] for n in mine}))
    return model


def _on_demand(layer: nn.Module, read: Callable[[], dict[str, Tensor]]) -> None:
    """Gives a layer its weights for the time of a call."""
    empty = {name: weight.detach() for name, weight in layer.named_parameters()}

    def fill(module: nn.Module, args: Any) -> None:
        module.load_state_dict(read(), strict=False, assign=True)

    def forget(module: nn.Module, args: Any, output: Any) -> None:
        module.load_state_dict(empty, strict=False, assign=True)

    layer.register_forward_pre_hook(fill)
    layer.register_forward_hook(forget)
