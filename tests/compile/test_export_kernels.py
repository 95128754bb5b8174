"""NKI operators in an artefact's graphs, run by the simulator or by their reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from compile.export import Cpu
from models.parallel import SINGLE
from tests.compile import making
from tests.compile.making import SAMPLED, asked

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def test_nki_operators_stay_in_the_graph(tmp_path: Path) -> None:
    """The simulator runs them, or their reference where that is asked for."""
    model = making.checkpoint(tmp_path / "model")
    artifact = making.compiled(
        model, tmp_path / "out", tmp_path / "cache", "--context", "8", "--samples", "2",
        "--kernels", "nki", "--top-k", "5",
    )  # fmt: skip
    requests = [asked(6, 2, SAMPLED)]
    for simulate, kernels in ((True, "nki"), (False, "torch")):
        session = Cpu(simulate).load(artifact, SINGLE)
        for graph in session.graphs.values():
            operators = [n for n in graph.module.graph.nodes if str(n.target).startswith("bifork.")]
            assert operators and all(kernels in n.args for n in operators)
        answers, _ = making.served(SINGLE, artifact.folder, requests, simulate)
        assert answers == making.eager(model, requests, kernels=kernels)
