"""Small kernels for the timeline's tests: one idea each, with a knob that makes them slower."""

from __future__ import annotations

from typing import Any

import nki_sim.isa as nisa
import nki_sim.language as nl


def tile(source: Any) -> Any:
    made = nl.ndarray(source.shape, source.dtype, nl.sbuf)
    nisa.dma_copy(made, source)
    return made


def stored(made: Any) -> Any:
    out = nl.ndarray(made.shape, made.dtype, nl.shared_hbm)
    nisa.dma_copy(out, made)
    return out


def copy_rows(x: Any, columns: int, dge: Any = None) -> Any:
    """Through SBUF in tiles of [128, columns]."""
    options = {} if dge is None else {"dge_mode": dge}
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    for r in range(0, x.shape[0], 128):
        for c in range(0, x.shape[1], columns):
            made = nl.ndarray((128, columns), x.dtype, nl.sbuf)
            nisa.dma_copy(made, x[r : r + 128, c : c + columns], **options)
            nisa.dma_copy(out[r : r + 128, c : c + columns], made, **options)
    return out


def copy_partitions(x: Any, partitions: int) -> Any:
    """The same bytes through ``partitions`` partitions."""
    flat = x.reshape((partitions, x.shape[0] * x.shape[1] // partitions))
    return stored(tile(flat))


def load_transposed(x: Any, by_dma: bool) -> Any:
    """[128, 128] transposed: by element-wise DMA, or by a contiguous load and TensorE."""
    out = nl.ndarray((128, 128), x.dtype, nl.shared_hbm)
    made = nl.ndarray((128, 128), x.dtype, nl.sbuf)
    if by_dma:
        nisa.dma_copy(made, x.ap(pattern=[[1, 128], [128, 128]], offset=0))
    else:
        product = nl.ndarray((128, 128), x.dtype, nl.psum)
        nisa.nc_transpose(product, tile(x))
        nisa.tensor_copy(made, product)
    nisa.dma_copy(out, made)
    return out


def buffered(x: Any, buffers: int) -> Any:
    """exp over column tiles with ``buffers`` tiles of the kernel's own in turn."""
    width = 1024
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    ins = [nl.ndarray((128, width), x.dtype, nl.sbuf) for _ in range(buffers)]
    outs = [nl.ndarray((128, width), x.dtype, nl.sbuf) for _ in range(buffers)]
    for j, c in enumerate(range(0, x.shape[1], width)):
        nisa.dma_copy(ins[j % buffers], x[:, c : c + width])
        nisa.activation(outs[j % buffers], nl.exp, ins[j % buffers])
        nisa.dma_copy(out[:, c : c + width], outs[j % buffers])
    return out


def vector_pieces(x: Any, width: int) -> Any:
    """tensor_scalar over [128, F] in pieces of ``width``."""
    made = tile(x)
    for c in range(0, x.shape[1], width):
        nisa.tensor_scalar(made[:, c : c + width], made[:, c : c + width], nl.add, 1.0)
    return stored(made)


def vector_copies(x: Any, times: int, step: int = 1) -> Any:
    """``times`` copies of every ``step``-th element, SBUF to SBUF."""
    made = tile(x)
    half = nl.ndarray((128, 512), x.dtype, nl.sbuf)
    for _ in range(times):
        nisa.tensor_copy(half, made[:, 0 : 512 * step : step])
    return stored(half)


def vector_add(x: Any, from_psum: bool) -> Any:
    """Ten sums of two tiles, one of which may lie in PSUM."""
    made = tile(x)
    other = nl.ndarray(x.shape, nl.float32, nl.psum if from_psum else nl.sbuf)
    nisa.tensor_copy(other, made)
    result = nl.ndarray(x.shape, x.dtype, nl.sbuf)
    for _ in range(10):
        nisa.tensor_tensor(result, made, other, nl.add)
    return stored(result)


def chain(x: Any, engine: str, dependent: bool) -> Any:
    """32 instructions on one element each: a chain, or side by side."""
    made = tile(x)
    for i in range(32):
        source = made[:, 0:1] if dependent else made[:, i : i + 1]
        if engine == "vector":
            nisa.tensor_scalar(source, source, nl.add, 1.0)
        else:
            nisa.activation(source, nl.exp, source)
    return stored(made)


def fused_scalar(x: Any, fused: bool) -> Any:
    """(x * 2) + 1 ten times, as one instruction or two."""
    made = tile(x)
    for _ in range(10):
        if fused:
            nisa.tensor_scalar(made, made, nl.multiply, 2.0, op1=nl.add, operand1=1.0)
        else:
            nisa.tensor_scalar(made, made, nl.multiply, 2.0)
            nisa.tensor_scalar(made, made, nl.add, 1.0)
    return stored(made)


def row_sums(x: Any, fused: bool) -> Any:
    """exp and its row sums: ScalarE's accumulator, or a pass on VectorE."""
    made = tile(x)
    result = nl.ndarray((128, 1), nl.float32, nl.sbuf)
    for _ in range(8):
        if fused:
            nisa.activation_reduce(made, nl.exp, made, reduce_op=nl.add, reduce_res=result)
        else:
            nisa.activation(made, nl.exp, made)
            nisa.tensor_reduce(result, nl.add, made, axis=1)
    return stored(result)


def functions(x: Any, alternate: bool) -> Any:
    """Sixteen activations, of one function or of two in turn."""
    made = tile(x)
    for i in range(16):
        nisa.activation(made, nl.tanh if alternate and i % 2 else nl.exp, made)
    return stored(made)


def reciprocals(x: Any, on_scalar: bool) -> Any:
    made = tile(x)
    for _ in range(8):
        if on_scalar:
            nisa.activation(made, nl.reciprocal, made)
        else:
            nisa.reciprocal(made, made)
    return stored(made)


def evacuate(x: Any, scalar_share: int, scalar_in_sbuf: bool = False) -> Any:
    """24 copies of [128, 512]; ScalarE makes ``scalar_share`` in four, from PSUM or not."""
    made = tile(x)
    bank = nl.ndarray(x.shape, nl.float32, nl.psum)
    other = nl.ndarray(x.shape, nl.float32, nl.psum)
    nisa.tensor_copy(bank, made)
    nisa.tensor_copy(other, made)
    results = [nl.ndarray(x.shape, x.dtype, nl.sbuf) for _ in range(2)]
    for i in range(24):
        if i % 4 < scalar_share:
            nisa.activation(results[0], nl.copy, made if scalar_in_sbuf else other)
        else:
            nisa.tensor_copy(results[1], bank)
    nisa.tensor_tensor(results[0], results[0], results[1], nl.add)
    return stored(results[0])


def products(a: Any, b: Any, width: int) -> Any:
    """a.T @ b over and over, ``width`` columns a matmul."""
    stationary, moving = tile(a), tile(b)
    n = b.shape[1]
    result = nl.ndarray((a.shape[1], n), nl.float32, nl.psum)
    for _ in range(64):
        for c in range(0, n, width):
            nisa.nc_matmul(result[:, c : c + width], stationary, moving[:, c : c + width])
    out = nl.ndarray(result.shape, nl.float32, nl.sbuf)
    nisa.tensor_copy(out, result)
    return stored(out)


def matrix_vector(w: Any, x: Any, vector_moves: bool) -> Any:
    """x.T @ w for w [128, F]: one column of x moves, or the matrix does."""
    matrix, vector = tile(w), tile(x)
    blocks = w.shape[1] // 128
    for _ in range(8):
        for i in range(blocks):
            block = matrix[:, i * 128 : (i + 1) * 128]
            if vector_moves:
                result = nl.ndarray((128, 1), nl.float32, nl.psum)
                nisa.nc_matmul(result, block, vector)
            else:
                result = nl.ndarray((1, 128), nl.float32, nl.psum)
                nisa.nc_matmul(result, vector, block)
    out = nl.ndarray(result.shape, nl.float32, nl.sbuf)
    nisa.tensor_copy(out, result)
    return stored(out)


def softmax(x: Any, passes: str) -> Any:
    """Softmax over the rows of [R, C], 128 rows a tile.

    passes: "many" subtracts, exponentiates and sums in passes of their own and divides by a tile of
    sums; "few" lets ScalarE subtract and sum on the way and multiplies by one reciprocal a row.
    """
    rows, columns = x.shape
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    for r in range(0, rows, 128):
        made = tile(x[r : r + 128, :])
        top = nl.ndarray((128, 1), nl.float32, nl.sbuf)
        total = nl.ndarray((128, 1), nl.float32, nl.sbuf)
        nisa.tensor_reduce(top, nl.maximum, made, axis=1, negate=passes == "few")
        e = nl.ndarray((128, columns), nl.float32, nl.sbuf)
        if passes == "few":
            nisa.activation_reduce(
                e, nl.exp, made, reduce_op=nl.add, reduce_res=total, bias=top, scale=1.0
            )
        else:
            nisa.tensor_scalar(e, made, nl.subtract, top)
            nisa.activation(e, nl.exp, e)
            nisa.tensor_reduce(total, nl.add, e, axis=1)
        result = nl.ndarray((128, columns), x.dtype, nl.sbuf)
        if passes == "few":
            nisa.reciprocal(total, total)
            nisa.tensor_scalar(result, e, nl.multiply, total)
        else:
            wide = nl.ndarray((128, columns), nl.float32, nl.sbuf)
            nisa.tensor_scalar(wide, e, nl.multiply, 0.0, op1=nl.add, operand1=total)
            nisa.reciprocal(wide, wide)
            nisa.tensor_tensor(result, e, wide, nl.multiply)
        nisa.dma_copy(out[r : r + 128, :], result)
    return out


def halves(x: Any) -> Any:
    """Each core of the launch takes its share of the rows."""
    share = x.shape[0] // nl.num_programs(0)
    out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
    first = nl.program_id(0) * share
    for r in range(first, first + share, 128):
        made = tile(x[r : r + 128, :])
        nisa.activation(made, nl.exp, made)
        nisa.dma_copy(out[r : r + 128, :], made)
    return out


def counted_loop(n: Any, x: Any) -> Any:
    """A loop whose length stands in HBM."""
    count = nisa.register_alloc()
    nisa.register_load(count, n)
    made = tile(x)
    nisa.tensor_scalar(made, made, nl.add, 1.0)
    return stored(made)


def nothing(x: Any) -> Any:
    """No instruction at all."""
    return x
