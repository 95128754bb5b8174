"""The same networks on neuronx-distributed's own layers, where AWS's SDK is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.parallel.neuron import neuronx_distributed_version

pytestmark = [
    pytest.mark.sdk,
    pytest.mark.slow,
    pytest.mark.skipif(
        neuronx_distributed_version() is None,
        reason="neuronx-distributed of AWS's SDK is not installed",
    ),
]

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("tp", [2, 4])
def test_networks_of_its_layers_equal_one_rank(tp: int) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(tp)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            *("-m", "tests.models.parallel.on_neuronx_distributed"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"NXD_CPU_MODE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert f"4 networks over {tp} ranks equal one rank" in result.stdout
