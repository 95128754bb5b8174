"""The stand-ins of AWS's packages have the real signatures and refuse what the real ones refuse.

NEURONX_DISTRIBUTED=CHECKOUT (a work tree or a bare repository of aws-neuron/neuronx-distributed)
makes the first test compare every signature with the real source; without it that one is skipped.
"""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compile.stand_ins import PACKAGES, installed
from tests.models.tiny import int32

pytestmark = pytest.mark.null

CHECKOUT = os.environ.get("NEURONX_DISTRIBUTED")
OURS = {"world.py"}  # files without a counterpart


@pytest.fixture
def neuron(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    with installed():
        yield


# --- signatures


def signatures(source: str) -> dict[str, list[tuple[str, str, str]]]:
    """Of each public function and method: (name, kind, default) of its parameters."""
    found = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and (
                not node.name.startswith("_") or node.name == "__init__"
            ):
                found[prefix + node.name] = parameters(node.args)

    visit(ast.parse(source).body, "")
    return found


def parameters(args: ast.arguments) -> list[tuple[str, str, str]]:
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + [*args.defaults]
    rows = [(each.arg, "", default) for each, default in zip(plain, defaults, strict=True)]
    if args.vararg:
        rows.append((args.vararg.arg, "*", None))
    named = zip(args.kwonlyargs, args.kw_defaults, strict=True)
    rows += [(each.arg, "keyword", default) for each, default in named]
    if args.kwarg:
        rows.append((args.kwarg.arg, "**", None))
    return [(name, kind, ast.unparse(default) if default else "") for name, kind, default in rows]


def real_source(path: str) -> str:
    assert CHECKOUT is not None
    file = Path(CHECKOUT) / "src" / path
    if file.exists():
        return file.read_text(encoding="utf-8")
    command = ["git", f"--git-dir={CHECKOUT}", "show", f"HEAD:src/{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(CHECKOUT is None, reason="NEURONX_DISTRIBUTED names no checkout")
def test_signatures_are_the_real_ones() -> None:
    compared = 0
    for file in sorted((PACKAGES / "neuronx_distributed").rglob("*.py")):
        path = file.relative_to(PACKAGES).as_posix()
        ours = {} if file.name in OURS else signatures(file.read_text(encoding="utf-8"))
        if not ours:
            continue
        real = signatures(real_source(path))
        for name, rows in ours.items():
            if name.endswith("preshard_hook") or name.startswith(("_", "mark")):
                continue
            assert rows == real.get(name), f"{path}: {name}"
            compared += 1
    assert compared > 50


def test_signatures_are_read_right() -> None:
    assert signatures("class A:\n    def f(self, a, *b, c=1, d, **e): ...") == {
        "A.f": [
            ("self", "", ""), ("a", "", ""), ("b", "*", ""),
            ("c", "keyword", "1"), ("d", "keyword", ""), ("e", "**", ""),
        ]
    }  # fmt: skip
    assert signatures("def f(a, b=None): ...")["f"][1] == ("b", "", "None")


# --- rules of ModelBuilder v2


class Counter(nn.Module):
    """Adds to a state; what it does wrong is asked for."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("state", torch.zeros(3), persistent=False)
        self.register_buffer("other", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.wrong == "in place":
            self.state.add_(x)
        elif self.wrong == "dtype":
            self.state = (self.state + x).to(torch.bfloat16)
        elif self.wrong == "shape":
            self.state = torch.cat((self.state, x))
        elif self.wrong == "input":
            x.add_(1)
        elif self.wrong == "value":
            return x * float(x.sum())
        elif self.wrong == "host":
            x = x + torch.arange(3.0)
        else:
            self.state = self.state + x
        if y is not None and self.wrong != "one graph":
            self.other = self.other + y
        if self.wrong == "one graph" and y is None:
            self.other = self.other + x
        return self.state.sum() * self.weight


ONE = {"x": torch.ones(3)}


def build(model: nn.Module, world: int = 1, **inputs: Any) -> Any:
    from neuronx_distributed import ModelBuilder, NxDParallelState

    with NxDParallelState(world_size=world, tensor_model_parallel_size=world):
        builder = ModelBuilder(model)
        for tag, kwargs in (inputs or {"graph": ONE}).items():
            builder.trace(kwargs=kwargs, tag=tag)
    return builder


def test_states_last_from_call_to_call(neuron: None, tmp_path: Path) -> None:
    made = build(Counter()).compile(compiler_workdir=tmp_path)
    with pytest.raises(RuntimeError, match="set_weights"):
        made(x=torch.ones(3))
    made.set_weights([{"weight": torch.full((3,), 2.0), "other": torch.zeros(3)}])
    made.to_neuron()
    assert made(x=torch.ones(3)).tolist() == [6.0] * 3
    assert made(x=torch.ones(3)).tolist() == [12.0] * 3
    assert made.read_from_neuron_buffer("state", 0).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("in place", "writes into state in place"),
        ("dtype", "is rebound to torch.bfloat16"),
        ("shape", r"is rebound to torch.float32\[6\]"),
        ("input", "writes into input x in place"),
        ("value", "meta"),
        ("host", "takes tensors on xla and on cpu"),
    ],
)
def test_what_cannot_be_traced(neuron: None, wrong: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        build(Counter(wrong))


def test_no_weights_on_meta(neuron: None) -> None:
    with pytest.raises(RuntimeError, match="meta tensor"):
        build(Counter().to("meta"))


def test_every_graph_rebinds_every_state(neuron: None, tmp_path: Path) -> None:
    graphs = {"a": ONE, "b": {"x": torch.ones(3), "y": torch.ones(3)}}
    with pytest.raises(AssertionError, match="b rebinds"):
        build(Counter("one graph"), **graphs).compile(compiler_workdir=tmp_path)


class Flag(nn.Module):
    def forward(self, x: Tensor, on: bool = False) -> Tensor:
        return x


class Varied(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0]


@pytest.mark.parametrize(
    ("model", "kwargs", "error", "message"),
    [
        (Flag(), ONE, ValueError, "non-None default"),
        (Varied(), ONE, NotImplementedError, "not supported"),
        (Counter(), {"x": 1.0}, ValueError, "must be a tensor"),
        (Counter(), {"z": torch.ones(3)}, ValueError, "unexpected keys"),
        (Counter(), {"y": torch.ones(3)}, ValueError, "Missing required"),
        (Counter(), {}, ValueError, "Missing required"),
    ],
)
def test_rules_of_signatures(
    neuron: None, model: nn.Module, kwargs: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        build(model, graph=kwargs)


def test_tags_have_no_dots(neuron: None, tmp_path: Path) -> None:
    builder = build(Counter())
    builder.trace_artifacts_collection["a.b"] = builder.trace_artifacts_collection.pop("graph")
    with pytest.raises(KeyError, match=r"got: a\.b"):
        builder.compile(compiler_workdir=tmp_path)


def test_compiler_args_name_every_graph(neuron: None, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Missing compiler args"):
        build(Counter()).compile(compiler_workdir=tmp_path, compiler_args={"other": "-O1"})
    with pytest.raises(RuntimeError, match="failed"):
        build(Counter()).compile(compiler_workdir=tmp_path, compiler_args="--fast")


def test_equal_shapes_need_a_name(neuron: None, tmp_path: Path) -> None:
    made = build(Counter(), a=ONE, b=ONE).compile(compiler_workdir=tmp_path)
    made.set_weights([{"weight": torch.ones(3), "other": torch.zeros(3)}])
    made.to_neuron()
    with pytest.raises(AssertionError, match="2 possible routes"):
        made(x=torch.ones(3))
    assert made(x=torch.ones(3), model_name="b").tolist() == [3.0] * 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.ones(3)}, "no tensor for other"),
        ({"weight": torch.ones(3).bfloat16(), "other": torch.zeros(3)}, "the graph takes"),
    ],
)
def test_weights_are_found_by_name_and_dtype(
    neuron: None, tmp_path: Path, weights: dict[str, Tensor], message: str
) -> None:
    made = build(Counter()).compile(compiler_workdir=tmp_path)
    made.set_weights([weights])
    with pytest.raises(RuntimeError, match=message):
        made.to_neuron()


def test_top_k_of_integers_is_refused(neuron: None) -> None:
    class Top(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            from torch_neuronx.xla_impl.ops import TopK

            return TopK.apply(x, 2, dim=-1)[0]

    with pytest.raises(RuntimeError, match="NCC_EVRF013"):
        build(Top(), graph={"x": int32([1, 2, 3])})


def test_nothing_stays_registered(neuron: None) -> None:
    import sys

    from neuronx_distributed import ModelBuilder

    assert ModelBuilder.__module__.startswith("neuronx_distributed")
    with installed():
        pass
    assert str(PACKAGES) in sys.path


def test_what_the_host_would_run_is_refused(neuron: None) -> None:
    """A view of another dtype, even of the same one, cuts an XLA graph in two."""

    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.dtype)

    with pytest.raises(RuntimeError, match="no operation of XLA"):
        build(View(), graph=ONE)
