"""A decode layer without its attention: norm + QKV + RoPE, KV write, projection, norm + gated MLP.

A step of up to 128 rows (samples times tokens) is bound by the weights it must read. Rows are the
stationary operand, weights move past them once, and what comes before and after (norms, rotations,
activations) happens while weights load. README.md has the numbers.

Legal on NeuronCore-v2 and later and in NKI 0.2 to 0.7. Imports only `nki` and pieces under that
rule.
"""

from __future__ import annotations

import nki
import nki.isa as nisa
import nki.language as nl

from nki_kernels.attention_state.kernel import BANK, PARTITIONS, move

BANKS = 3  # PSUM banks that one product of spread rows fills, of eight
LOAD_BYTES = 16 * 1024  # bytes a partition of one load of weights


@nki.jit
def norm_qkv_rope_kernel(x, gain, w, cos, sin, h, eps):
    """RMSNorm, the three projections of attention, and the rotation of queries and keys.

    x          [b, H]              float32 or bfloat16, b <= 128, H a multiple of 128
    gain       [H]                 the norm's
    w          [H, (h + 2g)·d]     columns: h query heads, g key heads, g value heads; d <= 512
    cos, sin   float32 [b, d/2]    of each row's position
    h, eps     compile-time: query heads; what is added to the mean square

    Returns q [b, h, d], k [b, g, d], v [b, g, d], all in x's dtype.
    """
    b, _ = x.shape
    half = cos.shape[1]
    d = 2 * half
    heads = w.shape[1] // d
    g = (heads - h) // 2
    q = nl.ndarray((b, h, d), dtype=x.dtype, buffer=nl.shared_hbm)
    k = nl.ndarray((b, g, d), dtype=x.dtype, buffer=nl.shared_hbm)
    v = nl.ndarray((b, g, d), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = load_tile(x)
    columns = spread(rows, load_gain(gain), identity_of(x.dtype))
    inverse = inverse_norm(rows, eps)
    turning = turning_factors(cos, sin, inverse)
    out = nl.ndarray((b, heads, d), dtype=x.dtype, buffer=nl.sbuf)
    together = BANK // d  # heads of a PSUM bank
    most = BANKS * together
    for first in range(0, heads, most):
        last = min(first + most, heads)
        banks = product(columns, w, first * d, last * d, together * d)
        for i in range(len(banks)):
            at = first + i * together
            end = min(at + together, last)
            turned = max(at, min(end, h + g))
            if turned > at:
                rotate(out[:, at:turned, :], banks[i], turning)
            if end > turned:
                nisa.activation(
                    dst=out[:, turned:end, :],
                    op=nl.copy,
                    data=banks[i][:, (turned - at) * d : (end - at) * d],
                    scale=inverse,
                )
    move(dst=q, src=out[:, 0:h, :])
    move(dst=k, src=out[:, h : h + g, :])
    move(dst=v, src=out[:, h + g : heads, :])
    return q, k, v


@nki.jit
def gated_mlp_kernel(x, gain, w_gate, w_up, w_down, eps):
    """RMSNorm and the gated MLP: (silu(y·w_gate) * (y·w_up))·w_down with y the normed rows.

    x              [b, H]    float32 or bfloat16, b <= 128, H a multiple of 128
    gain           [H]       the norm's
    w_gate, w_up   [H, I]    this core's columns; any I
    w_down         [I, H]
    eps            compile-time

    Returns [b, H] in x's dtype: this core's share of the sum over cores.
    """
    b, H = x.shape
    width = w_gate.shape[1]
    out = nl.ndarray((b, H), dtype=x.dtype, buffer=nl.shared_hbm)
    identity = identity_of(x.dtype)
    rows = load_tile(x)
    columns = spread(rows, load_gain(gain), identity)
    inverse = inverse_norm(rows, eps)
    blocks = -(-width // PARTITIONS)
    hidden = nl.ndarray((PARTITIONS, blocks, b), dtype=x.dtype, buffer=nl.sbuf)
    for first in range(0, width, BANKS * BANK):
        last = min(first + BANKS * BANK, width)
        gates = product(columns, w_gate, first, last, BANK)
        # silu leaves PSUM while w_up loads.
        opened = []
        for gate in gates:
            tile = nl.ndarray(gate.shape, dtype=nl.float32, buffer=nl.sbuf)
            nisa.activation(dst=tile, op=nl.silu, data=gate, scale=inverse)
            opened.append(tile)
        ups = product(columns, w_up, first, last, BANK)
        for i in range(len(ups)):
            # The norm's factor of w_up's product commutes with w_down, and waits for the end.
            mixed = nl.ndarray(ups[i].shape, dtype=x.dtype, buffer=nl.sbuf)
            nisa.tensor_tensor(dst=mixed, data1=ups[i], data2=opened[i], op=nl.multiply)
            turn_blocks(hidden, (first + i * BANK) // PARTITIONS, mixed, identity)
    result = nl.ndarray((b, H), dtype=x.dtype, buffer=nl.sbuf)
    for first in range(0, H, 4 * BANK):
        last = min(first + 4 * BANK, H)
        banks = block_product(hidden, w_down, first, last)
        for i in range(len(banks)):
            at = first + i * BANK
            nisa.activation(
                dst=result[:, at : min(at + BANK, last)], op=nl.copy, data=banks[i], scale=inverse
            )
        move(dst=out[:, first:last], src=result[:, first:last])
    return out


@nki.jit
def projection_kernel(x, w):
    """x [b, K] times w [K, N], b <= 128, any K and N: this core's share of the sum over cores."""
    b, K = x.shape
    N = w.shape[1]
    out = nl.ndarray((b, N), dtype=x.dtype, buffer=nl.shared_hbm)
    rows = load_tile(x)
    turned = nl.ndarray((PARTITIONS, -(-K // PARTITIONS), b), dtype=x.dtype, buffer=nl.sbuf)
    turn_blocks(turned, 0, rows, identity_of(x.dtype))
    result = nl.ndarray((b, N), dtype=x.dtype, buffer=nl.sbuf)
    for first in range(0, N, 4 * BANK):
        last = min(first + 4 * BANK, N)
        banks = block_product(turned, w, first, last)
        for i in range(len(banks)):
            at = first + i * BANK
            nisa.activation(dst=result[:, at : min(at + BANK, last)], op=nl.copy, data=banks[i])
        move(dst=out[:, first:last], src=result[:, first:last])
    return out


@nki.jit
def write_kv_kernel(k, v, k_suf, v_suf, slots):
    """Store a step's keys and values to their rows of the suffix caches, in place.

    k, v           [rows, g, d]    rows = samples·tokens, at most 128
    k_suf, v_suf   [g, N, d]
    slots          int32 [rows]    the cache row of each; for each kv head the same

    Returns k_suf, v_suf.
    """
    rows, g, d = k.shape
    N = k_suf.shape[1]
    index = nl.ndarray((rows, 1), dtype=nl.int32, buffer=nl.sbuf)
    move(dst=index, src=slots.ap(pattern=[[1, rows], [1, 1]], offset=0))
    for new, cache in ((k, k_suf), (v, v_suf)):
        nisa.dma_copy(
            dst=cache.reshape((g * N, d)).ap(
                pattern=[[d, rows], [N * d, g], [1, d]],
                offset=0,
                vector_offset=index,
                indirect_dim=0,
            ),
            src=load_tile(new),
        )
    return k_suf, v_suf


def identity_of(dtype):
    """[128, 128] with ones on its diagonal."""
    grid = nl.ndarray((PARTITIONS, PARTITIONS), dtype=nl.float32, buffer=nl.sbuf)
    nisa.iota(dst=grid, pattern=[[1, PARTITIONS]], offset=0, channel_multiplier=-1)
    identity = nl.ndarray((PARTITIONS, PARTITIONS), dtype=dtype, buffer=nl.sbuf)
    nisa.tensor_scalar(dst=identity, data=grid, op0=nl.equal, operand0=0.0)
    return identity


def load_tile(x):
    """An HBM tensor of up to 128 rows in SBUF."""
    tile = nl.ndarray(x.shape, dtype=x.dtype, buffer=nl.sbuf)
    move(dst=tile, src=x)
    return tile


def load_gain(gain):
    """gain [H] as fp32 [128, H/128]: partition p holds H/128 consecutive numbers."""
    run = gain.shape[0] // PARTITIONS
    raw = nl.ndarray((PARTITIONS, run), dtype=gain.dtype, buffer=nl.sbuf)
    move(dst=raw, src=gain.ap(pattern=[[run, PARTITIONS], [1, run]], offset=0))
    wide = nl.ndarray((PARTITIONS, run), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_copy(dst=wide, src=raw)
    return wide


def inverse_norm(rows, eps):
    """1 / sqrt(mean square + eps) of each row: fp32 [b, 1]."""
    b, H = rows.shape
    squares = nl.ndarray((b, H), dtype=nl.bfloat16, buffer=nl.sbuf)  # not looked at
    total = nl.ndarray((b, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(
        dst=squares,
        op=nl.square,
        data=rows,
        reduce_op=nl.add,
        reduce_res=total,
        reduce_cmd=nisa.reduce_cmd.reset_reduce,
    )
    inverse = nl.ndarray((b, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=inverse, data=total, op0=nl.multiply, operand0=1.0 / H, op1=nl.add, operand1=eps
    )
    nisa.activation(dst=inverse, op=nl.rsqrt, data=inverse)
    return inverse


def spread(rows, gain, identity):
    """Rows [b, H] times gain, turned: SBUF [128, H/128, b], element p·H/128 + j at [p, j].

    Weights then cross DMA in runs of H/128 rows a partition, whatever their width.
    """
    b, H = rows.shape
    run = H // PARTITIONS
    strided = rows.ap(pattern=[[H, b], [1, run], [run, PARTITIONS]])  # [b, j, p]
    turned = nl.ndarray((PARTITIONS, run, b), dtype=rows.dtype, buffer=nl.sbuf)
    together = BANK // b
    for first in range(0, run, together):
        last = min(first + together, run)
        bank = nl.ndarray((PARTITIONS, last - first, b), dtype=nl.float32, buffer=nl.psum)
        for j in range(first, last):
            nisa.nc_matmul(
                dst=bank[:, j - first, :],
                stationary=strided[:, j, :],
                moving=identity[0:b, 0:b],
                is_moving_onezero=True,
            )
        factors = gain.ap(pattern=[[run, PARTITIONS], [1, last - first], [0, b]], offset=first)
        nisa.tensor_tensor(dst=turned[:, first:last, :], data1=bank, data2=factors, op=nl.multiply)
    return turned


def turn_blocks(turned, at, rows, identity):
    """Rows [b, n], 128 columns a block, to blocks `at` and on of [128, blocks, b]."""
    b, n = rows.shape
    together = BANK // b
    whole = n // PARTITIONS
    for first in range(0, whole, together):
        last = min(first + together, whole)
        bank = nl.ndarray((PARTITIONS, last - first, b), dtype=nl.float32, buffer=nl.psum)
        for j in range(first, last):
            nisa.nc_matmul(
                dst=bank[:, j - first, :],
                stationary=rows[:, j * PARTITIONS : (j + 1) * PARTITIONS],
                moving=identity[0:b, 0:b],
                is_moving_onezero=True,
            )
        nisa.tensor_copy(dst=turned[:, at + first : at + last, :], src=bank)
    if whole * PARTITIONS < n:
        left = n - whole * PARTITIONS
        bank = nl.ndarray((left, b), dtype=nl.float32, buffer=nl.psum)
        nisa.nc_matmul(
            dst=bank,
            stationary=rows[:, whole * PARTITIONS : n],
            moving=identity[0:b, 0:b],
            is_moving_onezero=True,
        )
        nisa.tensor_copy(dst=turned[0:left, at + whole, :], src=bank)


def product(columns, w, first, last, step):
    """Columns first..last of spread rows times w [H, N]: PSUM tiles [b, up to `step`]."""
    _, run, b = columns.shape
    N = w.shape[1]
    width = last - first
    banks = new_banks(b, width, step)
    deep = max(1, LOAD_BYTES // (width * element_bytes(w.dtype)))
    for start in range(0, run, deep):
        count = min(deep, run - start)
        tile = nl.ndarray((PARTITIONS, count, width), dtype=w.dtype, buffer=nl.sbuf)
        move(
            dst=tile,
            src=w.ap(
                pattern=[[run * N, PARTITIONS], [N, count], [1, width]], offset=start * N + first
            ),
        )
        for j in range(count):
            for i in range(len(banks)):
                nisa.nc_matmul(
                    dst=banks[i],
                    stationary=columns[:, start + j, :],
                    moving=tile[:, j, i * step : min((i + 1) * step, width)],
                )
    return banks


def block_product(turned, w, first, last):
    """Columns first..last of rows, turned in blocks of 128, times w [K, N]: PSUM [b, 512] tiles."""
    b = turned.shape[2]
    K, N = w.shape
    width = last - first
    banks = new_banks(b, width, BANK)
    deep = max(1, LOAD_BYTES // (width * element_bytes(w.dtype)))
    whole = K // PARTITIONS
    pieces = []
    for start in range(0, whole, deep):
        pieces.append((start, PARTITIONS, min(deep, whole - start)))
    if whole * PARTITIONS < K:
        pieces.append((whole, K - whole * PARTITIONS, 1))
    for piece in pieces:
        start, keys, count = piece
        tile = nl.ndarray((keys, count, width), dtype=w.dtype, buffer=nl.sbuf)
        move(
            dst=tile,
            src=w.ap(
                pattern=[[N, keys], [PARTITIONS * N, count], [1, width]],
                offset=start * PARTITIONS * N + first,
            ),
        )
        for j in range(count):
            for i in range(len(banks)):
                nisa.nc_matmul(
                    dst=banks[i],
                    stationary=turned[0:keys, start + j, :],
                    moving=tile[:, j, i * BANK : min((i + 1) * BANK, width)],
                )
    return banks


def new_banks(b, width, step):
    """Fresh PSUM tiles [b, up to `step`] for `width` columns."""
    banks = []
    for at in range(0, width, step):
        banks.append(nl.ndarray((b, min(step, width - at)), dtype=nl.float32, buffer=nl.psum))
    return banks


def element_bytes(dtype):
    """Bytes of a float32 or bfloat16."""
    return 4 if dtype == nl.float32 else 2


def turning_factors(cos, sin, inverse):
    """fp32 [b, 2, d]: (cos, cos) and (-sin, sin), both times the norm's factor of the row."""
    b, half = cos.shape
    raw = nl.ndarray((b, 2, half), dtype=nl.float32, buffer=nl.sbuf)
    move(dst=raw[:, 0, :], src=cos)
    move(dst=raw[:, 1, :], src=sin)
    turning = nl.ndarray((b, 2, 2 * half), dtype=nl.float32, buffer=nl.sbuf)
    nisa.tensor_scalar(
        dst=turning[:, :, half : 2 * half], data=raw, op0=nl.multiply, operand0=inverse
    )
    nisa.tensor_copy(dst=turning[:, 0, 0:half], src=turning[:, 0, half : 2 * half])
    nisa.tensor_scalar(
        dst=turning[:, 1, 0:half],
        data=turning[:, 1, half : 2 * half],
        op0=nl.multiply,
        operand0=-1.0,
    )
    return turning


def rotate(out, bank, turning):
    """out [b, heads, d] = heads of a PSUM bank, turned: element i with the one d/2 further."""
    b, heads, d = out.shape
    half = d // 2
    width = bank.shape[1]
    straight = nl.ndarray((b, heads, d), dtype=nl.float32, buffer=nl.sbuf)
    across = nl.ndarray((b, heads, d), dtype=nl.float32, buffer=nl.sbuf)
    for low, high in ((0, half), (half, 0)):
        source = bank.ap(pattern=[[width, b], [d, heads], [1, half]], offset=high)
        factors = turning.ap(pattern=[[2 * d, b], [0, heads], [1, half]], offset=d + low)
        nisa.tensor_tensor(
            dst=across[:, :, low : low + half], data1=source, data2=factors, op=nl.multiply
        )
    nisa.tensor_tensor(
        dst=straight,
        data1=bank.ap(pattern=[[width, b], [d, heads], [1, d]], offset=0),
        data2=turning.ap(pattern=[[2 * d, b], [0, heads], [1, d]], offset=0),
        op=nl.multiply,
    )
    nisa.tensor_tensor(dst=out, data1=straight, data2=across, op=nl.add)
