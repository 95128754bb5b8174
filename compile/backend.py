"""What a place that graphs are compiled for has to offer; `compile.export` is a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from compile.graphs import GraphSpec
from models.causal_lm import CacheShape, CausalLM
from models.parallel import TensorParallel

if TYPE_CHECKING:
    from compile.artifact import Artifact


class Session(Protocol):
    """An artefact that is loaded: weights and states where they are used, graphs ready to run."""

    def run(self, name: str, inputs: Mapping[str, Tensor]) -> Any:
        """What a graph gives; the states are as it leaves them.

        Args:
            name: of the graph.
            inputs: as in its `GraphSpec`, on the host.
        """

    def copy_context(self, shape: CacheShape, source: int, targets: Sequence[int]) -> None:
        """Gives groups `targets` of a cache of `shape` the context of group `source`."""

    def nbytes(self) -> dict[str, int]:
        """Bytes that this rank holds: "weights" and "kv"."""


class Backend(Protocol):
    """A kind of device: how graphs are made for it, and how they run.

    Attributes:
        name: "cpu" or "neuron"; an artefact is for one of them.
    """

    name: str

    def versions(self) -> dict[str, str]:
        """Of the software that decides what a graph becomes."""

    def settings(self, spec: GraphSpec) -> list[str]:
        """What else decides it: the compiler's flags."""

    def compile_graph(
        self, model: CausalLM, spec: GraphSpec, candidates: int, folder: Path
    ) -> None:
        """Makes one graph.

        Args:
            model: made by `graphs.build` in the group of all ranks.
            spec: the graph.
            candidates: as `graphs.traced` takes them.
            folder: empty; the graph's files go here, and are the same for all ranks.
        """

    def load(self, artifact: Artifact, parallel: TensorParallel) -> Session:
        """Loads a verified artefact on this rank."""
