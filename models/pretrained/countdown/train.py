"""Train the default model: `python -m models.pretrained.countdown.train --out DIR`.

A Llama-architecture network, of 4.8 million parameters unless told otherwise, learns countdown from
problems made as it goes, in bf16 autocast over fp32 weights on CUDA, in fp32 on a CPU. `DIR`
receives, whole or not at all, a Hugging Face checkpoint in bf16, its tokenizer, `task.json`, and
the log of the run. Until then the state of the run lies in `DIR.state.pt`, and `--resume` goes on
from there with the same data in the same order.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from models.pretrained.countdown import data, tokenizer
from nki_kernels.errors import InputError

ROPE_THETA = 10000.0
MAX_POSITIONS = 512
HEAD_SIZE = 64
LOG_POINTS = 50  # on the loss curve
HELDOUT_SEQUENCES = 64  # at most, for the second curve


@dataclass(frozen=True)
class Run:
    """What determines the result of a run; a resumed run must agree in all of it."""

    steps: int
    batch: int
    lr: float
    warmup: int
    seed: int
    layers: int = 6
    width: int = 256


def model_config(run: Run) -> transformers.LlamaConfig:
    """The architecture: tied embeddings, d = 64, h = width / d, half as many key/value heads."""
    h = run.width // HEAD_SIZE
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer.VOCABULARY),
        hidden_size=run.width,
        intermediate_size=3 * run.width,
        num_hidden_layers=run.layers,
        num_attention_heads=h,
        num_key_value_heads=max(h // 2, 1),
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.PAD,
        bos_token_id=tokenizer.BOS,
        # A prompt's answer ends in <eos> after twelve examples, in a line break after fewer.
        eos_token_id=[tokenizer.EOS, tokenizer.LINE_BREAK],
    )


class Batches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training batches by step, so that worker processes make them in any order."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __len__(self) -> int:
        return self.run.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, labels = data.batch(self.run.seed, step, self.run.batch, "train")
        return torch.from_numpy(tokens), torch.from_numpy(labels)


def learning_rate(run: Run, step: int) -> float:
    """Linear warm-up, then a cosine to one hundredth of the peak."""
    if step < run.warmup:
        return run.lr * (step + 1) / run.warmup
    done = (step - run.warmup) / max(1, run.steps - run.warmup)
    return run.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(model: torch.nn.Module, run: Run, fused: bool) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.95), fused=fused)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a run so that `path` is always a whole one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path, run: Run) -> dict[str, Any]:
    """Read the state of a run to go on with it.

    Raises:
        InputError: there is none, or it belongs to a run with other settings.
    """
    if not path.is_file():
        raise InputError(f"--resume: there is no {path} to go on from; start without --resume")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["run"] != asdict(run):
        raise InputError(f"--resume: {path} was made with {state['run']}, not with {asdict(run)}")
    return state


def export(model: Any, out: Path, log: dict[str, Any]) -> None:
    """Write the checkpoint directory beside `out`, then rename it to `out`."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
    # transformers 4 reads this key, transformers 5 writes only `rope_parameters`.
    config["rope_theta"] = ROPE_THETA
    generation = {
        "bos_token_id": tokenizer.BOS,
        "eos_token_id": [tokenizer.EOS, tokenizer.LINE_BREAK],
        "pad_token_id": tokenizer.PAD,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": data.ANSWER_TOKENS,
    }
    files = {
        "config.json": config,
        "generation_config.json": generation,
        "task.json": {"task": "countdown"},
        "training_log.json": log,
    }
    for name, content in files.items():
        (partial / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tokenizer.save(partial, MAX_POSITIONS)
    partial.rename(out)


def train(run: Run, out: Path, *, resume: bool, compiled: bool, workers: int, save_every: int,
          device: torch.device) -> dict[str, Any]:  # fmt: skip
    """Train, write the checkpoint to `out`, and return the log that lies in it.

    Raises:
        InputError: `out` exists, or there is nothing that fits to resume.
    """
    if out.exists():
        raise InputError(f"--out {out} exists; name a new directory or remove it")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    state_path = out.with_name(out.name + ".state.pt")
    state = load_state(state_path, run) if resume else None

    torch.manual_seed(run.seed)
    torch.set_float32_matmul_precision("high")
    model: Any = transformers.LlamaForCausalLM(model_config(run)).to(device)
    optimizer = make_optimizer(model, run, fused=device.type == "cuda")
    start, seconds_before, curve = 0, 0.0, []
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, seconds_before, curve = state["step"], state["seconds"], state["curve"]
    forward = torch.compile(model) if compiled else model
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    unseen = data.batch(run.seed, 0, min(run.batch, HELDOUT_SEQUENCES), "heldout")
    unseen_tokens, unseen_labels = (torch.from_numpy(a).to(device) for a in unseen)
    loader = DataLoader(
        Batches(run),
        batch_size=None,
        sampler=range(start, run.steps),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        pin_memory=device.type == "cuda",
    )

    begin = time.perf_counter()
    log_every = max(1, run.steps // LOG_POINTS)
    window = torch.zeros((), device=device)
    window_steps = 0
    with tqdm(total=run.steps, initial=start, unit="step", mininterval=1.0) as bar:
        for step, (tokens, labels) in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(run, step)
            tokens = tokens.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with autocast:
                loss = forward(input_ids=tokens, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            window += loss.detach()
            window_steps += 1
            bar.update()
            done = step + 1
            if done % log_every == 0 or done == run.steps:
                with torch.no_grad(), autocast:
                    heldout = model(
                        input_ids=unseen_tokens, labels=unseen_labels, use_cache=False
                    ).loss
                point = {
                    "step": done,
                    "seconds": round(seconds_before + time.perf_counter() - begin, 1),
                    "loss": round(window.item() / window_steps, 4),
                    "heldout_loss": round(heldout.item(), 4),
                }
                curve.append(point)
                bar.set_postfix(loss=point["loss"], heldout=point["heldout_loss"])
                window.zero_()
                window_steps = 0
            if done % save_every == 0 and done < run.steps:
                save_state(
                    state_path,
                    {
                        "run": asdict(run),
                        "step": done,
                        "seconds": seconds_before + time.perf_counter() - begin,
                        "curve": curve,
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    },
                )
    log = {
        "run": asdict(run),
        "parameters": sum(p.numel() for p in model.parameters()),
        "hardware": describe(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "precision": "bf16 autocast, fp32 weights" if device.type == "cuda" else "fp32",
        "compiled": compiled,
        "seconds": curve[-1]["seconds"],
        "curve": curve,
    }
    export(model, out, log)
    state_path.unlink(missing_ok=True)
    return log


def describe(device: torch.device) -> str:
    """The name of the hardware that a log states."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    p.add_argument("--out", type=Path, required=True, help="the checkpoint directory to make")
    p.add_argument("--steps", type=int, default=11000)
    p.add_argument("--batch", type=int, default=256, help="sequences of thirteen problems a step")
    p.add_argument("--lr", type=float, default=2e-3, help="peak of the learning rate")
    p.add_argument("--warmup", type=int, default=200, help="steps to the peak")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--width", type=int, default=256, help=f"a multiple of {2 * HEAD_SIZE}")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    p.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="data workers")
    p.add_argument("--save-every", type=int, default=1000, help="steps between states on disk")
    p.add_argument("--compile", action="store_true", help="torch.compile the network")
    p.add_argument("--resume", action="store_true", help="go on from DIR.state.pt")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; bad input ends in one sentence and exit code 2."""
    args = parser().parse_args(argv)
    try:
        for name in ("steps", "batch", "save_every", "layers"):
            if getattr(args, name) < 1:
                option = name.replace("_", "-")
                raise InputError(f"--{option} is {getattr(args, name)}; it must be at least 1")
        if args.width < 1 or args.width % (2 * HEAD_SIZE):
            raise InputError(f"--width is {args.width}; it must be a multiple of {2 * HEAD_SIZE}")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch sees no CUDA device here")
        cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        if not cuda:
            print("training on the CPU, in fp32: hundreds of times slower than a GPU", flush=True)
        log = train(
            Run(
                args.steps,
                args.batch,
                args.lr,
                min(args.warmup, args.steps),
                args.seed,
                args.layers,
                args.width,
            ),
            args.out,
            resume=args.resume,
            compiled=args.compile,
            workers=args.workers,
            save_every=args.save_every,
            device=torch.device("cuda" if cuda else "cpu"),
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    end = log["curve"][-1]
    print(f"{args.out}: {log['parameters'] / 1e6:.2f} M parameters, {log['seconds']:.0f} s on "
          f"{log['hardware']}, loss {end['loss']}, held out {end['heldout_loss']}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
