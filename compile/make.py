"""From a plan and a checkpoint to an artefact; what was interrupted goes on where it ended."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from compile import graphs
from compile.artifact import CHECKPOINT, GRAPHS, MANIFEST, seal, writing
from compile.backend import Backend
from compile.cache import Cache, determines
from compile.plan import Plan
from models.causal_lm.convert import split
from models.causal_lm.directory import read_json
from models.files import TEMPORARY, write_json
from nki_kernels.errors import InputError

FROM = ".from.json"  # which compilation a folder under way belongs to


@dataclass(frozen=True)
class Made:
    """What a compilation did.

    Attributes:
        graphs: seconds that each graph took; of those that the cache had, None.
        weights: seconds that the weights took.
        nbytes: of the artefact.
    """

    graphs: dict[str, float | None]
    weights: float
    nbytes: int


def check_fits(plan: Plan) -> None:
    """Refuses a plan that a core's memory does not hold.

    Raises:
        InputError: with what would help.
    """
    if not plan.core.fits:
        raise InputError(
            f"a core of {plan.instance.name} has {plan.core.hbm / 2**30:.1f} GiB, and this takes "
            f"{plan.core.total / 2**30:.1f} GiB; what would fit: {'; '.join(plan.suggestions)}"
        )


def make_artifact(
    plan: Plan,
    checkpoint: Path,
    out: Path,
    backend: Backend,
    cache: Cache,
    candidates: int,
    progress: bool = False,
) -> Made:
    """Compiles a plan's graphs, splits the checkpoint over its ranks, and writes `out`.

    A graph that the cache has is not compiled again. Weights that an interrupted run wrote are
    kept.

    Args:
        plan: of `checkpoint`'s config.
        checkpoint: a directory in Hugging Face format, not split.
        out: the artefact; what was there is replaced once the new one is whole.
        backend: what graphs are compiled for.
        cache: where graphs are kept.
        candidates: the largest top-k that a decode graph draws among; 0 leaves the draw to the
            host.
        progress: whether to show bars.

    Raises:
        InputError: the plan does not fit, or something is wrong with the arguments, in one
            sentence.
    """
    check_fits(plan)
    specs = graphs.graph_specs(plan, candidates)
    seconds: dict[str, float | None] = {}
    with writing(out) as folder:
        what = _manifest(plan, backend, candidates)
        source = {"of": what, "checkpoint": str(checkpoint.resolve())}
        _continue(folder, source)
        (folder / GRAPHS).mkdir(exist_ok=True)
        bar = tqdm(total=len(specs), unit="graph", leave=False, disable=not progress)
        with (
            bar,
            backend.building(plan) as model,
            _workers(backend.workers) as pool,
        ):
            for stage in backend.stages(specs):
                under_way = []
                for spec in stage:
                    bar.set_description(spec.name)
                    job = _Job(
                        cache,
                        determines(plan, spec, candidates, backend),
                        partial(backend.trace_graph, model, spec, candidates, folder / GRAPHS),
                        folder / GRAPHS,
                    )
                    job.trace()  # here: only compilers run side by side
                    result = pool.submit(job.compile)
                    result.add_done_callback(partial(_count, bar))
                    under_way.append((spec.name, result))
                for name, result in under_way:
                    seconds[name] = result.result()
        entries = [_described(plan, spec, backend) for spec in specs]
        began = time.perf_counter()
        split(
            checkpoint, folder / CHECKPOINT, plan.request.tp, plan.request.dtype, progress=progress
        )
        weights = time.perf_counter() - began
        (folder / FROM).unlink()
        seal(folder, {**what, "graphs": entries})
        nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Made(seconds, weights, nbytes)


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; what did not begin when Ctrl-C is pressed never does.

    After a failure the others go on, and the next run finds them in the cache.
    """
    with ThreadPoolExecutor(max_workers=count) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _count(bar: Any, done: Future[float | None]) -> None:
    """Counts a graph when it is done, which need not be in their order."""
    if not done.cancelled() and done.exception() is None:
        with bar.get_lock():
            bar.update()


class _Job:
    """One graph: found in the cache, or traced and then compiled; then copied to `folder`."""

    def __init__(
        self,
        cache: Cache,
        what: Mapping[str, Any],
        trace: Callable[[], Callable[[Path], None]],
        folder: Path,
    ) -> None:
        self.cache, self.what, self.folder = cache, what, folder
        self._trace = trace
        self._compile: Callable[[Path], None] | None = None
        self._seconds = 0.0

    def trace(self) -> None:
        """Traces the graph, unless the cache has it."""
        if not self.cache.has(self.what):
            began = time.perf_counter()
            self._compile = self._trace()
            self._seconds = time.perf_counter() - began

    def compile(self) -> float | None:
        """Compiles what was traced; seconds that the graph took, None where the cache had it."""
        began = time.perf_counter()

        def make(folder: Path) -> None:
            # Traced only now where another process removed the entry in between.
            (self._compile or self._trace())(folder)

        with self.cache.entry(self.what, make) as entry:
            for path in entry.files:
                shutil.copyfile(path, self.folder / path.name)
        return self._seconds + time.perf_counter() - began if entry.made else None


def _manifest(plan: Plan, backend: Backend, candidates: int) -> dict[str, Any]:
    request = plan.request
    return {
        "device": backend.name,
        "versions": backend.versions(),
        "family": plan.config.family,
        "instance": plan.instance.name,
        "target": plan.instance.target,
        "lnc": plan.instance.lnc,
        "tp": request.tp,
        "dtype": str(request.dtype).removeprefix("torch."),
        "kernels": plan.network.kernels,
        "attention": request.attention,
        "kv_split": request.kv_split,
        "candidates": candidates,
        "max_new_tokens": request.max_new_tokens,
        "contexts": list(request.contexts),
        "samples": list(request.samples),
        "cache": asdict(plan.cache),
        "planned": {"weights": plan.core.weights, "kv": plan.core.kv},
    }


def _described(plan: Plan, spec: graphs.GraphSpec, backend: Backend) -> dict[str, Any]:
    graph = next(graph for graph in plan.graphs if graph.name == spec.name)
    return {
        "name": spec.name,
        "phase": spec.phase,
        "shape": asdict(spec.shape),
        "tokens": list(spec.inputs["tokens"].shape),
        "attention": graph.attention,
        "why": graph.why,
        "flags": backend.settings(spec),
    }


def _continue(folder: Path, source: Mapping[str, Any]) -> None:
    """Keeps what an interrupted run of the same compilation left, and nothing else."""
    try:
        same = read_json(folder / FROM) == source
    except InputError:
        same = False
    if not same:
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        write_json(folder / FROM, source)
    for path in [folder / MANIFEST, *folder.glob(f"{TEMPORARY}*")]:
        path.unlink(missing_ok=True)
    if (folder / CHECKPOINT / "shards.json").is_file():  # was whole: begun again, it is refused
        shutil.rmtree(folder / CHECKPOINT)
