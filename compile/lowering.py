"""The HLO that neuronx-cc would be given, through PyTorch/XLA on a CPU: `--lower`.

torch_xla 2.9 is the last one there is and runs beside torch 2.9. Nothing is executed: a graph is
traced on the device "xla" and printed. Two things stand for what the Neuron SDK would put there, as
custom calls of the same names: its top-k (`AwsNeuronTopK`) and NKI kernels
(`AwsNeuronCustomNativeKernel`). What neuronx-cc makes of the graph is not known here.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from compile.hlo import Alias, Context, Report, examine, parse
from models.parallel import TensorParallel, layers, mappings
from models.parallel.group import Group, TracedRanks
from models.parallel.state import Library
from nki_kernels.errors import InputError


@dataclass(frozen=True)
class Lowered:
    """A graph as HLO.

    Attributes:
        text: the module.
        report: what it holds.
        inputs: name of each parameter, None for a number that the module holds.
    """

    text: str
    report: Report
    inputs: tuple[str | None, ...]


def check_torch_xla() -> str:
    """The version of torch_xla.

    Raises:
        InputError: it is not installed, or does not load beside this torch.
    """
    if importlib.util.find_spec("torch_xla") is None:
        raise InputError(
            f"--lower needs torch_xla 2.9 beside torch 2.9; here is torch {torch.__version__} "
            "without torch_xla"
        )
    try:
        import torch_xla
    except ImportError as error:
        raise InputError(
            f"--lower: torch_xla does not load beside torch {torch.__version__}: {error}"
        ) from error
    return str(torch_xla.__version__)


def traced_ranks(tp: int) -> TensorParallel:
    """The state of parallelism of one graph that is traced for `tp` ranks."""

    def subgroup(group: Group, count: int) -> Group:
        return TracedRanks(0, count, mesh=_consecutive(group.size(), count))

    library = Library("torch_xla", layers, mappings, subgroup)
    return TensorParallel(TracedRanks(0, tp, mesh=_consecutive(tp, tp)), library)


def _consecutive(size: int, count: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(first, first + count)) for first in range(0, size, count))


def lower(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    states: Sequence[str],
    context: Context | None = None,
    world: int = 1,
) -> Lowered:
    """The graph of `module` for such inputs.

    Args:
        module: on a CPU; it stays as it is.
        inputs: examples by name, in the order of its forward.
        states: names of the buffers that it must rebind.
        context: see `compile.hlo`.
        world: ranks that run the graph.

    Raises:
        InputError: there is no torch_xla.
    """
    check_torch_xla()
    import torch_xla
    import torch_xla.core.xla_model as xm
    import torch_xla.debug.metrics as metrics

    device = torch_xla.device()
    held = copy.deepcopy(module).to(device)
    given = {name: x.to(device) for name, x in inputs.items()}
    torch_xla.sync()
    xm.wait_device_ops()  # whatever is counted from here on, the graph did
    before = dict(held.named_buffers())
    named = {**given, **dict(held.named_parameters()), **before}
    metrics.clear_all()
    with neuron_operators(world), torch.no_grad():
        result = held(**given)
    after = dict(held.named_buffers())
    outputs = list(result) if isinstance(result, tuple) else [result]
    rebound = [name for name in states if after[name] is not before[name]]
    place = {name: len(outputs) + i for i, name in enumerate(rebound)}
    outputs += [after[name] for name in rebound]
    run_by_host = [name for name in metrics.counter_names() if name.startswith("aten::")]
    executed = metrics.metric_data("ExecuteTime")
    native: Any = torch_xla._XLAC
    text = str(native._get_xla_tensors_hlo(outputs))
    handles = dict(zip(native._get_tensors_handle(list(named.values())), named, strict=True))
    _, values = native._get_tensors_xla_device_data_node(outputs)
    names = tuple(handles.get(handle) for handle in native._get_tensors_handle(values))
    number = {name: i for i, name in enumerate(names) if name is not None}
    aliases = [Alias(name, number.get(name), place.get(name)) for name in states]
    report = examine(parse(text), aliases, context)
    problems = [f"{name} is run by the host, in the middle of the graph" for name in run_by_host]
    if executed:
        problems.append(f"the trace was cut {executed[0]} times: a value was asked for")
    report = Report(**{**vars(report), "problems": (*report.problems, *problems)})
    return Lowered(text, report, names)


@contextmanager
def neuron_operators(world: int) -> Iterator[None]:
    """Top-k and NKI kernels are custom calls inside, as with torch-neuronx on a device.

    There are `world` ranks, too: torch_xla leaves the sums of a single one out.
    """
    with (
        mock.patch("torch_xla.runtime.world_size", return_value=world),
        mock.patch("models.causal_lm.draw.top_k", _top_k),
        mock.patch("nki_kernels.launch.on_device", _kernel),
    ):
        yield


def _top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = [*x.shape[:-1], k]
    values, at = _call([x], "AwsNeuronTopK", [shape, shape], [x.dtype, torch.int32], str(k))
    return values, at.long()


def _kernel(kernel: Callable[..., Any], *args: Any, lnc: int = 1, **options: Any) -> Any:
    """An attention kernel: o is shaped as q, the first argument; a state has two more outputs."""
    tensors = [each for each in (*args, *options.values()) if isinstance(each, Tensor)]
    shapes, dtypes = [list(tensors[0].shape)], [tensors[0].dtype]
    if options.get("return_state"):
        shapes += [list(tensors[0].shape[:-1])] * 2
        dtypes += [torch.float32] * 2
    name = getattr(kernel, "__name__", type(kernel).__name__)
    found = _call(tensors, "AwsNeuronCustomNativeKernel", shapes, dtypes, f"{name}[{lnc}]")
    return tuple(found) if len(shapes) > 1 else found[0]


def _call(
    tensors: list[Tensor],
    target: str,
    shapes: list[list[int]],
    dtypes: list[torch.dtype],
    config: str,
) -> list[Tensor]:
    from torch_xla.experimental.stablehlo_custom_call import stablehlo_custom_call

    found = stablehlo_custom_call(tensors, target, shapes, dtypes, backend_config=config)
    return list(found) if isinstance(found, list | tuple) else [found]
