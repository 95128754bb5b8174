"""What each published example is called with, and the independent expression of its result.

Arguments and references are ours; the examples themselves are read from a checkout
(``third_party``) and are not part of this repository.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

import nki_sim

BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True)
class Case:
    """A kernel with arguments and a reference.

    Attributes:
        file: how the path of its file ends.
        name: its function.
        run: called with the function, its module and the target; returns the largest error.
        where: text that picks one of several blocks of a page.
        since: the oldest target that has everything the example uses.
        rule: the rule that it breaks on purpose, on every target.
        refusal: the beginning of another error that it must raise.
        warns: part of a warning that AWS documents for what the example does.
    """

    file: str
    name: str
    run: Callable[[Any, Any, str], float]
    where: str = ""
    since: str = "trn1"
    rule: str | None = None
    refusal: str | None = None
    warns: str = ""


def _random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def _error(got: Any, want: Any, tolerance: float) -> float:
    """The largest error relative to the largest expected magnitude."""
    got, want = np.asarray(got).astype(np.float64), np.asarray(want).astype(np.float64)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))
    if not error <= tolerance:
        raise ValueError(f"relative error {error:.1e} is over {tolerance:.0e}")
    return error


def _call(function: Any, target: str, *args: Any, **kwargs: Any) -> Any:
    return nki_sim.simulate(function, target=target)(*args, **kwargs)


def _elementwise(expression: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = np.float32,
                 tolerance: float = 1e-6) -> Callable[[Any, Any, str], float]:  # fmt: skip
    def run(function: Any, module: Any, target: str) -> float:
        inputs = [_random(*s, dtype=dtype, seed=i) + dtype(2) for i, s in enumerate(shapes)]
        want = expression(*(x.astype(np.float64) for x in inputs))
        return _error(_call(function, target, *inputs), want, tolerance)

    return run


def _matmul(k: int, m: int, n: int, dtype: Any = np.float32, tolerance: float = 1e-5,
            **keywords: Any) -> Callable[[Any, Any, str], float]:  # fmt: skip
    def run(function: Any, module: Any, target: str) -> float:
        a, b = _random(k, m, dtype=dtype), _random(k, n, dtype=dtype, seed=1)
        want = a.astype(np.float64).T @ b.astype(np.float64)
        return _error(_call(function, target, a, b, **keywords), want, tolerance)

    return run


def _mamba(function: Any, module: Any, target: str) -> float:
    b, c, length, s = 1, 256, 512, 4
    delta, u = _random(b, c, length) * np.float32(0.1), _random(b, c, length, seed=1)
    a, bb, cc = -np.abs(_random(c, s)), _random(b, s, length, seed=2), _random(b, s, length, seed=3)
    state, want = np.zeros((b, c, s)), np.zeros((b, c, length))
    for i in range(length):
        state = np.exp(delta[:, :, i, None].astype(np.float64) * a) * state
        state += (delta[:, :, i] * u[:, :, i])[:, :, None] * bb[:, None, :, i]
        want[:, :, i] = (state * cc[:, None, :, i]).sum(-1)
    return _error(_call(function, target, delta, u, a, bb, cc), want, 1e-5)


def _avgpool(function: Any, module: Any, target: str) -> float:
    x = np.arange(72, dtype=np.float16).reshape(2, 6, 6)
    want = x.astype(np.float64).reshape(2, 3, 2, 3, 2).mean((2, 4))
    return _error(_call(function, target, x, 2), want, 1e-3)


def _transpose2d(function: Any, module: Any, target: str) -> float:
    x = _random(5, 12)
    want = x.reshape(5, 3, 4).transpose(0, 2, 1).reshape(5, 12)
    return _error(_call(function, target, x, (3, 4)), want, 0)


def _split(function: Any, module: Any, target: str) -> float:
    x = _random(4, 5)
    even, odd = _call(function, target, x)
    return max(_error(even, x[:, ::2], 0), _error(odd, x[:, 1::2], 0))


def _maxpool(function: Any, module: Any, target: str) -> float:
    x = _random(8, 6, 6)
    return _error(_call(function, target, x, 2), x.reshape(8, 3, 2, 3, 2).max((2, 4)), 0)


def _three(function: Any, module: Any, target: str) -> float:
    x = [_random(128, 64, seed=i) for i in range(3)]
    got = _call(function, target, *x)
    return max(_error(g, np.exp(t.astype(np.float64)), 1e-6) for g, t in zip(got, x, strict=True))


def _scheduled(expression: Any, count: int) -> Callable[[Any, Any, str], float]:
    """The plain kernel and the one ``with_schedule`` made of it give the same bits."""

    def run(function: Any, module: Any, target: str) -> float:
        x = [_random(128, 64, seed=i) + np.float32(9) for i in range(count)]
        got = _call(function, target, *x)
        again = _call(module.scheduled, target, *x)
        if count == 1:
            got, again = [got], [again]
        errors = [
            _error(g, expression(t.astype(np.float64)), 1e-6) for g, t in zip(got, x, strict=True)
        ]
        return max(errors + [_error(a, g, 0) for a, g in zip(again, got, strict=True)])

    return run


def _gather(function: Any, module: Any, target: str) -> float:
    data, rows = _random(50, 37), np.array([[3], [49], [0], [7], [7]], np.uint32)
    return _error(_call(function, target, data, rows), data[rows[:, 0]], 0)


def _scatter(function: Any, module: Any, target: str) -> float:
    data, rows = _random(5, 37), np.array([[3], [19], [0], [7], [8]], np.uint32)
    out = np.zeros((20, 37), np.float32)
    want = out.copy()
    want[rows[:, 0]] = data
    return _error(_call(function, target, data, rows, out), want, 0)


def _gather_transpose(columns: int, shape: tuple[int, ...]) -> Callable[[Any, Any, str], float]:
    def run(function: Any, module: Any, target: str) -> float:
        data = _random(*shape, dtype=BF16)
        rows = np.random.default_rng(1).integers(0, shape[0], (128, columns)).astype(np.uint32)
        got = _call(function, target, data, rows)
        flat = data[rows.T.reshape(-1)]  # [128 * columns, ...]
        want = flat.T if flat.ndim == 2 else flat.transpose(3, 1, 2, 0)
        return _error(got, want, 0)

    return run


def _nonzero(function: Any, module: Any, target: str) -> float:
    x = (_random(1, 64) > 0.7).astype(np.float32) * np.float32(3)
    found = np.flatnonzero(x[0])
    want = np.full((1, 65), -1)
    want[0, : len(found)] = found
    want[0, -1] = len(found)
    return _error(_call(function, target, x), want, 0)


def _topk(function: Any, module: Any, target: str) -> float:
    """16 partitions hold one row, spread down the partitions first."""
    x = _random(16, 3, dtype=BF16)

    def kernel(tensor: Any) -> Any:
        language = nki_sim.install().language
        outputs = []
        for tile in function(tensor):
            out = language.ndarray(tile.shape, tile.dtype, language.shared_hbm)
            language.store(out, tile)
            outputs.append(out)
        return tuple(outputs)

    values, positions = _call(kernel, target, x)
    row = x.T.reshape(-1)[:42].astype(np.float64)
    order = np.argsort(row, kind="stable")[-8:]  # ascending, as the docstring says
    return max(_error(values[0], row[order], 0), _error(positions[0], order, 0))


def _lnc(function: Any, module: Any, target: str) -> float:
    x = _random(2, 128, 32) + np.float32(9)
    want = 1 / x.astype(np.float64)
    one = _error(nki_sim.simulate(function, target=target)(x), want, 1e-6)
    two = _error(nki_sim.simulate(function, target=target)[2](x), want, 1e-6)
    return max(one, two)


def _printed(function: Any, module: Any, target: str) -> float:
    """The kernel that prints how many cores it runs on."""
    texts = []
    for cores in (1, 2):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            nki_sim.simulate(function, target=target)[cores](_random(2, 4))
        texts.append(text.getvalue().strip().split("\n"))
    if texts != [["Running on one core - no LNC"], ["Running on multiple cores"] * 2]:
        raise ValueError(f"printed {texts}")
    return 0.0


def _rows(want: Callable[[Any], Any], *shape: int) -> Callable[[Any, Any, str], float]:
    def run(function: Any, module: Any, target: str) -> float:
        x = _random(*shape)
        return _error(_call(function, target, x), want(x), 0)

    return run


def _written(name: str, want: Any) -> Callable[[Any, Any, str], float]:
    """A kernel that writes its second argument."""

    def run(function: Any, module: Any, target: str) -> float:
        x, out = _random(256, 512), np.zeros((256, 512), np.float32)
        _call(function, target, x, out)
        return _error(out, want(x), 0)

    return run


def _gelu_scaled(function: Any, module: Any, target: str) -> float:
    from math import erf

    x = _random(128, 64)
    y = 2.0 * x.astype(np.float64) + 0.5
    want = y * 0.5 * (1 + np.vectorize(erf)(y / 2**0.5))
    return _error(_call(function, target, x), want, 1e-5)


def _called(*shapes: tuple[int, ...], dtype: Any = np.float32) -> Callable[[Any, Any, str], float]:
    """A kernel without a result: it must run."""

    def run(function: Any, module: Any, target: str) -> float:
        _call(function, target, *(_random(*s, dtype=dtype) for s in shapes))
        return 0.0

    return run


def _exp_bf16(*shape: int) -> Callable[[Any, Any, str], float]:
    return _elementwise(np.exp, shape, dtype=BF16, tolerance=1e-2)


_ADD = _elementwise(lambda a, b: a + b, (64, 48), (64, 48), dtype=np.float16, tolerance=1e-3)
_EXP = _elementwise(np.exp, (128, 512), tolerance=1e-6)
_MM = "matrix_multiplication_nki_kernels.py"
_OPT = "guides/tutorials/kernel-optimization.rst"
_LG = "nki-language-guide.rst"
_OUT = "outputs must be nl.shared_hbm"  # migration guide, NKI 0.3: nl.hbm is private
_DMA = "nki-dma-overview.rst"
_APS = "deep-dives/nki-aps.rst"
_MIG = "migration/index.rst"
_ISA = "api/nki/isa/__init__.py"
_EX = "nki/examples/"

CASES = [
    Case(_EX + "getting_started_baremetal.py", "nki_tensor_add_kernel", _ADD),
    Case(_EX + "getting_started_torch.py", "nki_tensor_add_kernel", _ADD),
    Case(_EX + "getting_started_jax.py", "nki_tensor_add_kernel", _ADD),
    Case(_EX + "simulate/nki_simulate_example.py", "add_kernel", _ADD),
    Case(_EX + "layout-pass.py", "tensor_exp_kernel_", _EXP),
    Case(_EX + "layout-violation.py", "tensor_exp_kernel_", _called((256, 512)),
         rule="tensor.partitions"),
    Case(_EX + "index-case-1.py", "tensor_split_kernel_", _split),
    Case(_EX + "index-case-3.py", "tensor_maxpool_kernel_", _maxpool),
    Case(_EX + "average_pool2d/average_pool2d_nki_kernels.py", "tensor_avgpool_kernel", _avgpool),
    Case(_EX + "transpose2d/transpose2d_nki_kernels.py", "tensor_transpose2D_kernel_",
         _transpose2d),
    Case(_EX + "tensor_addition/tensor_addition_nki_kernels.py", "nki_tensor_add",
         _elementwise(lambda a, b: a + b, (256, 1024), (256, 1024), tolerance=1e-6)),
    *(Case(_EX + "fused_mamba/mamba_nki_kernels.py", f"mamba_v{i}", _mamba) for i in (1, 2, 3)),
    *(Case(folder + _MM, name, _matmul(*sizes),
           refusal=old if folder != _EX + "matrix_multiplication/" else None)
      for folder in (_EX + "matrix_multiplication/", "tutorials/matrix_multiplication/")
      for name, sizes, old in (
          ("nki_matmul_basic_", (128, 64, 512), "TypeError: tensor_copy"),
          ("nki_matmul_tiled_", (512, 256, 1024), "TypeError: tensor_copy"),
          ("nki_matmul_hoist_load_", (512, 256, 1024), "TypeError: tensor_copy"),
          ("nki_matmul_block_free_dimension_", (512, 256, 1024), None))),
    Case(_EX + "matrix_multiplication/" + _MM, "nki_matmul_fully_optimized_",
         _matmul(1024, 2048, 1024, BF16, 1e-2)),
    Case("tutorials/matrix_multiplication/" + _MM, "nki_matmul_fully_optimized_",
         _matmul(1024, 2048, 1024, BF16, 1e-2)),
    *(Case(folder + "mxfp-matmul/mx_kernels.py", "kernel_offline_quantized_mx_matmul",
           lambda f, m, t: 0.0 if f is None else _mx(f, m, t), since="trn3",
           refusal="NotImplementedError") for folder in ("deep-dives/src/", "tutorials/")),
    Case("quickstart-implement-run-kernel.rst", "nki_tensor_add_kernel", _ADD, "dma_copy"),
    Case(_LG, "nki_tensor_add_kernel", _ADD),
    Case(_LG, "example_kernel", _called((512, 512), dtype=np.float16)),
    Case(_LG, "relu_kernel", _written("relu", lambda x: np.maximum(x, 0))),
    Case(_LG, "scale_kernel", _written("scale", lambda x: x * np.float32(0.5))),
    Case(_OPT, "matrix_multiply_kernel", _matmul(128, 64, 512), "on a single tile", warns=_OUT),
    Case(_OPT, "matrix_multiply_kernel", _matmul(512, 256, 1024), "in a tiled manner\n\n",
         warns=_OUT),
    Case(_OPT, "matrix_multiply_kernel", _matmul(512, 256, 1024), "in a tiled manner\n     while",
         warns=_OUT),
    Case(_OPT, "matrix_multiply_kernel", _matmul(512, 256, 1024), "while blocking", warns=_OUT),
    Case(_OPT, "matrix_multiply_kernel", _matmul(1024, 2048, 1024, BF16, 1e-2), "efficiently by",
         warns=_OUT),
    Case("guides/use-neuron-profile.rst", "nki_matmul", _matmul(1024, 2048, 1024, BF16, 1e-2)),
    Case(_DMA, "tensor_exp_kernel_isa", _exp_bf16(4, 4096), "[4,4096]"),
    Case(_DMA, "tensor_exp_kernel_isa", _exp_bf16(128, 128), "[128,128]"),
    Case("tiling-overview.rst", "tensor_exp_kernel_",
         _elementwise(lambda x: 1 / x, (256, 512), tolerance=1e-6), "[256,512]"),
    Case("tiling-overview.rst", "tensor_exp_kernel_",
         _elementwise(lambda x: 1 / x, (384, 300), tolerance=1e-6), "ANY 2D shape"),
    Case("about/lnc.rst", "lnc_test", _printed, "no LNC", since="trn2"),
    Case("about/lnc.rst", "lnc_test", _lnc, "reciprocal", since="trn2"),
    Case("how-to-scheduling-apis.rst", "kernel", _scheduled(lambda x: 1 / x + x + 1, 1), "recip",
         warns=_OUT),
    Case("how-to-scheduling-apis.rst", "kernel", _scheduled(np.exp, 3), "act{i-1}", warns=_OUT),
    Case("how-to-scheduling-apis.rst", "loop", _three, "no_reorder", warns=_OUT),
    Case(_APS, "scalar_dynamic_select", _rows(lambda x: x[3], 4, 128, 512)),
    Case(_APS, "scalar_dynamic_dma", _rows(lambda x: x, 512, 512), refusal="AssertionError"),
    Case(_APS, "gather_rows", _rows(lambda x: x[:128:2], 128, 512)),
    Case(_APS, "indirect_vector_dynamic_dma", _rows(lambda x: x[:128:2], 128, 512)),
    Case(_MIG, "indirect_scalar_dynamic_dma", _rows(lambda x: x, 512, 512),
         refusal="AssertionError"),
    Case(_MIG, "indirect_vector_dynamic_dma", _rows(lambda x: x[:128:2], 128, 512)),
    Case(_MIG, "sb_blocks_migrated", _rows(lambda x: x, 8, 128, 512)),
    Case(_MIG, "sb_blocks_migrated_incorrect", _rows(lambda x: x, 8, 128, 512)),
    Case(_ISA, "indirect_gather_kernel", _gather),
    Case(_ISA, "indirect_scatter_kernel", _scatter),
    Case(_ISA, "nc_matmul_accumulate_kernel", _matmul(512, 96, 200)),
    Case(_ISA, "gather_transpose_kernel", _gather_transpose(1, (128, 128)), since="trn2"),
    Case(_ISA, "gather_transpose_2d_kernel", _gather_transpose(2, (256, 128)), since="trn2"),
    Case(_ISA, "gather_transpose_4d_kernel", _gather_transpose(2, (256, 2, 1, 128)), since="trn2"),
    Case(_ISA, "activate2_scale_bias_kernel", _gelu_scaled, since="trn3",
         refusal="NotImplementedError: nki.isa.activate2"),
    Case(_ISA, "topk_kernel", _topk),
    Case(_ISA, "nonzero_with_count_kernel", _nonzero, since="trn2", warns=_OUT),
]  # fmt: skip


def _mx(function: Any, module: Any, target: str) -> float:
    """The MX matmul, which only a NeuronCore-v4 has and the simulator does not have yet."""
    data = np.zeros((128, 512), np.uint32)
    scale = np.zeros((16, 512), np.uint8)
    _call(function, target, data[:, :128], scale[:, :128], data, scale,
          nki_sim.install().language.float8_e5m2_x4)  # fmt: skip
    return 0.0
