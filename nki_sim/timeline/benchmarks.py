"""Kernels whose time somebody has published, written again against the documented algorithms.

Each follows the loop order, tile sizes and buffers that the cited document describes, with today's
instructions; none is AWS's code. ``published.py`` says which time belongs to which kernel.
"""

from __future__ import annotations

from typing import Any

from nki_sim import isa, language

nisa: Any = isa  # a kernel's names
nl: Any = language

K_TILE, M_TILE, N_TILE = 128, 128, 512


def _tile(source: Any) -> Any:
    """A fresh SBUF tile with the elements of an HBM view."""
    tile = nl.ndarray(source.shape, source.dtype, nl.sbuf)
    nisa.dma_copy(tile, source)
    return tile


def _product(pairs: list[tuple[Any, Any]]) -> Any:
    """PSUM tile with the sum over (stationary, moving) pairs of their products."""
    result = nl.ndarray((M_TILE, N_TILE), nl.float32, nl.psum)
    for stationary, moving in pairs:
        nisa.nc_matmul(result, stationary, moving)
    return result


def _evacuate(product: Any, out: Any, m: int, n: int, dtype: Any) -> None:
    """Copy a PSUM tile to SBUF and store it at tile (m, n) of the result."""
    tile = nl.ndarray((M_TILE, N_TILE), dtype, nl.sbuf)
    nisa.tensor_copy(tile, product)
    nisa.dma_copy(out[m * M_TILE : (m + 1) * M_TILE, n * N_TILE : (n + 1) * N_TILE], tile)


def _block(source: Any, k: int, column: int, width: int) -> Any:
    """Rows of K tile ``k``, ``width`` columns from ``column``."""
    return source[k * K_TILE : (k + 1) * K_TILE, column : column + width]


def matmul_tiled(a: Any, b: Any) -> Any:
    """a.T @ b, both tiles loaded for every product (matrix multiplication tutorial, "tiled").

    a [K, M], b [K, N].
    """
    (k_size, m_size), n_size = a.shape, b.shape[1]
    out = nl.ndarray((m_size, n_size), a.dtype, nl.shared_hbm)
    for m in range(m_size // M_TILE):
        for n in range(n_size // N_TILE):
            result = nl.ndarray((M_TILE, N_TILE), nl.float32, nl.psum)
            for k in range(k_size // K_TILE):
                stationary = _tile(_block(a, k, m * M_TILE, M_TILE))
                moving = _tile(_block(b, k, n * N_TILE, N_TILE))
                nisa.nc_matmul(result, stationary, moving)
            _evacuate(result, out, m, n, a.dtype)
    return out


def matmul_hoisted(a: Any, b: Any) -> Any:
    """a.T @ b with a column of a's tiles loaded once per row block ("hoist load")."""
    (k_size, m_size), n_size = a.shape, b.shape[1]
    depth = k_size // K_TILE
    out = nl.ndarray((m_size, n_size), a.dtype, nl.shared_hbm)
    for m in range(m_size // M_TILE):
        left = [_tile(_block(a, k, m * M_TILE, M_TILE)) for k in range(depth)]
        for n in range(n_size // N_TILE):
            right = [_tile(_block(b, k, n * N_TILE, N_TILE)) for k in range(depth)]
            _evacuate(_product(list(zip(left, right, strict=True))), out, m, n, nl.float32)
    return out


def matmul_blocked(a: Any, b: Any, m_block: int = 2, n_block: int = 2) -> Any:
    """a.T @ b in blocks of m_block x n_block tiles over the free dimensions ("block M, N")."""
    (k_size, m_size), n_size = a.shape, b.shape[1]
    depth = k_size // K_TILE
    out = nl.ndarray((m_size, n_size), a.dtype, nl.shared_hbm)
    for m0 in range(0, m_size // M_TILE, m_block):
        left = [
            [_tile(_block(a, k, (m0 + m) * M_TILE, M_TILE)) for k in range(depth)]
            for m in range(m_block)
        ]
        for n0 in range(0, n_size // N_TILE, n_block):
            right = [
                [_tile(_block(b, k, (n0 + n) * N_TILE, N_TILE)) for k in range(depth)]
                for n in range(n_block)
            ]
            for m in range(m_block):
                for n in range(n_block):
                    product = _product(list(zip(left[m], right[n], strict=True)))
                    _evacuate(product, out, m0 + m, n0 + n, a.dtype)
    return out


def matmul_optimised(
    a: Any, b: Any, m_block: int = 16, n_block: int = 2, k_block: int = 8, packed: bool = True
) -> Any:
    """a.T @ b blocked in all three dimensions, partial sums in SBUF ("fully optimised").

    With ``packed`` the partial sums of a row tile lie side by side and are stored as they are (the
    matrix multiplication tutorial); without, they are copied together first (version 5 of the
    kernel-optimization tutorial).
    """
    (k_size, m_size), n_size = a.shape, b.shape[1]
    m_width, n_width = m_block * M_TILE, n_block * N_TILE
    out = nl.ndarray((m_size, n_size), a.dtype, nl.shared_hbm)
    rows = m_size // M_TILE
    for n0 in range(0, n_size, n_width):
        sums = []  # one [M_TILE, n_width] tile a row tile, or its parts
        for _ in range(rows):
            widths = [n_width] if packed else [N_TILE] * n_block
            tiles = [nl.ndarray((M_TILE, width), a.dtype, nl.sbuf) for width in widths]
            for tile in tiles:
                nisa.memset(tile, 0.0)
            sums.append(tiles)
        for k0 in range(0, k_size // K_TILE, k_block):
            right = [_tile(_block(b, k0 + k, n0, n_width)) for k in range(k_block)]
            for m0 in range(0, m_size, m_width):
                left = [_tile(_block(a, k0 + k, m0, m_width)) for k in range(k_block)]
                for n in range(n_block):
                    for m in range(m_block):
                        product = _product(
                            [
                                (
                                    left[k][:, m * M_TILE : (m + 1) * M_TILE],
                                    right[k][:, n * N_TILE : (n + 1) * N_TILE],
                                )
                                for k in range(k_block)
                            ]
                        )
                        total = sums[m0 // M_TILE + m][0 if packed else n]
                        if packed:
                            total = total[:, n * N_TILE : (n + 1) * N_TILE]
                        nisa.tensor_tensor(total, total, product, nl.add)
        for m in range(rows):
            whole = sums[m][0]
            if not packed:
                whole = nl.ndarray((M_TILE, n_width), a.dtype, nl.sbuf)
                for n in range(n_block):
                    nisa.tensor_copy(whole[:, n * N_TILE : (n + 1) * N_TILE], sums[m][n])
            nisa.dma_copy(out[m * M_TILE : (m + 1) * M_TILE, n0 : n0 + n_width], whole)
    return out


def matmul_resident(a: Any, b: Any, products: int) -> Any:
    """``products`` products of one stationary and one moving tile that stay in SBUF.

    a [128, 128], b [128, 512]; from the profiles in neuron-agentic-development.
    """
    stationary, moving = _tile(a), _tile(b)
    result = nl.ndarray((M_TILE, N_TILE), nl.float32, nl.psum)
    for _ in range(products):
        nisa.nc_matmul(result, stationary, moving)
    out = nl.ndarray((M_TILE, N_TILE), nl.float32, nl.shared_hbm)
    _evacuate(result, out, 0, 0, nl.float32)
    return out


def copy_through(x: Any) -> Any:
    """Load, exp, store: the examples of nki-dma-overview.rst."""
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    tile = _tile(x)
    result = nl.ndarray(x.shape, x.dtype, nl.sbuf)
    nisa.activation(result, nl.exp, tile)
    nisa.dma_copy(out, result)
    return out


def gelu_streamed(x: Any, rows: int, columns: int) -> Any:
    """gelu of an HBM matrix in tiles of ``rows`` x ``columns``."""
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    for r in range(0, x.shape[0], rows):
        for c in range(0, x.shape[1], columns):
            tile = _tile(x[r : r + rows, c : c + columns])
            result = nl.ndarray(tile.shape, x.dtype, nl.sbuf)
            nisa.activation(result, nl.gelu, tile)
            nisa.dma_copy(out[r : r + rows, c : c + columns], result)
    return out


def activation_chain(x: Any, length: int) -> Any:
    """``length`` activations of one element a partition, each on the result of the one before."""
    tile = _tile(x)
    for _ in range(length):
        nisa.activation(tile, nl.exp, tile)
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    nisa.dma_copy(out, tile)
    return out


def mamba(
    delta: Any, u: Any, a: Any, b: Any, c: Any, reload: bool = True, chunk: int | None = None
) -> Any:
    """The state-space scan of fused_mamba.rst.

    delta, u [channels, seq]; a [channels, states]; b, c [states, seq]; fp32. The first kernel loads
    delta and u again for every state (``reload``), the second once; the third also cuts seq into
    chunks and carries the scan's last column over.
    """
    channels, seq = delta.shape
    states = a.shape[1]
    width = chunk or seq
    out = nl.ndarray((channels, seq), delta.dtype, nl.shared_hbm)
    for first in range(0, channels, 128):
        lanes = slice(first, first + 128)
        total = nl.ndarray((128, seq), delta.dtype, nl.sbuf)
        nisa.memset(total, 0.0)
        if not reload:
            step, driver = _tile(delta[lanes, :]), _tile(u[lanes, :])
        for i in range(states):
            if reload:
                step, driver = _tile(delta[lanes, :]), _tile(u[lanes, :])
            rate = _tile(a[lanes, i : i + 1])
            carry: Any = 0.0
            if chunk:
                carry = nl.ndarray((128, 1), delta.dtype, nl.sbuf)
                nisa.memset(carry, 0.0)
            for at in range(0, seq, width):
                part = slice(at, at + width)
                decay = nl.ndarray((128, width), delta.dtype, nl.sbuf)
                nisa.activation(decay, nl.exp, step[:, part], scale=rate)
                driven = nl.ndarray((128, width), delta.dtype, nl.sbuf)
                nisa.tensor_tensor(driven, step[:, part], driver[:, part], nl.multiply)
                inputs = nl.ndarray((128, width), delta.dtype, nl.sbuf)
                spread = _broadcast(b[i : i + 1, part])
                nisa.tensor_tensor(inputs, driven, spread, nl.multiply)
                scanned = nl.ndarray((128, width), delta.dtype, nl.sbuf)
                nisa.tensor_tensor_scan(scanned, decay, inputs, carry, nl.multiply, nl.add)
                if chunk:
                    nisa.tensor_copy(carry, scanned[:, width - 1 : width])
                weighted = nl.ndarray((128, width), delta.dtype, nl.sbuf)
                spread = _broadcast(c[i : i + 1, part])
                nisa.tensor_tensor(weighted, scanned, spread, nl.multiply)
                nisa.tensor_tensor(total[:, part], total[:, part], weighted, nl.add)
        nisa.dma_copy(out[lanes, :], total)
    return out


def _broadcast(source: Any) -> Any:
    """A row on all 128 partitions, as ``nl.broadcast_to`` makes it: a product with ones on TensorE.

    Up to 512 columns stay in the PSUM bank they were made in; more are copied to SBUF.
    """
    row = _tile(source)
    return nl.broadcast_to(row, (128, row.shape[1]))


def attention(q: Any, k: Any, v: Any) -> Any:
    """softmax(q.T @ k) @ v in mixed precision, a row of logits at a time in SBUF.

    q, k [d, S], v [S, d], fp32; products in bf16. The plain form of such a kernel: logits
    are copied out of PSUM, exponentials turned by TensorE in pieces of 128 before the product.
    """
    (d, seq), block = q.shape, N_TILE
    out = nl.ndarray((seq, d), q.dtype, nl.shared_hbm)
    queries, keys = _half(q), _half(k)
    values = [_half(v[j : j + 128, :]) for j in range(0, seq, 128)]
    for r in range(0, seq, 128):
        logits = nl.ndarray((128, seq), nl.float32, nl.sbuf)
        tops = nl.ndarray((128, seq // block), nl.float32, nl.sbuf)
        for j in range(seq // block):
            part = slice(j * block, (j + 1) * block)
            product = nl.ndarray((128, block), nl.float32, nl.psum)
            nisa.nc_matmul(product, queries[:, r : r + 128], keys[:, part])
            nisa.tensor_copy(logits[:, part], product)
            nisa.tensor_reduce(tops[:, j : j + 1], nl.maximum, logits[:, part], axis=1)
        top = nl.ndarray((128, 1), nl.float32, nl.sbuf)
        nisa.tensor_reduce(top, nl.maximum, tops, axis=1, negate=True)
        weights = nl.ndarray((128, seq), nl.bfloat16, nl.sbuf)
        total = nl.ndarray((128, 1), nl.float32, nl.sbuf)
        nisa.activation_reduce(weights, nl.exp, logits, nl.add, total, bias=top)
        inverse = nl.ndarray((128, 1), nl.float32, nl.sbuf)
        nisa.reciprocal(inverse, total)
        turned = nl.ndarray((128, seq), nl.bfloat16, nl.sbuf)
        for j in range(0, seq, 128):
            bank = nl.ndarray((128, 128), nl.bfloat16, nl.psum)
            nisa.nc_transpose(bank, weights[:, j : j + 128])
            nisa.tensor_copy(turned[:, j : j + 128], bank)
        result = nl.ndarray((128, d), nl.float32, nl.psum)
        for j in range(seq // 128):
            nisa.nc_matmul(result, turned[:, j * 128 : (j + 1) * 128], values[j])
        scaled = nl.ndarray((128, d), q.dtype, nl.sbuf)
        nisa.tensor_scalar(scaled, result, nl.multiply, inverse)
        nisa.dma_copy(out[r : r + 128, :], scaled)
    return out


def _half(source: Any) -> Any:
    """A loaded tile in bf16."""
    tile = nl.ndarray(source.shape, nl.bfloat16, nl.sbuf)
    nisa.tensor_copy(tile, _tile(source))
    return tile
