"""The stage that holds a model's tokens on a device against the same model, eager, on the CPU.

In float32, where another order of sums does not decide a token of a trained model; so a difference
is a finding. Greedy, and drawn with a seed (the draw is the same function of seed and logits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from compile.artifact import open_artifact, read_manifest
from compile.buckets import check_sampling, route
from compile.devices import resolve
from compile.run import CompiledLM
from models.causal_lm import Tokenizer, find_checkpoint, load
from models.generation import Sampling, generate
from models.parallel import SINGLE
from models.pretrained import DEFAULT_MODEL, example_prompt
from nki_kernels.errors import require
from scripts.compiling import backend_for
from scripts.validation.runner import Found, Job

SAMPLES, NEW_TOKENS, SEED = 4, 8, 5
WAYS = {"greedy": Sampling(temperature=0), "drawn": Sampling(temperature=0.8, top_p=0.95, top_k=20)}

Tokens = list[list[int]]
Draws = Callable[[str], Tokens]
"""Tokens of `SAMPLES` answers, drawn in the way of that name."""


def artifact_jobs(
    folder: Path, model: str, target: str, evidence: str, rehearse: bool, new_tokens: int
) -> list[Job]:
    """A job a way of drawing, by an artefact of `scripts/compile.py`.

    Args:
        folder: the artefact.
        model: what it was compiled from; "" is the default model.
        target, evidence, new_tokens: as `token_jobs` takes them.
        rehearse: whether it may be one for a CPU; else it must be for NeuronCores.

    Raises:
        InputError: it is none, was damaged, or is for another device, target or number of ranks.
    """
    made = read_manifest(folder)
    wanted = "cpu" if rehearse else "neuron"
    for name, has, needs in (
        ("device", made["device"], wanted),
        ("target", made["target"], target),
    ):
        require(has == needs, f"--artifact {folder} is for {name} {has}; this run is for {needs}")
    require(
        made["device"] == "neuron" or made["tp"] == 1,
        f"--artifact {folder} is for tp = {made['tp']} on CPUs; one process rehearses tp = 1",
    )
    directory = find_checkpoint(model or str(DEFAULT_MODEL))
    network = cache(partial(load_artifact, folder, made["device"]))
    expected = cache(
        partial(draw, directory, "cpu", "torch", target, new_tokens, dtype=made["dtype"])
    )
    return [
        Job(f"tokens/artifact-{way}", "tokens", directory.name, target, evidence,
            partial(hold_artifact, network, directory, new_tokens, way, expected))
        for way in WAYS
    ]  # fmt: skip


def load_artifact(folder: Path, device: str) -> CompiledLM:
    """A verified artefact on its device, every graph run once."""
    backend, _ = backend_for(device)
    artifact = open_artifact(folder, backend.name, backend.versions())
    network = CompiledLM(artifact, backend.load(artifact, SINGLE))
    network.warm_up()
    return network


def hold_artifact(
    load_network: Callable[[], CompiledLM], directory: Path, new_tokens: int, way: str,
    expected: Draws,
) -> Found:  # fmt: skip
    """Draw by an artefact and compare."""
    network, prompt = load_network(), prompt_of(directory)
    check_sampling(network.artifact, WAYS[way])
    answers = generate(
        network,
        prompt,
        samples=SAMPLES,
        max_new_tokens=new_tokens,
        sampling=WAYS[way],
        seed=SEED,
        shape=route(network.artifact, len(prompt), SAMPLES, new_tokens).shape,
    )
    return compare([list(sample.tokens) for sample in answers.samples], expected(way))


def token_jobs(model: str, target: str, evidence: str, device: str, new_tokens: int) -> list[Job]:
    """A job a way of drawing and a form of attention, operator by operator.

    Args:
        model: checkpoint directory or hub id; "" is the default model.
        target: core generation.
        evidence: what passing shows.
        device: "neuron", or "simulate" for a rehearsal.
        new_tokens: of each answer.
    """
    directory = find_checkpoint(model or str(DEFAULT_MODEL))
    expected = cache(partial(draw, directory, "cpu", "torch", target, new_tokens))
    forms = ("nki",) if device == "simulate" else ("nki", "torch")
    return [
        Job(f"tokens/{form}-{way}", "tokens", directory.name, target, evidence,
            partial(hold, directory, device, form, target, new_tokens, way, expected))
        for form in forms
        for way in WAYS
    ]  # fmt: skip


def hold(
    directory: Path, device: str, kernels: str, target: str, new_tokens: int, way: str,
    expected: Draws,
) -> Found:  # fmt: skip
    """Draw on a device and compare."""
    return compare(draw(directory, device, kernels, target, new_tokens, way), expected(way))


def draw(
    directory: Path, device: str, kernels: str, target: str, new_tokens: int, way: str,
    dtype: str = "float32",
) -> Tokens:  # fmt: skip
    """Answers to the default prompt by the model on a device."""
    model = load(
        directory, dtype=dtype, device=resolve(device).torch, kernels=kernels, target=target
    )
    answers = generate(
        model,
        prompt_of(directory),
        samples=SAMPLES,
        max_new_tokens=new_tokens,
        sampling=WAYS[way],
        seed=SEED,
    )
    return [list(sample.tokens) for sample in answers.samples]


def prompt_of(directory: Path) -> list[int]:
    """The default model's example, in a checkpoint's own tokens."""
    return Tokenizer.load(directory).encode(example_prompt(4))


def compare(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> Found:
    """Equal tokens, or where the first answer that differs does so."""
    total = sum(len(answer) for answer in expected)
    different = [
        i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]
    ]
    details = {"answers": len(expected), "tokens": total, "answers that differ": len(different)}
    if not different:
        return Found(details=details)
    first = different[0]
    one, other = list(found[first]), list(expected[first])
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
              min(len(one), len(other)))  # fmt: skip
    return Found(
        wrong=f"{len(different)} of {len(expected)} answers differ from eager CPU, the first "
        f"(answer {first}) at token {at}: {one[at : at + 1]} instead of {other[at : at + 1]}",
        details=details,
    )
