"""What a place that graphs are compiled for has to offer; `compile.export` is a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from compile.graphs import GraphSpec
from compile.plan import Plan
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
        workers: graphs that are compiled at a time.
    """

    @property
    def name(self) -> str:
        """See above."""

    @property
    def workers(self) -> int:
        """See above."""

    def versions(self) -> dict[str, str]:
        """Of the software that decides what a graph becomes."""

    def settings(self, spec: GraphSpec) -> list[str]:
        """What else decides it: the compiler's flags."""

    def stages(self, specs: Sequence[GraphSpec]) -> list[list[GraphSpec]]:
        """The graphs in the order in which they are made.

        Those of one stage may be compiled side by side, when those of the stage before are done.
        """

    def building(self, plan: Plan) -> AbstractContextManager[CausalLM]:
        """The network that graphs are traced from, in the group of all ranks."""

    def trace_graph(
        self, model: CausalLM, spec: GraphSpec, candidates: int, done: Path
    ) -> Callable[[Path], None]:
        """Traces one graph, and gives what compiles it.

        Args:
            model: as `building` gives it.
            spec: the graph.
            candidates: as `graphs.traced` takes them.
            done: where the files of the stages before are.

        Returns:
            a function of an empty folder, which the graph's files go into; they are the same for
            all ranks. It may be called in another thread.
        """

    def joined(self, tp: int) -> AbstractContextManager[TensorParallel]:
        """This process's place among those that run an artefact of `tp` ranks; the first speaks."""

    def load(self, artifact: Artifact, parallel: TensorParallel) -> Session:
        """Loads a verified artefact on this rank."""
