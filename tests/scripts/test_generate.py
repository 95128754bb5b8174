"""`scripts/generate.py` as a user types it: promised tokens, and what it says of mistakes."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.causal_lm import Tokenizer, load
from models.generation import Sampling, generate
from models.pretrained import DEFAULT_MODEL, example_prompt
from scripts.telling import attention_path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return Tokenizer.load(DEFAULT_MODEL).encode(example_prompt())


def tokens(prompt: list[int], kernels: str, attention: Any, samples: int) -> list[list[int]]:
    """Twelve tokens of each sample, enough to pass the first of several steps of an answer."""
    model = load(DEFAULT_MODEL, dtype="float32", kernels=kernels, attention=attention)
    made = generate(
        model,
        prompt,
        samples=samples,
        max_new_tokens=12,
        sampling=Sampling(temperature=1.0, top_p=0.95),
        seed=11,
        attention=attention,
    )
    return [sample.tokens for sample in made.samples]


@pytest.mark.null
def test_says_which_attention_runs_and_why() -> None:
    model = load(DEFAULT_MODEL, dtype="float32")

    def path(attention: str, samples: int, where: str) -> tuple[str, str]:
        asked = argparse.Namespace(
            attention=attention, samples=samples, max_new_tokens=16, target="trn1"
        )
        return attention_path(asked, model, 300, where)

    assert path("auto", 1, "torch") == ("ordinary", "one sample shares its prompt with nobody")
    assert path("auto", 2, "torch")[0] == "bifurcated"
    assert path("ordinary", 2, "nki, simulated trn1") == ("ordinary", "asked for")
    assert path("auto", 1, "nki")[0] == "ordinary"
    how, why = path("auto", 64, "nki")
    assert how == "bifurcated" and "64 samples of 2 rows" in why


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 7, 64])
def test_same_seed_same_tokens_whatever_kernels_and_attention(
    prompt: list[int], samples: int
) -> None:
    expected = tokens(prompt, "torch", "ordinary", samples)
    assert len({tuple(each) for each in expected}) > samples // 2  # sampling, not greedy
    ways = [("torch", "bifurcated")]
    ways += [("nki", attention) for attention in ("bifurcated", "ordinary", "auto")]
    for kernels, attention in ways:
        assert tokens(prompt, kernels, attention, samples) == expected, (kernels, attention)


@pytest.mark.sim
@pytest.mark.slow
def test_the_command_prints_and_writes_ranked_answers(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run("--device", "simulate", "-n", "4", "--seed", "3", "--json", str(out))
    assert result.returncode == 0, result.stderr
    assert "kernels: nki, simulated trn1" in result.stdout
    assert "the simulator's speed, not a NeuronCore's" in result.stdout
    written = json.loads(out.read_text())
    answers = written["answers"]
    assert [a["rank"] for a in answers] == list(range(1, len(answers) + 1))
    scores = [a["mean_logprob"] for a in answers]
    assert scores == sorted(scores, reverse=True)
    assert sum(a["count"] for a in answers) == 4
    assert all(isinstance(a["right"], bool) for a in answers)
    bytes_ = written["kv_bytes"]
    assert bytes_["ordinary"]["stored_live"] > 3 * bytes_["bifurcated"]["stored_live"]
    assert list(tmp_path.iterdir()) == [out]
    assert written["sampling"] == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.mark.null
@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(tmp_path: Path) -> None:
    arguments = ["-n", "5", "--seed", "3", "--top-k", "20", "--max-new-tokens", "24", "--json"]
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    assert run(*arguments, str(alone)).returncode == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    result = subprocess.run(
        [
            *torchrun,
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
            str(ROOT / "scripts" / "generate.py"),
            *(*arguments, str(shared), "--tp", "2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("rank  mean log p") == 1  # one of them speaks
    assert "2 processes over torch.distributed, each with 2 query and 1 key/value" in result.stdout
    one, two = (json.loads(path.read_text()) for path in (alone, shared))
    assert [each["tokens"] for each in two["samples"]] == [
        each["tokens"] for each in one["samples"]
    ]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Copies of the default checkpoint, each with one thing wrong."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def copy(name: str, **config: object) -> Path:
        target = folder / name
        shutil.copytree(DEFAULT_MODEL, target)
        path = target / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return target

    truncated = copy("truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    no_json = copy("no_json")
    (no_json / "config.json").write_text("{")
    bare = copy("bare")
    (bare / "model.safetensors").unlink()
    yield {
        "moved": copy("moved"),
        "truncated": truncated,
        "no_json": no_json,
        "bare": bare,
        "mamba": copy("mamba", architectures=["MambaForCausalLM"], model_type="mamba"),
        "heads": copy("heads", num_key_value_heads=3),
        "wide": copy("wide", head_dim=272),
    }


MISTAKES = [
    (["--model", "no/such/folder", "--prompt", "x"], "there is no directory"),
    (["--model", "{bare}", "--prompt", "x"], "neither model.safetensors nor"),
    (["--model", "{no_json}", "--prompt", "x"], "not valid JSON"),
    (["--model", "{truncated}", "--prompt", "x"], "not a whole safetensors file"),
    (["--model", "{mamba}", "--prompt", "x"], "supported: LlamaForCausalLM"),
    (["--model", "{heads}", "--prompt", "x"], "must be a multiple of num_key_value_heads"),
    (["--model", "{wide}", "--prompt", "x", "--kernels", "nki"], "256"),
    (["--prompt", "1 " * 2000], "max_position_embeddings"),
    (["-n", "0"], "samples (n) is 0; it must be 1 or more"),
    (["-n", "many"], "invalid int value: 'many'"),
    (["--max-new-tokens", "0"], "max_new_tokens is 0"),
    (["--temperature", "-1"], "temperature is -1.0"),
    (["--top-p", "0"], "top_p is 0.0"),
    (["--dtype", "float16"], "supported: float32, bfloat16"),
    (["--device", "neuron"], "needs AWS's torch-neuronx"),
    (["--attention", "none"], "invalid choice: 'none'"),
    (["--model", "{moved}"], "a prompt is needed"),
    (["--chat"], "no chat template"),
    (["--prompt-file", "no/such/file"], "No such file or directory"),
    (["--json", "no/such/folder/out.json"], "there is no folder"),
    (["--seed", "-1"], "seed is -1"),
    (["--json", ""], "--json is empty"),
    (["--json", "x" * 300], "File name too long"),
    (["--prompt", " "], "the prompt is empty"),
    (
        ["--tp", "3"],
        "tp is 3; 4 query heads and 2 key/value heads can be split over 1, 2, 4, 8, ",
    ),
    (["--tp", "0"], "tp is 0; 4 query heads"),
    (["--tp", "2"], "there is one process; torchrun --nproc-per-node 2 starts as many"),
    (["--kv-split", "halves"], "invalid choice: 'halves'"),
]


@pytest.mark.null
@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, damaged: dict[str, Path], tmp_path: Path
) -> None:
    result = run(*(each.format(**damaged) for each in arguments), cwd=tmp_path)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("generate.py: error: "), result.stderr
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.null
@pytest.mark.slow
def test_eight_bits(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--weights", "int8", "--kv-dtype", "fp8", "-n", "2", "--max-new-tokens", "4"]
    result = run(*options, "--json", str(out))
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    plain = run("-n", "2", "--max-new-tokens", "4", "--json", str(out))
    assert plain.returncode == 0, plain.stderr
    fp32 = json.loads(out.read_text())
    stored = [each["kv_bytes"]["bifurcated"]["stored_padded"] for each in (found, fp32)]
    assert stored[0] * 4 == stored[1]
    kernels = run(*options, "--kernels", "nki", "--json", str(out))
    assert kernels.returncode == 0, kernels.stderr
    simulated = json.loads(out.read_text())
    drawn = [[each["tokens"] for each in given["samples"]] for given in (simulated, found)]
    assert drawn[0] == drawn[1]
