"""Networks of neuronx-distributed's real layers, lowered by the real torch_xla.

NEURONX_DISTRIBUTED=CHECKOUT PJRT_DEVICE=CPU python -m tests.compile.real_layers SRC

SRC is the folder `src` of aws-neuron/neuronx-distributed. What is closed of AWS's (torch_neuronx,
libneuronxla, NKI) is an empty shim: neuronx-distributed's parallel state, layers, mappings, checks
of signatures and `shard_checkpoint` are the real source. Nothing is compiled.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import types
import warnings
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

CLOSED = ("torch_neuronx", "libneuronxla", "neuronxcc", "nki", "nkilib")
ABSENT = ("tenacity", "boto3", "botocore")  # of the index, and not needed for this


class Shim(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importable names with nothing behind them."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in (*CLOSED, *ABSENT):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        made = MagicMock(name=spec.name)
        made.__path__, made.__spec__, made.__name__, made.__file__ = [], spec, spec.name, "shim"
        return made

    def exec_module(self, module: Any) -> None:
        pass


def shim(source: str) -> None:
    """Makes the source in `source` importable."""
    import torch
    import torch_xla  # first: it looks for libneuronxla itself  # noqa: F401

    sys.path.insert(0, source)
    sys.meta_path.insert(0, Shim())
    torch.classes.neuron = types.SimpleNamespace(  # type: ignore[assignment]
        SPMDModel=object, LayoutTransformation=object, SPMDBucketModel=object, Runtime=object
    )
    import torch_neuronx
    import torch_neuronx.utils
    import torch_neuronx.utils.utils

    torch_neuronx.__version__ = "2.9.0"
    for module in (torch_neuronx.utils, torch_neuronx.utils.utils):
        module.get_platform_target = lambda *_: "trn1"
    import neuronx_distributed._version

    from models.parallel import neuron

    version = neuronx_distributed._version.__version__  # a checkout is not installed
    neuron.neuronx_distributed_version = lambda: version  # type: ignore[assignment]


OPTIONS: list[tuple[int, dict[str, Any], str]] = [
    (1, {}, "positions"),
    (2, {}, "positions"),
    (8, {}, "positions"),
    (8, {}, "replicate"),
    (2, {"weights": "int8"}, "positions"),
    (2, {"kv_dtype": "fp8"}, "positions"),
    (2, {"experts": 4, "experts_per_token": 2}, "positions"),
    (2, {"mlp_bias": True, "intermediate_size": 63, "qkv_bias": True}, "positions"),
]


def lowered(tp: int, options: dict[str, Any], kv_split: Any) -> None:
    """Fails unless both graphs of a network hold what they should, and nothing else."""
    import torch
    from neuronx_distributed import NxDParallelState, shard_checkpoint
    from neuronx_distributed.parallel_layers.layers import ColumnParallelLinear
    from neuronx_distributed.trace.functions import _process_example_inputs

    from compile.lowering import lower
    from models.causal_lm import CausalLM
    from models.causal_lm.checkpoint import rank_shards
    from models.parallel.neuron import from_neuronx_distributed
    from tests.compile.lowered import record
    from tests.models import tiny

    config = replace(tiny.CONFIG, h=8, g=2, layers=1, **options)
    with NxDParallelState(world_size=tp, tensor_model_parallel_size=tp):
        model = CausalLM(
            config, kernels="torch", parallel=from_neuronx_distributed(), kv_split=kv_split
        )
        model.allocate(record.SHAPE)
        assert isinstance(model.lm_head, ColumnParallelLinear)
        step = model.sampled(4)
        context = replace(record.CONTEXT, slots=(-(-record.SHAPE.S_ctx // model.parts),))
        for phase in ("decode", "prefill"):
            provided, _ = _process_example_inputs(step, None, record.inputs(phase))
            given = {each.param_name: each.tensor for each in provided}
            seen = context if phase == "decode" else None
            report = lower(step, given, record.STATES, seen, tp).report
            assert not report.problems, (tp, options, phase, report.problems)
            kinds = [each.split(" ")[0] for each in report.collectives]
            assert kinds.count("all-reduce") == (3 if tp > 1 else 0), report.collectives
            parts = 2 if phase == "decode" and model.parts > 1 else 0
            assert kinds.count("all-gather") == (1 + parts if tp > 1 else 0), report.collectives
        if options or model.heads.replicas > 1:
            return
        fresh = CausalLM(config, kernels="torch", parallel=from_neuronx_distributed())
        whole = CausalLM(config)
        tiny.randomise(whole.named_parameters())
        weights = dict(whole.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shards = shard_checkpoint(dict(weights), fresh)
        for rank, part in enumerate(shards):
            ours = rank_shards(config, tp, rank)
            assert set(ours) == set(part)
            for name, shard in ours.items():
                assert torch.equal(shard.take(weights[name]), part[name]), name


def main() -> None:
    """All networks."""
    os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    shim(sys.argv[1])
    for tp, options, kv_split in OPTIONS:
        lowered(tp, options, kv_split)
    print(f"{len(OPTIONS)} networks of neuronx-distributed's layers lowered")


if __name__ == "__main__":
    main()
