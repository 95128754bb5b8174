"""Writes the HLO texts beside this file: graphs of the tiny network, and two with errors in them.

PJRT_DEVICE=CPU python -m tests.compile.lowered.record     (torch 2.9.0 and torch_xla 2.9.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compile.hlo import Context
from compile.lowering import Lowered, lower, traced_ranks
from models.causal_lm import CacheShape, CausalLM
from models.parallel import SINGLE
from tests.models import tiny

HERE = Path(__file__).parent
SHAPE = CacheShape(G=1, r=6, S_ctx=28, S_dec=4)  # 28, 14 and 7 are no other dimension's size
STATES = [f"model.layers.0.self_attn.cache.{name}" for name in ("k_ctx", "v_ctx", "k_suf", "v_suf")]
CONTEXT = Context(tuple(STATES[:2]), (28, 14), samples=6)


def inputs(phase: str) -> dict[str, Tensor]:
    """Of the tiny network's step."""
    rows = SHAPE.G, SHAPE.r
    tokens = (1, SHAPE.S_ctx) if phase == "prefill" else (*rows, 1)
    return {
        "tokens": torch.zeros(tokens, dtype=torch.int32),
        "context_len": torch.ones(1, dtype=torch.int32),
        "suffix_len": torch.ones(rows, dtype=torch.int32),
        "group": torch.zeros(1, dtype=torch.int32),
        "u": torch.zeros(*rows, 1),
        "temperature": torch.ones(rows),
        "top_k": torch.ones(rows, dtype=torch.int32),
        "top_p": torch.ones(rows),
    }


def network(phase: str, kernels: str = "torch", tp: int = 1) -> Lowered:
    """A graph of one layer of the tiny network that draws among four tokens."""
    model = CausalLM(
        replace(tiny.CONFIG, layers=1),
        kernels=kernels,
        parallel=traced_ranks(tp) if tp > 1 else SINGLE,
    )
    model.allocate(SHAPE)
    context = CONTEXT if phase == "decode" and kernels == "torch" else None
    return lower(model.sampled(4), inputs(phase), STATES, context, tp)


class Copies(nn.Module):
    """Ordinary attention as most write it: every sample gets its own keys, then a sort, a draw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("k_ctx", torch.zeros(2, 12, 16), persistent=False)
        self.register_buffer("left", torch.zeros(3), persistent=False)

    def forward(self, q: Tensor) -> Tensor:
        """`q` [6, 2, 12]."""
        self.k_ctx = self.k_ctx + 1.0
        keys = torch.repeat_interleave(self.k_ctx.unsqueeze(0), 6, 0)  # [6, 2, 12, 16]
        logits = torch.einsum("bgd,bgds->bgs", q, keys * 2.0)
        ranked = logits.sort(-1).values
        return torch.multinomial(ranked.flatten(1).exp(), 1)


class Cut(nn.Module):
    """Asks for a value in the middle, computes with integers, and writes a state with a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` i32[3, 3]."""
        self.state = (self.state + 1.0).view(torch.float32)
        total = torch.zeros(3, 3, dtype=torch.int32, device=x.device)
        total = total.index_add(0, x[0].long(), x)
        return torch.einsum("ab,bc->ac", x, x) + total


def main(only: Sequence[str] = ()) -> None:
    """Writes each text with what it came from above it."""
    import torch_xla

    torch.manual_seed(0)
    made = {
        "prefill": network("prefill"),
        "decode_tp4": network("decode", tp=4),
        "decode_nki": network("decode", "nki"),
        "copies": lower(Copies(), {"q": torch.ones(6, 2, 12)}, ["k_ctx", "left"]),
        "cut": lower(Cut(), {"x": torch.ones(3, 3, dtype=torch.int32)}, ["state"]),
    }
    for name, each in made.items():
        versions = f"torch {torch.__version__}, torch_xla {torch_xla.__version__}"
        head = [f"// {versions}, PJRT_DEVICE=CPU; tests/compile/lowered/record.py"]
        head += [f"// alias {x.name} {x.parameter} {x.output}" for x in each.report.aliases]
        head += [f"// problem {x}" for x in each.report.problems]
        (HERE / f"{name}.hlo").write_text("\n".join([*head, each.text.strip()]) + "\n")


if __name__ == "__main__":
    main()
