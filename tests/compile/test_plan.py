"""The plan: bytes against what a network really allocates, graphs, limits, refusals, advice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compile import memory
from compile.instances import find_instance
from compile.plan import Request, check_buckets, make_plan
from compile.report import as_json, as_text
from models.causal_lm import CacheShape, CausalLM, ModelConfig, load_config
from models.causal_lm.storage import open_files
from models.generation.single import plan_shape
from models.parallel import TensorParallel
from models.parallel.group import Ranks
from models.pretrained import DEFAULT_MODEL
from nki_kernels.errors import InputError
from tests.models.tiny import CONFIG

pytestmark = pytest.mark.null

ROOT = Path(__file__).parents[2]

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def request(**changes: Any) -> Request:
    """A small one, in the torch form, which records no kernel."""
    fields: dict[str, Any] = {
        "instance": "trn1.2xlarge",
        "tp": 1,
        "dtype": torch.float32,
        "contexts": (32,),
        "samples": (4,),
        "max_new_tokens": 16,
        "kernels": "torch",
    }
    return Request(**fields | changes)


@pytest.mark.parametrize("attention", ["bifurcated", "ordinary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        {"qk_norm": True, "output_norms": True},
        {"experts": 4, "experts_per_token": 2},
        {"weights": "int8", "kv_dtype": "fp8"},
        {"weights": "fp8"},
    ],
)
def test_bytes_are_those_that_a_network_allocates(
    changes: dict[str, Any], dtype: torch.dtype, attention: Any
) -> None:
    config = replace(CONFIG, **changes)
    plan = make_plan(config, request(dtype=dtype, attention=attention))
    model = CausalLM(config, dtype=dtype)
    model.allocate(plan.cache)
    assert plan.core.weights == sum(p.nbytes for p in model.parameters())
    assert plan.core.kv == model.cache_bytes()
    assert plan.core.tables == model.rope_cos.nbytes + model.rope_sin.nbytes


@pytest.mark.parametrize("kv_split", ["positions", "replicate"])
@pytest.mark.parametrize("tp", [2, 4])
def test_bytes_of_a_rank(tp: int, kv_split: Any) -> None:
    """At tp = 4 two ranks read the same key/value head."""
    network = memory.build(CONFIG, tp, torch.float32, "torch", "trn1", kv_split)
    model = CausalLM(CONFIG, parallel=TensorParallel(Ranks(tp - 1, tp)), kv_split=kv_split)
    shape = CacheShape(G=1, r=4, S_ctx=33, S_dec=7)
    for cache in model.caches():
        held = replace(shape, S_ctx=-(-33 // model.parts))
        cache.allocate(held, model.heads.g, CONFIG.d, torch.float32, torch.device("cpu"))
    assert network.kv(shape) == model.cache_bytes()
    mine = [p for name, p in model.named_parameters() if "rank_util" not in name]
    assert network.weights == pytest.approx(sum(p.nbytes for p in mine), abs=64)


def test_weights_are_the_checkpoint_that_ships() -> None:
    stored = open_files([DEFAULT_MODEL / "model.safetensors"])
    elements = sum(torch.Size(each.shape).numel() for each in stored.values())
    network = memory.build(load_config(DEFAULT_MODEL), 1, torch.bfloat16, "torch", "trn1")
    assert network.weights == 2 * elements


def test_graphs_of_short_and_long_contexts() -> None:
    config = replace(CONFIG, max_position=20000)
    plan = make_plan(config, request(contexts=(32, 4096, 6144, 7000), samples=(1, 4)))
    prefill = [(g.name, g.queries) for g in plan.graphs if g.phase == "prefill"]
    assert prefill == [(f"prefill_{S}", S) for S in (32, 4096, 6144, 7000)]
    assert ["chunks" in g.why for g in plan.graphs[:4]] == [False, False, True, True]
    decode = [g for g in plan.graphs if g.phase == "decode"]
    wanted = [plan_shape(S, b, 16) for S in (32, 4096, 6144, 7000) for b in (1, 4)]
    assert [g.shape for g in decode] == wanted
    assert len({g.name for g in plan.graphs}) == len(plan.graphs)
    assert all(g.why and "." not in g.name for g in plan.graphs)


@pytest.mark.parametrize("way", ["bifurcated", "ordinary"])
def test_the_most_that_fits_is_the_most(way: Any) -> None:
    config = ModelConfig.from_hf(LLAMA_70B)
    asked = request(
        instance="trn1.32xlarge", tp=32, dtype=torch.bfloat16, contexts=(1024,), samples=(64,)
    )
    plan = make_plan(config, asked)
    found = next(each for each in plan.largest if each.way == way)

    def fits(m_c: int, b: int) -> bool:
        shape = plan_shape(m_c, b, asked.max_new_tokens, way)
        space = plan.core.workspace
        return memory.core_memory(plan.network, plan.instance, shape, 1024, space).fits

    b, m_c = found.samples[1024], found.context[64]
    assert fits(1024, b) and not fits(1024, b + 1)
    assert fits(m_c, 64) and (m_c == 131072 - 16 or not fits(m_c + 1, 64))


def test_bifurcated_fits_more_than_ordinary() -> None:
    config = ModelConfig.from_hf(LLAMA_70B)
    asked = request(
        instance="trn1.32xlarge", tp=32, dtype=torch.bfloat16, contexts=(8192,), samples=(64,)
    )
    bifurcated, ordinary = make_plan(config, asked).largest
    assert bifurcated.samples[8192] > 5 * ordinary.samples[8192] > 0
    assert bifurcated.context[64] > ordinary.context[64] > 0


def test_suggestions_work() -> None:
    config = ModelConfig.from_hf(LLAMA_70B)
    asked = request(
        instance="trn1.32xlarge", tp=8, dtype=torch.bfloat16, contexts=(1024,), samples=(4,)
    )
    plan = make_plan(config, asked)
    assert not plan.core.fits
    assert "--tp 16" in plan.suggestions
    assert make_plan(config, replace(asked, tp=16)).core.fits
    assert make_plan(config, replace(asked, tp=32)).suggestions == ()
    assert "--weights int8" in plan.suggestions
    assert make_plan(replace(config, weights="int8"), asked).core.fits
    many = replace(asked, tp=32, contexts=(16384,), samples=(128,), attention="ordinary")
    ordinary = make_plan(config, many)
    assert not ordinary.core.fits
    assert any(each.startswith("--attention bifurcated") for each in ordinary.suggestions)


def test_a_million_instructions_are_warned_of() -> None:
    config = ModelConfig.from_hf(LLAMA_70B)
    asked = request(instance="trn1.32xlarge", tp=8, contexts=(4096,), dtype=torch.bfloat16)
    plan = make_plan(config, asked)
    graph = plan.graphs[0]
    assert graph.count.total > 1_000_000
    assert any(each.startswith(f"{graph.name} has about") for each in plan.warnings)


def test_auto_kernels_say_why_not() -> None:
    plan = make_plan(replace(CONFIG, d=272), request(kernels="auto"))
    assert plan.network.kernels == "torch" and "head size d = 272" in plan.network.why
    with pytest.raises(InputError, match="head size d = 272; at most 256"):
        make_plan(replace(CONFIG, d=272), request(kernels="nki"))


def test_kernels_read_caches_in_fp8() -> None:
    plan = make_plan(replace(CONFIG, kv_dtype="fp8"), request(kernels="auto"))
    assert plan.network.kernels == "nki"
    assert all("does not have caches in fp8" in g.why for g in plan.graphs if g.phase == "decode")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instance": "p5.48xlarge"}, "known: trn1"),
        ({"tp": 4}, "has 2 cores"),
        ({"tp": 0}, "tp is 0; it must be at least 1"),
        ({"instance": "trn1.32xlarge", "tp": 4}, "runtime supports 1, 2, 8, 16, 32"),
        ({"instance": "inf2.48xlarge", "tp": 24}, "4 query heads and 2 key/value heads"),
        ({"contexts": (64, 32)}, "context buckets are 64,32"),
        ({"contexts": (0, 32)}, "context buckets are 0,32"),
        ({"samples": (4, 4)}, "samples buckets are 4,4"),
        ({"samples": ()}, "samples buckets are none"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"contexts": (120,)}, "136 positions; the model has 128"),
        ({"largest": (33, 4)}, "33 prompt tokens; the buckets cover 1 to 32"),
        ({"largest": (32, 5)}, "5 samples; the buckets cover 1 to 4"),
        ({"attention": "both"}, "attention is 'both'"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(CONFIG, request(**changes))


def test_covered_requests_pass() -> None:
    check_buckets(CONFIG, request(largest=(32, 4)))


def test_every_figure_says_how_it_is_known() -> None:
    plan = make_plan(CONFIG, request())
    content = json.loads(json.dumps(as_json(plan)))
    assert content["core_memory"]["computed"]["kv"] == plan.core.kv
    assert content["core_memory"]["total"] == plan.core.total
    kinds = {"computed", "predicted", "estimated"}
    for graph in content["graphs"]:
        assert graph["instructions"]["attention"]["evidence"] in kinds
        assert graph["instructions"]["rest"]["evidence"] == "estimated"
    text = as_text(plan)
    for graph in plan.graphs:
        assert graph.name in text
    assert find_instance("trn1.2xlarge").source in text


@pytest.mark.slow
def test_a_70b_plan_takes_less_than_500_mb(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA_70B))
    code = (
        "import sys\n"
        "from scripts.planning import main\n"
        "main(sys.argv[1:])\n"
        "print(*[line for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    options = ["--dry-run", "--config", config, "--instance", "trn1.32xlarge", "--tp", "32"]
    command = [sys.executable, "-c", code, *map(str, options), "--context", "1024,8192"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "decode_1x16_8192_127" in done.stdout
    peak, unit = done.stdout.split()[-2:]  # of this process; getrusage counts its parent's, too
    assert unit == "kB" and int(peak) * 1024 < 500e6
