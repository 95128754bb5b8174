"""From a plan to tokens on the Neuron backend, over stand-ins of AWS's packages.

What is shown: every call has the real signatures' arguments, every graph obeys ModelBuilder v2's
rules, weights are found by name, shape and dtype on each rank, and what was traced gives the eager
network's tokens. What is not: that neuronx-cc compiles the graphs, or that a device runs them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compile.artifact import Artifact, open_artifact
from compile.backend import Backend
from compile.buckets import route
from compile.cache import Cache
from compile.failures import NeuronFailure
from compile.graphs import graph_specs
from compile.make import make_artifact
from compile.neuron import Neuron, check_sdk
from compile.plan import Plan, Request, make_plan
from compile.run import CompiledLM
from models.causal_lm import convert, load, load_config
from models.generation import Generator, Sampling, generate
from models.parallel import SINGLE
from nki_kernels.errors import InputError
from tests.compile.stand_ins import installed
from tests.models.causal_lm import families

pytestmark = pytest.mark.null

PROMPT = [5, 9, 2, 7, 1, 3, 8, 4, 6]
SAMPLING = Sampling(temperature=0.9, top_k=4, top_p=0.9)


@pytest.fixture
def neuron() -> Iterator[None]:
    with installed():
        yield


def checkpoint(folder: Path, name: str = "llama-2", **fields: Any) -> Path:
    families.make(name, **({"num_hidden_layers": 2} | fields)).save_pretrained(folder)
    return folder


def plan_of(directory: Path, tp: int, instance: str = "trn1.32xlarge", **changes: Any) -> Plan:
    request = Request(
        instance=instance,
        tp=tp,
        dtype=torch.float32,
        contexts=(8, 16),
        samples=(3,),
        max_new_tokens=6,
        kernels="torch",
    )
    return make_plan(load_config(directory), replace(request, **changes))


def made(
    plan: Plan, directory: Path, folder: Path, candidates: int = 4
) -> tuple[Artifact, Backend]:
    backend = replace(Neuron.for_plan(plan), workdir=folder / "work")
    out = folder / "artefact"
    make_artifact(plan, directory, out, backend, Cache(folder / "cache"), candidates)
    return open_artifact(out, backend.name, backend.versions()), backend


def tokens_of(artifact: Artifact, backend: Backend, samples: int, prompt: list[int]) -> Any:
    network = CompiledLM(artifact, backend.load(artifact, SINGLE))
    shape = route(artifact, len(prompt), samples, 6).shape
    answer = Generator(network, shape).run(
        prompt, samples=samples, max_new_tokens=6, sampling=SAMPLING, seed=3
    )
    return [each.tokens for each in answer.samples]


def eager(directory: Path, samples: int, prompt: list[int], attention: str = "auto") -> Any:
    model = load(directory, dtype=torch.float32, kernels="torch")
    answer = generate(
        model, prompt, samples=samples, max_new_tokens=6, sampling=SAMPLING, seed=3,
        attention=attention,  # type: ignore[arg-type]
    )  # fmt: skip
    return [each.tokens for each in answer.samples]


WIDE = {"num_attention_heads": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "fields", "tp", "changes"),
    [
        pytest.param("llama-2", {}, 1, {}, marks=pytest.mark.slow),
        ("llama-2", {"tie_word_embeddings": True}, 2, {}),
        pytest.param("llama-2", WIDE, 8, {}, marks=pytest.mark.slow),
        pytest.param("llama-2", WIDE, 8, {"kv_split": "replicate"}, marks=pytest.mark.slow),
        pytest.param("mixtral", {}, 2, {}, marks=pytest.mark.slow),
        pytest.param("gemma-2", {}, 2, {}, marks=pytest.mark.slow),
        pytest.param("llama-2", {}, 2, {"attention": "ordinary"}, marks=pytest.mark.slow),
        pytest.param("llama-2", {}, 2, {"instance": "trn2.48xlarge"}, marks=pytest.mark.slow),
    ],
    ids=[
        "one",
        "tied-2",
        "positions-8",
        "replicate-8",
        "experts-2",
        "gemma-2",
        "ordinary-2",
        "trn2-2",
    ],
)
def test_tokens_equal_eager(
    neuron: None,
    tmp_path: Path,
    name: str,
    fields: dict[str, Any],
    tp: int,
    changes: dict[str, Any],
) -> None:
    directory = checkpoint(tmp_path / "checkpoint", name, **fields)
    plan = plan_of(directory, tp, **changes)
    artifact, backend = made(plan, directory, tmp_path)
    for samples, prompt in ((3, PROMPT), (2, PROMPT[:5])):
        way = changes.get("attention", "auto")
        assert tokens_of(artifact, backend, samples, prompt) == eager(
            directory, samples, prompt, way
        )


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights": "int8"}, {"weights": "fp8", "kv_dtype": "fp8"}])
def test_eight_bits(neuron: None, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = checkpoint(tmp_path / "whole", **WIDE)
    directory = tmp_path / "eight"
    convert.quantise(whole, directory, dtype="float32", **options)
    plan = plan_of(directory, 4, instance="inf2.48xlarge")
    artifact, backend = made(plan, directory, tmp_path)
    assert tokens_of(artifact, backend, 3, PROMPT) == eager(directory, 3, PROMPT)
    flags = artifact.manifest["graphs"][0]["flags"][0]
    assert ("fp8e4m3fn" in flags) == ("fp8" in options.values())


@pytest.mark.slow
def test_the_host_may_draw(neuron: None, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "checkpoint")
    artifact, backend = made(plan_of(directory, 2), directory, tmp_path, candidates=0)
    assert tokens_of(artifact, backend, 3, PROMPT) == eager(directory, 3, PROMPT)


def calls() -> Any:
    import libneuronxla

    return libneuronxla.CALLS


def test_flags_layouts_and_resumption(neuron: None, tmp_path: Path) -> None:
    """Graphs that compiled are not compiled again; the priority graph is the first of all."""
    import libneuronxla

    directory = checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    plan = plan_of(directory, 2, instance="trn1.2xlarge")
    libneuronxla.FAILURES.append(("prefill_16", "[NCC_EOOM001] tensors exceed the limit"))
    with pytest.raises(NeuronFailure) as failed:
        made(plan, directory, tmp_path)
    message = str(failed.value)
    log = next((tmp_path / "work").rglob("log-neuron-cc.txt"))
    for words in ("graph prefill_16", "do not fit", "flags: --model-type", "-O1", f"log: {log}"):
        assert words in message, message
    assert not (tmp_path / "artefact").exists()
    assert [call.kind for call in calls()[:2]] == ["wlo", "neff"]  # the graph, then layouts
    assert "decode_1x3_16_5" in str(calls()[0].work_dir)
    assert "layout_opt" in str(calls()[1].work_dir) and "--lnc=1" in calls()[1].flags
    for call in calls():
        level = "-O1" if "prefill" in str(call.work_dir) else "-O2"
        if "layout_opt" not in str(call.work_dir):
            assert level in call.flags.split() and "--target=trn1" in call.flags.split()
            assert "--model-type=transformer" in call.flags.split()
    assert os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE") is None

    libneuronxla.FAILURES.clear()
    before = len(calls())
    artifact, _ = made(plan, directory, tmp_path)
    assert [Path(call.work_dir).parent.name for call in calls()[before:]] == ["prefill_16"]
    # Other graphs take weights as the priority graph wants them.
    content = json.loads(calls()[-1].module)
    assert content["attributes"]["layouts"] == "layouts"
    names = {path.name for path in (artifact.folder / "graphs").iterdir()}
    assert {"layouts.neff", "prefill_16.metaneff", "decode_1x3_8_5.json"} <= names

    before = len(calls())
    made(plan, directory, tmp_path)
    assert len(calls()) == before


def traced_lines(plan: Plan, name: str) -> list[str]:
    from compile import graphs

    backend = Neuron.for_plan(plan)
    with backend.building(plan) as model:
        spec = next(each for each in graphs.graph_specs(plan, 4) if each.name == name)
        from neuronx_distributed import ModelBuilder

        with graphs.bucket(model, spec.shape):
            builder = ModelBuilder(graphs.traced(model, 4)).trace(kwargs=spec.inputs, tag=name)
    return builder.trace_artifacts_collection[name].hlo.lines


@pytest.mark.parametrize(
    ("instance", "tp", "lnc"), [("trn1.2xlarge", 2, 1), ("trn2.48xlarge", 4, 2)]
)
def test_nki_kernels_in_the_graphs(neuron: None, instance: str, tp: int, lnc: int) -> None:
    """kernel[2] where a logical core is two, the target named, and no kernel in the torch form."""
    config = replace(families_config(), layers=2)
    request = Request(instance, tp, torch.bfloat16, (256,), (3,), 6, kernels="nki")
    plan = make_plan(config, request)
    target = plan.instance.target
    found = [line for line in traced_lines(plan, "prefill_256") if "NativeKernel" in line]
    call = f"custom-call AwsNeuronCustomNativeKernel flash_attention_kernel[{lnc}] {target}"
    assert found == [call] * 2
    request = replace(request, attention="bifurcated")
    plan = make_plan(config, request)
    found = [line for line in traced_lines(plan, "decode_1x3_256_5") if "NativeKernel" in line]
    call = f"custom-call AwsNeuronCustomNativeKernel bifurcated_attention_kernel[{lnc}] {target}"
    assert found == [call] * 2
    ordinary = make_plan(config, replace(request, attention="ordinary"))  # it does not divide
    found = [line for line in traced_lines(ordinary, "decode_3x1_256_5") if "NativeKernel" in line]
    assert len(found) == 2 and all("ordinary_attention_kernel[1]" in line for line in found)
    torch_form = make_plan(config, replace(request, kernels="torch"))
    assert not [x for x in traced_lines(torch_form, "decode_1x3_256_5") if "NativeKernel" in x]
    assert Neuron.for_plan(plan).priority == ("decode_1x3_256_5" if lnc == 1 else None)


def families_config() -> Any:
    from tests.models import tiny

    return replace(tiny.CONFIG, h=8, g=4, d=16, max_position=512)


@pytest.mark.parametrize("name", ["llama-2", "qwen2"])
def test_weights_of_ranks_are_shard_checkpoints(neuron: None, tmp_path: Path, name: str) -> None:
    """Bit for bit what `shard_checkpoint` makes, which knows the layers of whole precision."""
    from neuronx_distributed import NxDParallelState, shard_checkpoint
    from safetensors.torch import load_file

    from compile.neuron import environment
    from models.causal_lm import CausalLM
    from models.causal_lm.shards import file_name
    from models.parallel.neuron import from_neuronx_distributed

    directory = checkpoint(tmp_path / "checkpoint", name, num_hidden_layers=1)
    convert.split(directory, tmp_path / "split", 2, "float32")
    whole = load(directory, dtype=torch.float32)
    with (
        environment({"NEURON_PLATFORM_TARGET_OVERRIDE": "trn1"}),
        NxDParallelState(world_size=2, tensor_model_parallel_size=2),
    ):
        model = CausalLM(whole.config, parallel=from_neuronx_distributed(), kernels="torch")
        with pytest.warns(UserWarning, match="redundant"):
            parts = shard_checkpoint(dict(whole.state_dict()), model)
    for rank, part in enumerate(parts):
        ours = load_file(tmp_path / "split" / file_name(2, rank))
        assert set(ours) == set(part)
        for key, weight in ours.items():
            assert torch.equal(weight, part[key]), key


def test_hosts_share_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    from compile.neuron_session import local_ranks

    assert local_ranks(8) == (0, 8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert local_ranks(8) == (4, 4)
    with pytest.raises(InputError, match="do not divide"):
        local_ranks(1)


def test_flags_of_the_user_come_last_and_decide_the_cache(tmp_path: Path) -> None:
    plan = plan_of(checkpoint(tmp_path), 1)
    plain, more = Neuron.for_plan(plan), Neuron.for_plan(plan, more="-O1 --verbose=debug")
    spec = graph_specs(plan, 0)[0]
    assert more.flags(spec) == plain.flags(spec) + " -O1 --verbose=debug"
    assert more.settings(spec) != plain.settings(spec)


def test_workers_are_bounded_by_memory(tmp_path: Path) -> None:
    config = families_config()
    plan = make_plan(config, Request("trn1.32xlarge", 2, torch.float32, (16,), (2, 3, 4), 6,
                                     kernels="torch"))  # fmt: skip
    most = Neuron.for_plan(plan).workers
    assert 1 <= most <= plan.host.workers
    tight = replace(plan, host=replace(plan.host, worker=2**50))
    assert Neuron.for_plan(tight).workers == 1
    assert Neuron.for_plan(tight, workers=3).workers == 3
    with pytest.raises(InputError, match="--workers is 0; it must be at least 1"):
        Neuron.for_plan(plan, workers=0)


@pytest.mark.skipif(os.environ.get("NEURON_SDK") is not None, reason="the SDK is installed")
def test_without_the_sdk() -> None:
    with pytest.raises(InputError, match="needs torch-neuronx"):
        check_sdk()


def test_failures_of_loading_and_running(neuron: None, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "checkpoint", num_hidden_layers=1)
    artifact, backend = made(plan_of(directory, 1, contexts=(8,)), directory, tmp_path)
    session = backend.load(artifact, SINGLE)
    with pytest.raises(NeuronFailure, match="running, graph prefill_8"):
        session.model.loaded_on_neuron = False  # type: ignore[attr-defined]
        session.run("prefill_8", {"tokens": torch.zeros(1, 8, dtype=torch.int32)})
    neff = artifact.folder / "graphs" / "prefill_8.neff"
    neff.write_bytes(b"not a NEFF")
    with pytest.raises(NeuronFailure, match="an invalid graph"):
        backend.load(artifact, SINGLE)
