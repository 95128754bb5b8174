"""Which graphs of an artefact serve a request, by the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compile.artifact import Artifact
from models.causal_lm import CacheShape
from models.generation import Sampling
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Bucket:
    """A decode graph, and the prefill that fills its context.

    Attributes:
        name: of the decode graph.
        prefill: of the prefill graph.
        shape: of the cache.
        groups: G of the prefill graph's inputs.
        rows: r of them.
    """

    name: str
    prefill: str
    shape: CacheShape
    groups: int
    rows: int


def find_buckets(artifact: Artifact) -> list[Bucket]:
    """From the smallest cache to the largest."""
    entries: Sequence[Mapping[str, Any]] = artifact.manifest["graphs"]
    prefills = {e["shape"]["S_ctx"]: e for e in entries if e["phase"] == "prefill"}
    found = []
    for entry in entries:
        if entry["phase"] == "decode":
            shape = CacheShape(**entry["shape"])
            prefill = prefills[shape.S_ctx]
            layout = prefill["shape"]
            found.append(Bucket(entry["name"], prefill["name"], shape, layout["G"], layout["r"]))
    return sorted(found, key=lambda each: (each.shape.context_slots, each.shape.suffix_slots))


def route(artifact: Artifact, prompt_tokens: int, samples: int, max_new_tokens: int) -> Bucket:
    """The smallest bucket that holds a request.

    Raises:
        InputError: none does.
    """
    for bucket in find_buckets(artifact):
        shape = bucket.shape
        if (
            prompt_tokens <= shape.S_ctx
            and samples <= shape.rows
            and max_new_tokens - 1 <= shape.S_dec
        ):
            return bucket
    what = artifact.manifest
    raise InputError(
        f"the request is {prompt_tokens} prompt tokens, {samples} samples and {max_new_tokens} "
        f"new tokens; the artefact's buckets hold up to {what['contexts'][-1]}, "
        f"{what['samples'][-1]} and {what['max_new_tokens']}"
    )


def check_sampling(artifact: Artifact, sampling: Sampling) -> None:
    """Refuses a draw that no graph does.

    Raises:
        InputError: the graphs draw, and not among so many.
    """
    most, wanted = artifact.manifest["candidates"], sampling.candidates
    if most and (wanted is None or wanted > most):
        asked = "top-k off" if wanted is None else f"top-k {wanted}"
        raise InputError(
            f"the request has {asked}; the artefact's decode graphs draw among at most {most} "
            f"tokens: ask for --top-k {most} or fewer, or compile with --top-k 0, which leaves the "
            "draw to the host"
        )
