"""TensorE: matrix multiplication and transposes, from SBUF to PSUM, where results accumulate."""

from __future__ import annotations

from typing import Any

import numpy as np

from nki_sim import checks, rules
from nki_sim.checks import PSUM_ONLY, SBUF_ONLY
from nki_sim.dtypes import (
    FP8,
    DType,
    bfloat16,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    tfloat32,
)
from nki_sim.enums import engine as Engine
from nki_sim.enums import matmul_perf_mode
from nki_sim.machine import Core, current, instruction
from nki_sim.memory import MATMUL, NEVER, PSUM, SBUF, WRITTEN
from nki_sim.numerics import F32, convert, read32
from nki_sim.targets import PARTITIONS, PSUM_BANK_BYTES
from nki_sim.tensor import NkiTensor
from nki_sim.trace import NkiInstruction

engine = Engine

_INPUTS = (float8_e4m3, float8_e5m2, bfloat16, float16, tfloat32, float32)
_WIDE = (float32, tfloat32)

PSUM_FP32_ONLY_BEFORE = 4
"""Below this version matmul writes float32 only. AWS's documents disagree:
trainium_inferentia2_arch.rst lets PSUM hold other dtypes, while the nc_matmul docstring demands
float32 for NeuronCore-v2 and v3 and nki-samples #134 reports the compiler refusing anything
else on trn1. The strictest reading is enforced, so that what passes here is accepted
everywhere."""


@instruction
def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: matmul_perf_mode = matmul_perf_mode.none,
    name: str | None = None,
) -> NkiInstruction:
    """``dst[M, N] (+)= stationary[K, M].T @ moving[K, N]``, accumulated in float32.

    ``accumulate`` False overwrites; True adds, and needs a location that a matmul wrote before;
    None overwrites each PSUM element on its first write by a matmul and adds from then on. With
    ``double_row`` the operands are [K, 2, F] fp8 tiles and both K and 2 are contracted.
    ``tile_position`` and ``tile_size`` choose a part of the PE array and change no number
    (nki.isa.nc_matmul, NKI 0.6).
    """
    core = current()
    checks.tile(stationary, "stationary", SBUF_ONLY)
    checks.tile(moving, "moving", SBUF_ONLY)
    checks.tile(dst, "dst", PSUM_ONLY)
    checks.member(perf_mode, matmul_perf_mode, "perf_mode")
    _check_dtypes(dst, stationary, moving, is_transpose, core)
    k = stationary.shape[0]
    if moving.shape[0] != k:
        rules.broken(rules.MATMUL_K, "moving", moving.shape, f"stationary is {stationary.shape}")
    m, n = stationary.free, moving.free
    if perf_mode is not matmul_perf_mode.none:
        m, n = _check_double_row(stationary, moving, core)
        if len(tile_size) == 2 and tile_size[1] != PARTITIONS:
            rules.broken(rules.MATMUL_DOUBLE_ROW, "tile_size", tile_size, "columns are tiled")
    if m > PARTITIONS:
        rules.broken(rules.MATMUL_STATIONARY, "stationary", stationary.shape)
    limit = core.target.moving_fmax_bf16 if dst.dtype is bfloat16 else core.target.moving_fmax
    if n > limit:
        rules.broken(
            rules.MATMUL_MOVING, "moving", moving.shape, f"{limit} on {core.target.generation}"
        )
    if dst.shape[0] != m or dst.free != n:
        rules.broken(rules.MATMUL_DST, "dst", dst.shape, f"expects [{m}, {n}]")
    if tile_position or tile_size:
        _check_tiling(tile_position, tile_size, k, m, core)
    if core.version < 4:
        _check_bank(dst)
    mode = _accumulation(dst, accumulate, core)
    made = core.issue(
        "tensor",
        "nc_matmul",
        (("dst", dst),),
        (("stationary", stationary), ("moving", moving)),
        n,
        name,
        {
            "k": k,
            "m": m,
            "n": n,
            "accumulate": mode if isinstance(mode, bool) else "mixed",
            "is_transpose": is_transpose,
            "onezero": (is_stationary_onezero, is_moving_onezero),
            "perf_mode": perf_mode.value,
            "tile_position": tuple(tile_position),
            "tile_size": tuple(tile_size),
        },
        state=MATMUL,
    )
    product = _product(_contracted(stationary, m), _contracted(moving, n), core)
    _store(dst, product.reshape(dst.shape), mode)
    return made


def _contracted(t: NkiTensor, free: int) -> np.ndarray:
    """An operand as float32 [contraction, free]; double_row's [K, 2, F] has K * 2 rows."""
    values = read32(t)
    return values if values.ndim == 2 and values.shape[1] == free else values.reshape(-1, free)


def _product(stationary: np.ndarray, moving: np.ndarray, core: Core) -> np.ndarray:
    """float32 ``stationary.T @ moving``.

    BLAS may round differently for differently shaped tiles; with ``exact_matmul`` the sum over the
    contraction runs in one fixed order.
    """
    if not core.launch.exact_matmul:
        return np.matmul(stationary.T, moving)
    total = np.zeros((stationary.shape[1], moving.shape[1]), F32)
    for row in range(stationary.shape[0]):
        total += stationary[row][:, None] * moving[row][None, :]
    return total


def _store(dst: NkiTensor, product: np.ndarray, mode: bool | np.ndarray) -> None:
    out = dst.values
    if isinstance(mode, np.ndarray):  # some elements written before, others not
        product = np.where(mode, out.astype(F32) + product, product)
    elif mode:
        if dst.dtype is float32:
            out += product
            return
        product = out.astype(F32) + product
    out[...] = convert(product, dst.dtype, out.dtype)


def _accumulation(dst: NkiTensor, accumulate: bool | None, core: Core) -> bool | np.ndarray:
    """Whether the product is added to dst: one answer, or one per element.

    Adding to PSUM that no matmul has written is undefined, on gen2 and gen3 also after memset or
    copies.
    """
    if accumulate is False:
        return False
    state = core.states_of(dst)
    if accumulate is None:
        if isinstance(state, int):
            return _first_write(dst, state, core)
        if core.version < 4 and bool((state == WRITTEN).any()):
            _first_write(dst, WRITTEN, core)
        started = state == MATMUL if core.version < 4 else state != NEVER
        if started.all():
            return True
        return started if started.any() else False
    if accumulate is not True:
        accumulate = bool(accumulate)
        if not accumulate:
            return False
    needed = MATMUL if core.version < 4 else WRITTEN
    lowest = state if isinstance(state, int) else int(state.min())
    if lowest < needed:
        why = "nothing has written it" if lowest == NEVER else "another instruction initialised it"
        rules.broken(rules.MATMUL_ACCUMULATE, "dst", dst.access, why)
    return True


def _first_write(dst: NkiTensor, state: int, core: Core) -> bool:
    """accumulate=None on a uniformly written tile: add only to what a matmul left there.

    AWS's own kernels declare accumulators with ``nl.zeros(..., buffer=nl.psum)``; over zeros,
    overwriting and adding agree. Over other values the documents call the sum undefined before
    gen4.
    """
    if state != WRITTEN or core.version >= 4:
        return state != NEVER
    if dst.values.any():
        rules.broken(
            rules.MATMUL_ACCUMULATE,
            "accumulate",
            None,
            f"{dst.access!r} holds values that another instruction wrote",
        )
    return False


def _check_dtypes(
    dst: NkiTensor, stationary: NkiTensor, moving: NkiTensor, is_transpose: bool, core: Core
) -> None:
    a, b = stationary.dtype, moving.dtype
    for t, label in ((a, "stationary"), (b, "moving")):
        if t not in _INPUTS and not (t is float8_e4m3fn and core.version >= 4) and not is_transpose:
            rules.broken(rules.MATMUL_DTYPES, label, t, core.target.generation)
    if (a in _WIDE) != (b in _WIDE) and not is_transpose:
        rules.broken(rules.MATMUL_DTYPES, "stationary, moving", f"{a}, {b}")
    if {a, b} == {float8_e4m3, float8_e4m3fn}:
        rules.broken(rules.MATMUL_DTYPES, "stationary, moving", f"{a}, {b}")
    if is_transpose and core.version >= 3:
        if dst.dtype is not a and dst.dtype is not b:
            rules.broken(rules.MATMUL_DST_DTYPE, "dst", dst.dtype, f"transpose of {a}")
    elif dst.dtype is not float32 and (
        core.version < PSUM_FP32_ONLY_BEFORE or dst.dtype is not bfloat16
    ):
        rules.broken(rules.MATMUL_DST_DTYPE, "dst", dst.dtype, core.target.generation)


def _check_double_row(stationary: NkiTensor, moving: NkiTensor, core: Core) -> tuple[int, int]:
    if core.version < 3:
        rules.broken(rules.MATMUL_DOUBLE_ROW, "perf_mode", "double_row", core.target.generation)
    for t, label in ((stationary, "stationary"), (moving, "moving")):
        if t.dtype not in FP8 or t.ndim < 3 or t.shape[1] != 2:
            rules.broken(rules.MATMUL_DOUBLE_ROW, label, f"{t.shape} {t.dtype}")
    return stationary.free // 2, moving.free // 2


def _check_tiling(position: Any, size: Any, k: int, m: int, core: Core) -> None:
    value = f"position {position}, size {size}"
    if len(position) != 2 or len(size) != 2:
        rules.broken(rules.MATMUL_TILING, "tile_position, tile_size", value)
    legal = core.target.matmul_row_tiles
    for at, length, used, what in zip(position, size, (k, m), ("row", "column"), strict=True):
        if (
            length not in legal
            or at % length
            or not 0 <= at <= PARTITIONS - length
            or used > length
        ):
            rules.broken(
                rules.MATMUL_TILING,
                f"tile {what}",
                value,
                f"sizes {legal} on {core.target.generation}; operands use {used}",
            )


def _check_bank(dst: NkiTensor) -> None:
    """Check that dst of one matmul lies inside one 2-KiB bank.

    That is known for placed tiles; of others, by the offset in the tensor.
    """
    info = dst.storage.info
    _, _, low, high = dst.access.extent()
    base = info.byte0 or 0
    if (base + low) // PSUM_BANK_BYTES != (base + high - 1) // PSUM_BANK_BYTES:
        rules.broken(rules.MATMUL_BANK, "dst", f"bytes {base + low}..{base + high - 1}")


@instruction
def nc_transpose(
    dst: NkiTensor, data: NkiTensor, engine: Engine = Engine.unknown, name: str | None = None
) -> NkiInstruction:
    """``dst = data.T`` with data's free dimensions flattened; TensorE to 128x128, VectorE to 32x32.

    TensorE reads SBUF and writes PSUM; VectorE reads and writes either. On gen2 TensorE multiplies
    with an identity matrix, so that NaN and infinities spread (nki.isa.nc_transpose, NKI 0.6).
    """
    core = current()
    checks.tile(dst, "dst")
    checks.tile(data, "data")
    p, f = data.shape[0], data.free
    if engine is Engine.unknown:
        fits = data.buffer is SBUF and dst.buffer is PSUM
        chosen = "tensor" if fits else "vector"
    else:
        checks.member(engine, Engine, "engine")
        chosen = engine.name
        if chosen not in ("tensor", "vector"):
            rules.broken(rules.ENGINE, "engine", chosen, "nc_transpose")
    if chosen == "tensor" and (data.buffer is not SBUF or dst.buffer is not PSUM):
        rules.broken(
            rules.OPERAND_SPACE,
            "dst, data",
            f"{dst.buffer.value}, {data.buffer.value}",
            "TensorE transposes from SBUF to PSUM",
        )
    limit = 128 if chosen == "tensor" else 32
    if p > limit or f > limit:
        rules.broken(rules.TRANSPOSE_SIZE, "data", data.shape, f"{chosen} engine")
    if dst.dtype is not data.dtype:
        rules.broken(rules.TRANSPOSE_DTYPE, "dst", dst.dtype, f"data is {data.dtype}")
    if dst.shape[0] != f or dst.free != p:
        rules.broken(rules.MATMUL_DST, "dst", dst.shape, f"expects [{f}, {p}]")
    made = core.issue(
        chosen,
        "nc_transpose",
        (("dst", dst),),
        (("data", data),),
        p if chosen == "tensor" else f,
        name,
        {"p": p, "f": f},
        state=MATMUL if chosen == "tensor" else WRITTEN,
    )
    values = data.values.reshape(p, f).T.reshape(dst.shape)
    if chosen == "tensor" and core.version == 2 and data.dtype.is_float:
        dst.values[...] = _through_identity(values, data.dtype, p, f).reshape(dst.shape)
    else:
        dst.values[...] = values
    return made


def _through_identity(values: np.ndarray, dtype: DType, p: int, f: int) -> np.ndarray:
    """Transpose as gen2 does, by multiplying with ones and zeros.

    0 * NaN and 0 * inf spoil what shares their column.
    """
    wide = values.reshape(f, p).astype(F32)
    finite = np.isfinite(wide)
    if finite.all():
        return values
    spoiled = ~finite.all(axis=1, keepdims=True)
    through = np.where(spoiled & finite, F32(np.nan), np.where(finite, wide, F32(np.nan)))
    return convert(through, dtype, values.dtype)
