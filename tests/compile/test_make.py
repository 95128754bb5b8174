"""Making an artefact: what does not begin when it is interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compile.cache import Cache
from compile.export import Cpu
from compile.graphs import GraphSpec
from compile.make import make_artifact
from compile.plan import Request, make_plan
from models.causal_lm import CausalLM, load_config
from tests.compile import making

pytestmark = pytest.mark.null


class Slow(Cpu):
    """Compiles one graph at a time; Ctrl-C is pressed when the third is traced."""

    workers = 1

    def __init__(self) -> None:
        super().__init__()
        self.pressed = threading.Event()
        self.traced: list[str] = []
        self.compiled: list[str] = []

    def trace_graph(
        self, model: CausalLM, spec: GraphSpec, candidates: int, done: Path
    ) -> Callable[[Path], None]:
        self.traced.append(spec.name)
        if len(self.traced) == 3:
            self.pressed.set()
            raise KeyboardInterrupt

        def compiled(folder: Path) -> None:
            assert self.pressed.wait(60)
            time.sleep(0.2)
            (folder / spec.name).write_text("a graph")
            self.compiled.append(spec.name)

        return compiled


def test_after_ctrl_c_no_compiler_starts(tmp_path: Path) -> None:
    """The one at work goes on to its end, and the cache has its graph."""
    model = making.checkpoint(tmp_path / "model")
    request = Request(
        instance="trn1.2xlarge",
        tp=1,
        dtype=torch.float32,
        contexts=(8,),
        samples=(2, 3),
        max_new_tokens=4,
        kernels="torch",
    )
    plan, backend = make_plan(load_config(model), request), Slow()
    cache = Cache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        make_artifact(plan, model, tmp_path / "out", backend, cache, 0)
    assert len(backend.traced) == 3 and backend.compiled == backend.traced[:1]
    assert [what["graph"] for _, what in cache.entries()] == backend.compiled
    assert not (tmp_path / "out").exists()
