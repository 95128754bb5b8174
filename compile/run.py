"""A loaded artefact as the network that a `Generator` draws from.

artifact = open_artifact(folder, backend.name, backend.versions())
bucket = route(artifact, len(prompt), samples, max_new_tokens)
compiled = CompiledLM(artifact, backend.load(artifact, parallel))
compiled.warm_up()
generate(compiled, prompt, ..., shape=bucket.shape)
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from compile.artifact import Artifact
from compile.backend import Session
from compile.buckets import Bucket, find_buckets
from models.causal_lm import CacheShape, ModelConfig, load_config
from models.causal_lm.directory import resolve_dtype
from models.causal_lm.quantisation import FP8
from models.generation.network import Step
from nki_kernels.errors import InputError

NAMES = ("tokens", "context_len", "suffix_len", "group")
DRAWING = ("u", "temperature", "top_k", "top_p")


class CompiledLM:
    """An artefact's graphs, called as a `models.causal_lm.CausalLM` is."""

    def __init__(self, artifact: Artifact, session: Session) -> None:
        self.artifact, self.session = artifact, session
        what = artifact.manifest
        self.candidates: int = what["candidates"]
        self.config: ModelConfig = load_config(artifact.checkpoint)
        self.device = torch.device("cpu")  # a session takes and gives tensors of the host
        self.dtype = resolve_dtype(what["dtype"], self.config)
        self.buckets = find_buckets(artifact)
        self._bucket: Bucket | None = None

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the cache."""
        return FP8 if self.config.kv_dtype == "fp8" else self.dtype

    def cache_bytes(self) -> int:
        """Bytes that this rank's keys and values occupy."""
        return self.session.nbytes()["kv"]

    def allocate(self, shape: CacheShape) -> None:
        """Takes the bucket of exactly this shape; its buffers are there already.

        Raises:
            InputError: there is none.
        """
        for bucket in self.buckets:
            if bucket.shape == shape:
                self._bucket = bucket
                return
        shapes = [str(each.shape) for each in self.buckets]
        raise InputError(f"no graph was compiled for {shape}; there are {', '.join(shapes)}")

    def copy_context(self, source: int, targets: Sequence[int]) -> None:
        """Copies a group's context."""
        self.session.copy_context(self._chosen().shape, source, targets)

    def sampled(self, candidates: int) -> Step | None:
        """The decode step that draws tokens itself; None where the graphs do not."""
        return self._draw if 0 < candidates <= self.candidates else None

    def __call__(
        self, tokens: Tensor, context_len: Tensor, suffix_len: Tensor, group: Tensor
    ) -> Tensor:
        """Logits of a prefill; of a decode step where the host draws."""
        bucket = self._chosen()
        inputs = dict(zip(NAMES, (tokens, context_len, suffix_len, group), strict=True))
        if tokens.dim() == 2:
            S, G = bucket.shape.S_ctx, bucket.groups
            inputs["tokens"] = torch.nn.functional.pad(tokens, (0, S - tokens.shape[1]))
            inputs["context_len"] = torch.nn.functional.pad(
                context_len, (0, G - context_len.shape[0])
            )
            inputs["suffix_len"] = torch.zeros(G, bucket.rows, dtype=torch.int32)
            if self.candidates:
                inputs |= self._no_draw(G, bucket.rows)
            logits: Tensor = self.session.run(bucket.prefill, inputs)
            return logits
        if self.candidates:
            raise InputError("the artefact's decode graphs give tokens and no logits")
        self._check_tokens(tokens)
        return self.session.run(bucket.name, inputs)

    def _draw(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        self._check_tokens(inputs[0])
        named = dict(zip((*NAMES, *DRAWING), inputs, strict=True))
        return self.session.run(self._chosen().name, named)

    def _check_tokens(self, tokens: Tensor) -> None:
        shape = self._chosen().shape
        if tokens.shape != (shape.G, shape.r, 1):
            raise InputError(
                f"decode tokens have shape {tuple(tokens.shape)}; the graph takes "
                f"{(shape.G, shape.r, 1)}: an artefact decodes one token a step, without drafts"
            )

    @staticmethod
    def _no_draw(G: int, r: int) -> dict[str, Tensor]:
        return {
            "u": torch.zeros(G, r, 1),
            "temperature": torch.ones(G, r),
            "top_k": torch.ones(G, r, dtype=torch.int32),
            "top_p": torch.ones(G, r),
        }

    def _chosen(self) -> Bucket:
        if self._bucket is None:
            raise InputError("no bucket is chosen yet; call allocate(route(...)) first")
        return self._bucket

    def warm_up(self, progress: bool = False) -> dict[str, float]:
        """Runs every graph once; seconds of each, by name."""
        seconds: dict[str, float] = {}
        for bucket in tqdm(self.buckets, unit="bucket", leave=False, disable=not progress):
            self.allocate(bucket.shape)
            G, r = bucket.shape.G, bucket.shape.r
            group = torch.zeros(1, dtype=torch.int32)
            length = torch.ones(G, dtype=torch.int32)
            if bucket.prefill not in seconds:
                began = time.perf_counter()
                self(torch.zeros(1, 1, dtype=torch.int32), length, torch.zeros(G, r), group)
                seconds[bucket.prefill] = time.perf_counter() - began
            began = time.perf_counter()
            inputs = [torch.zeros(G, r, 1, dtype=torch.int32), length]
            inputs += [torch.ones(G, r, dtype=torch.int32), group]
            if self.candidates:
                self._draw(*inputs, *self._no_draw(G, r).values())
            else:
                self(*inputs)
            seconds[bucket.name] = time.perf_counter() - began
        self._bucket = None
        return seconds
