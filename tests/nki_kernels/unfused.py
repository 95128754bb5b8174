"""The decode layer's steps one by one, each leaving its rows in HBM, and what fusing them gains.

    python -m tests.nki_kernels.unfused

prints predicted times: of single calls, of the same steps as one program (where weights load ahead
across steps, as a compiler may arrange), and of the fused kernels.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

import nki_sim
from nki_kernels import launch

nki_sim.binding.bind()

import nki  # noqa: E402
import nki.isa as nisa  # noqa: E402
import nki.language as nl  # noqa: E402

from nki_kernels.attention_state.kernel import BANK, move  # noqa: E402
from nki_kernels.decode_layer.kernel import (  # noqa: E402
    block_product,
    identity_of,
    inverse_norm,
    load_tile,
    turn_blocks,
)

MODULE = "nki_kernels.decode_layer.kernel"


def norm(x: Any, gain: Any) -> Any:
    """RMSNorm of rows [b, H] to HBM."""
    b, H = x.shape
    rows = load_tile(x)
    factors = nl.ndarray((b, H), dtype=gain.dtype, buffer=nl.sbuf)
    move(dst=factors, src=gain.ap(pattern=[[0, b], [1, H]], offset=0))
    inverse = inverse_norm(rows, 1e-5)
    nisa.scalar_tensor_tensor(
        dst=rows, data=rows, op0=nl.multiply, operand0=inverse, op1=nl.multiply, operand1=factors
    )
    out = nl.ndarray((b, H), dtype=x.dtype, buffer=nl.shared_hbm)
    move(dst=out, src=rows)
    return out


def multiply(x: Any, w: Any) -> Any:
    """x [b, K] times w [K, N] to HBM."""
    b, K = x.shape
    N = w.shape[1]
    out = nl.ndarray((b, N), dtype=x.dtype, buffer=nl.shared_hbm)
    turned = nl.ndarray((128, -(-K // 128), b), dtype=x.dtype, buffer=nl.sbuf)
    turn_blocks(turned, 0, load_tile(x), identity_of(x.dtype))
    result = nl.ndarray((b, N), dtype=x.dtype, buffer=nl.sbuf)
    for first in range(0, N, 4 * BANK):
        last = min(first + 4 * BANK, N)
        for i, bank in enumerate(block_product(turned, w, first, last)):
            at = first + i * BANK
            nisa.activation(dst=result[:, at : min(at + BANK, last)], op=nl.copy, data=bank)
    move(dst=out, src=result)
    return out


def turn_heads(t: Any, cos: Any, sin: Any, heads: int) -> Any:
    """The first heads of [b, all·d] rotated, to HBM [b, heads·d]."""
    b, half = cos.shape
    d = 2 * half
    rows = nl.ndarray((b, heads, d), dtype=t.dtype, buffer=nl.sbuf)
    move(dst=rows, src=t[:, 0 : heads * d])
    tables = []
    for table in (cos, sin):
        tile = load_tile(table)
        tables.append(tile.ap(pattern=[[half, b], [0, heads], [1, half]], offset=0))
    parts = []
    for source, table in ((0, 0), (half, 1), (half, 0), (0, 1)):
        part = nl.ndarray((b, heads, half), dtype=nl.float32, buffer=nl.sbuf)
        nisa.tensor_tensor(
            dst=part, data1=rows[:, :, source : source + half], data2=tables[table], op=nl.multiply
        )
        parts.append(part)
    low, high = rows[:, :, 0:half], rows[:, :, half:d]
    nisa.tensor_tensor(dst=low, data1=parts[0], data2=parts[1], op=nl.subtract)
    nisa.tensor_tensor(dst=high, data1=parts[2], data2=parts[3], op=nl.add)
    out = nl.ndarray((b, heads * d), dtype=t.dtype, buffer=nl.shared_hbm)
    move(dst=out, src=rows)
    return out


def gate_rows(gate: Any, up: Any) -> Any:
    """silu(gate) times up, to HBM."""
    a, b = load_tile(gate), load_tile(up)
    nisa.activation(dst=a, op=nl.silu, data=a)
    nisa.tensor_tensor(dst=a, data1=a, data2=b, op=nl.multiply)
    out = nl.ndarray(gate.shape, dtype=gate.dtype, buffer=nl.shared_hbm)
    move(dst=out, src=a)
    return out


@nki.jit
def norm_kernel(x: Any, gain: Any) -> Any:
    """One step: the norm."""
    return norm(x, gain)


@nki.jit
def multiply_kernel(x: Any, w: Any) -> Any:
    """One step: a product."""
    return multiply(x, w)


@nki.jit
def turn_kernel(t: Any, cos: Any, sin: Any, heads: int) -> Any:
    """One step: the rotation."""
    return turn_heads(t, cos, sin, heads)


@nki.jit
def gate_kernel(gate: Any, up: Any) -> Any:
    """One step: the gated activation."""
    return gate_rows(gate, up)


@nki.jit
def qkv_in_steps(x: Any, gain: Any, w: Any, cos: Any, sin: Any, heads: int) -> Any:
    """Norm, product, rotation: one program, rows in HBM between them."""
    t = multiply(norm(x, gain), w)
    return t, turn_heads(t, cos, sin, heads)


@nki.jit
def mlp_in_steps(x: Any, gain: Any, w_gate: Any, w_up: Any, w_down: Any) -> Any:
    """Norm, two products, activation, product: one program, rows in HBM between them."""
    y = norm(x, gain)
    return multiply(gate_rows(multiply(y, w_gate), multiply(y, w_up)), w_down)


def empty(*shape: int, dtype: Any = ml_dtypes.bfloat16) -> np.ndarray:
    return np.empty(shape, dtype)


def us(kernel: Any, arguments: tuple[Any, ...], target: str, **options: Any) -> float:
    """Predicted us of a kernel, launch apart."""
    if isinstance(kernel, str):
        kernel = launch.load(MODULE, kernel)
    profile = nki_sim.profile(kernel, *arguments, target=target, shapes_only=True, **options)
    return float(profile.total_us)


def gains(target: str, b: int, H: int, h: int, g: int, d: int, width: int) -> dict[str, float]:
    """us of norm + QKV + RoPE and of norm + gated MLP: single steps, one program, fused."""
    N = (h + 2 * g) * d
    table = empty(b, d // 2, dtype=np.float32)
    x, gain, hidden = empty(b, H), empty(H), empty(b, width)
    qkv, gate, down = empty(H, N), empty(H, width), empty(width, H)
    one_norm = us(norm_kernel, (x, gain), target)
    turned = us(turn_kernel, (empty(b, N), table, table), target, heads=h + g)
    return {
        "qkv steps": one_norm + us(multiply_kernel, (x, qkv), target) + turned,
        "qkv program": us(qkv_in_steps, (x, gain, qkv, table, table), target, heads=h + g),
        "qkv fused": us(
            "norm_qkv_rope_kernel", (x, gain, qkv, table, table), target, h=h, eps=1e-5
        ),
        "mlp steps": one_norm
        + 2 * us(multiply_kernel, (x, gate), target)
        + us(gate_kernel, (hidden, hidden), target)
        + us(multiply_kernel, (hidden, down), target),
        "mlp program": us(mlp_in_steps, (x, gain, gate, gate, down), target),
        "mlp fused": us("gated_mlp_kernel", (x, gain, gate, gate, down), target, eps=1e-5),
    }


def main() -> None:
    """7B MHA (4 heads a core) and 8B GQA (4 heads, 1 kv head a core), both at tp = 8."""
    for name, h, g, width in (("7B MHA", 4, 4, 1376), ("8B GQA", 4, 1, 1792)):
        for target in ("trn1", "trn2"):
            for b in (16, 64, 128):
                found = gains(target, b, 4096, h, g, 128, width)
                print(
                    f"| {name} | {target} | {b} |",
                    " | ".join(f"{value:.1f}" for value in found.values()),
                    "|",
                )


if __name__ == "__main__":
    main()
