"""The operators as torch sees them: one node in a graph, honest fakes, nothing bound on import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from nki_kernels import InputError, bifurcated_attention, flash_attention, launch
from nki_kernels.cases import Case, FlashCase, make, make_flash
from nki_kernels.torch_ops import _runs_reference

pytestmark = pytest.mark.null

CASE = Case(m_c=21, m_d=4, b=3, h=4, g=2, d=16, G=2, n=2)
FLASH_CASE = FlashCase(B=2, S=9, h=4, g=2, d=16)


class Both(torch.nn.Module):
    """A module that calls both operators, as a model would."""

    def forward(self, decode: dict[str, Any], prefill: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        o, top, total = bifurcated_attention(**decode, scale=0.25, return_state=True)
        return o, top, total, flash_attention(**prefill, scale=0.25)


def inputs() -> tuple[dict[str, Any], dict[str, Any]]:
    decode, prefill = make(CASE), make_flash(FLASH_CASE)
    del decode["scale"], prefill["scale"]
    return decode, prefill


def test_export_sees_one_node_each() -> None:
    arguments = inputs()
    program = torch.export.export(Both(), arguments)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [call for call in calls if call.startswith("bifork")] == [
        "bifork.bifurcated_attention_state.default",
        "bifork.flash_attention.default",
    ]
    assert all("bifork" in call or "getitem" in call for call in calls)
    for exported, eager in zip(program.module()(*arguments), Both()(*arguments), strict=True):
        assert torch.equal(exported, eager)


def test_compile_breaks_no_graph() -> None:
    arguments = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(Both(), backend="eager", fullgraph=True)
    for ours, eager in zip(compiled(*arguments), Both()(*arguments), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.parametrize("name", ["bifurcated_attention", "bifurcated_attention_state"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bifurcated_passes_opcheck(name: str, dtype: str) -> None:
    arguments = make(Case(m_c=21, m_d=4, b=3, h=4, g=2, d=16, dtype=dtype))
    torch.library.opcheck(getattr(torch.ops.bifork, name), (*arguments.values(), "auto", "trn1"))


def test_options_of_bifurcated_pass_opcheck() -> None:
    case = Case(m_c=21, m_d=4, b=3, h=4, g=2, d=16, window=5, position=True, sinks=True)
    arguments = make(case)
    names = ("q", "k_ctx", "v_ctx", "k_suf", "v_suf", "context_len", "suffix_len", "scale")
    first = [arguments.pop(name) for name in names]
    op = torch.ops.bifork.bifurcated_attention
    torch.library.opcheck(op, (*first, "auto", "trn1"), arguments)


@pytest.mark.parametrize("name", ["flash_attention", "flash_attention_state"])
def test_flash_passes_opcheck(name: str) -> None:
    torch.library.opcheck(
        getattr(torch.ops.bifork, name), (*make_flash(FLASH_CASE).values(), "torch", "trn1")
    )


def test_import_binds_nothing() -> None:
    """Importing the operators and running the reference loads neither `nki` nor nki_sim."""
    program = (
        "import sys, torch; from nki_kernels import flash_attention;"
        "q, k = torch.ones(1, 2, 1, 4), torch.ones(1, 4, 2);"
        "flash_attention(q, k, k.transpose(1, 2), scale=1.0);"
        "print([name for name in sys.modules if name.split('.')[0] in ('nki', 'nki_sim')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_auto_on_cpu_is_the_reference() -> None:
    arguments = make_flash(FLASH_CASE)
    assert torch.equal(flash_attention(**arguments), flash_attention(**arguments, kernels="torch"))


def test_nki_on_cuda_is_refused_before_anything_runs() -> None:
    """Checked with fake tensors, so that it needs no GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = {
            name: torch.empty(value.shape, device="cuda") if name in "qkv" else value
            for name, value in make_flash(FLASH_CASE).items()
        }
        with pytest.raises(ValueError, match="kernels='nki' runs on Neuron devices"):
            flash_attention(**arguments, kernels="nki")
        assert flash_attention(**arguments).device.type == "cuda"


PATHS = {
    ("cpu", "auto"): True,
    ("cpu", "nki"): False,
    ("cpu", "torch"): True,
    ("cuda", "auto"): True,
    ("cuda", "torch"): True,
    ("xla", "auto"): False,
    ("xla", "nki"): False,
    ("xla", "torch"): True,
}


@pytest.mark.parametrize("device,kernels", PATHS)
def test_which_path_runs(device: str, kernels: str) -> None:
    assert _runs_reference(torch.device(device), kernels) == PATHS[device, kernels]


def test_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="q is on device mps; cpu, cuda and xla"):
        _runs_reference(torch.device("mps"), "auto")


def test_on_device_launches_on_as_many_cores_as_asked() -> None:
    class Kernel:
        cores = 1

        def __getitem__(self, lnc: int) -> Kernel:
            launched = Kernel()
            launched.cores = lnc
            return launched

        def __call__(self, *args: Any, **options: Any) -> Any:
            return self.cores, args, options

    assert launch.on_device(Kernel(), 5, scale=2.0) == (1, (5,), {"scale": 2.0})
    assert launch.on_device(Kernel(), 5, lnc=2) == (2, (5,), {})
