#!/usr/bin/env python
"""Measure a decode step of the torch form on an NVIDIA GPU: ms, bytes, GB/s, percent of the bound.

    scripts/measure_decode.py --shape llama2-7b --context 8192 --samples 16,32,64,128

The weights are random: a step's time does not depend on them. The bound is the bytes that must be
read once (weights, live keys and values) over the memory's bandwidth. Each row is printed after its
logits were compared with those of the torch reference.
"""

from __future__ import annotations

import sys
from pathlib import Path

# A script's own folder leads the path; a script there must not hide a package of the same name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from models.causal_lm import CacheShape, CausalLM, ModelConfig
from models.causal_lm.captured import CapturedLM
from models.files import output_path, write_json
from models.generation import traffic
from nki_kernels.errors import InputError, require
from nki_kernels.torch_ops import cuda_path
from scripts.command_line import Parser, run

# Published by the makers: "NVIDIA H200 Tensor Core GPU datasheet" and its siblings, GB/s.
BANDWIDTH = {
    "NVIDIA H200": 4800.0,
    "NVIDIA H100 80GB HBM3": 3350.0,
    "NVIDIA A100-SXM4-80GB": 2039.0,
}

_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
SHAPES = {
    "llama2-7b": {
        **_LLAMA,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 1 << 17,
        "rope_theta": 10000.0,
    },
    "llama3-8b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 1 << 17,
        "rope_theta": 500000.0,
    },
}
TOLERANCE = 2.0**-5
"""Largest difference of two bf16 networks' logits: 4 bf16 ulp of the largest logit."""

MEMORY_SHARE = 0.9


@dataclass(frozen=True)
class Row:
    """One measured shape. Times are medians, ms; bytes are what a step must read."""

    attention: str
    samples: int
    context: int
    suffix: int
    path: str
    ms: float
    ms_low: float
    ms_high: float
    bytes: int
    gb_per_s: float
    bound_ms: float
    ratio: float
    error: float


def main() -> None:
    """Measure what the command line asks for."""
    args = arguments()
    require(torch.cuda.is_available(), f"torch {torch.__version__} sees no CUDA device here")
    device = torch.cuda.get_device_name()
    bandwidth = args.bandwidth or BANDWIDTH.get(device)
    if bandwidth is None:
        raise InputError(f"the bandwidth of {device} is not known here; give --bandwidth GB/s")
    json = output_path(args.json, "--json") if args.json else None
    config = ModelConfig.from_hf(SHAPES[args.shape])
    if args.layers:
        config = replace(config, layers=args.layers)
    model = CausalLM(config, dtype=torch.bfloat16, device="cuda")
    draw_weights(model)
    weights = sum(p.nbytes for p in model.parameters()) - model.embed_tokens.weight.nbytes
    print(
        f"{args.shape}, l = {config.layers}, bf16, {weights / 1e9:.2f} GB of weights a step, on"
        f" {device} ({bandwidth:.0f} GB/s), torch {torch.__version__}"
    )
    print(
        "attention   b      m_c   m_d  ms (low, high)           GB     GB/s  bound ms  ratio  path"
    )
    rows = []
    for attention in args.attention:
        for samples in args.samples:
            for context in args.context:
                row = measure(model, weights, attention, samples, context, args, bandwidth)
                if row is not None:
                    rows.append(row)
    if json:
        write_json(json, {"device": device, "shape": args.shape, "rows": [asdict(r) for r in rows]})


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def counts(text: str) -> list[int]:
        values = [int(part) for part in text.split(",")]
        if min(values) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} must hold positive numbers")
        return values

    parser.add_argument("--shape", choices=SHAPES, default="llama2-7b")
    parser.add_argument("-n", "--samples", type=counts, default=[16, 32, 64, 128], metavar="b,b...")
    parser.add_argument("--context", type=counts, default=[8192], metavar="m_c,m_c...")
    parser.add_argument("--suffix", type=int, default=128, help="m_d, live tokens of each sample")
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("bifurcated", "ordinary"),
        default=["bifurcated"],
        help="ordinary: every sample with its own copy of the context, where it fits",
    )
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a quick look")
    parser.add_argument("--steps", type=int, default=50, help="timed steps of each row")
    parser.add_argument("--no-fuse", dest="fuse", action="store_false", help="no torch.compile")
    parser.add_argument("--bandwidth", type=float, help="GB/s, for a GPU that is not in the table")
    parser.add_argument("--json", help="also write the rows here")
    return parser.parse_args()


def measure(
    model: CausalLM,
    weights: int,
    attention: str,
    samples: int,
    context: int,
    args: argparse.Namespace,
    bandwidth: float,
) -> Row | None:
    """Check and time one shape; None where its cache does not fit."""
    G, r = (samples, 1) if attention == "ordinary" else (1, samples)
    shape = CacheShape(G=G, r=r, S_ctx=context, S_dec=args.suffix)
    cache = traffic.allocated_bytes(model.config, 2, shape)
    free = torch.cuda.get_device_properties(0).total_memory * MEMORY_SHARE - weights
    if cache > free:
        print(
            f"{attention:<10}{samples:>4}{context:>9}  does not fit: cache of {cache / 1e9:.0f} GB"
        )
        return None
    captured = CapturedLM(model, fuse=args.fuse)
    captured.allocate(shape)
    generator = torch.Generator("cuda").manual_seed(0)
    for kv in model.caches():
        for name in kv.names:
            getattr(kv, name).normal_(generator=generator)
    tokens = torch.randint(
        model.config.vocab_size, (G, r, 1), dtype=torch.int32, device="cuda", generator=generator
    )
    inputs = (
        tokens,
        torch.full((G,), context, dtype=torch.int32, device="cuda"),
        torch.full((G, r), args.suffix, dtype=torch.int32, device="cuda"),
        torch.zeros(1, dtype=torch.int32, device="cuda"),
    )
    error = compare(captured(*inputs), reference(model, shape)(*inputs))
    times = timed(lambda: captured(*inputs), args.steps)
    ms = statistics.median(times)
    moved = weights + cache
    bound = moved / bandwidth / 1e6
    path = f"cuda graph{', fused' if args.fuse else ''}, attention in {cuda_path(model.dtype)}"
    row = Row(
        attention=attention,
        samples=samples,
        context=context,
        suffix=args.suffix,
        path=path,
        ms=ms,
        ms_low=min(times),
        ms_high=max(times),
        bytes=moved,
        gb_per_s=moved / ms / 1e6,
        bound_ms=bound,
        ratio=ms / bound,
        error=error,
    )
    print(
        f"{attention:<10}{samples:>4}{context:>9}{args.suffix:>6}  {ms:7.3f} ({row.ms_low:.3f},"
        f" {row.ms_high:.3f}) {moved / 1e9:7.2f} {row.gb_per_s:8.0f} {bound:9.3f} {row.ratio:6.2f}"
        f"  {path}",
        flush=True,
    )
    return row


@torch.no_grad()
def draw_weights(model: CausalLM) -> None:
    """Weights at random, drawn as torch's own layers draw theirs; norms stay as they are."""
    generator = torch.Generator("cuda").manual_seed(1)
    for weight in model.parameters():
        if weight is model.embed_tokens.weight:
            weight.normal_(generator=generator)
        elif weight.dim() == 2:
            limit = weight.shape[1] ** -0.5
            weight.uniform_(-limit, limit, generator=generator)


@torch.no_grad()
def reference(model: CausalLM, shape: CacheShape) -> CausalLM:
    """The same weights and cache with attention in plain torch."""
    plain = CausalLM(model.config, dtype=model.dtype, device="meta", kernels="torch")
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.shape, plain.rope_cos, plain.rope_sin = shape, model.rope_cos, model.rope_sin
    for ours, theirs in zip(plain.caches(), model.caches(), strict=True):
        for name in ours.names:
            setattr(ours, name, getattr(theirs, name))
    return plain


def compare(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest logit.

    Raises:
        InputError: it is above TOLERANCE; a wrong step's time is not worth printing.
    """
    error = float((logits - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise InputError(f"logits differ by {error:.3g} of the largest; at most {TOLERANCE} is ok")
    return error


def timed(step: Callable[[], object], steps: int) -> list[float]:
    """Milliseconds of each of `steps` calls, by the GPU's own clock."""
    for _ in range(5):
        step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]


if __name__ == "__main__":
    run(main)
