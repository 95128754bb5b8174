"""Kernels written the way shipped kernel libraries are: helper modules, configuration objects,
views with offsets, explicit addresses, registers and two cores, called by keyword and by position.
"""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.kernel import jit
from nki_sim.objects import NKIObject
from tests.nki_sim.helpers import normal, run

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("error")]
BF16 = ml_dtypes.bfloat16
TARGETS = ("trn1", "trn2", "trn3")


# ------------------------------------------------------------------ configuration objects


class Norm(Enum):
    none = 0
    rms = 1


@dataclass
class Sizes(NKIObject):
    rows: int
    columns: int
    tile = 128  # not annotated, and still a constructor keyword in NKI

    def tiles(self) -> int:
        return (self.rows + self.tile - 1) // self.tile


@dataclass
class Plan(NKIObject):
    sizes: Sizes
    norm: Norm = Norm.none
    scale: float = 1.0
    out_dtype: Any = None
    name: str = ""  # left out by the caller


_ROUNDED = {nl.float32: 4, nl.bfloat16: 2, nl.float16: 2, nl.int32: 4}


def normalise(dst, src, sizes, eps=1e-6):
    """x / sqrt(mean(x**2) + eps) by rows."""
    p = src.shape[0]
    squares = nl.ndarray(src.shape, dtype=nl.float32, buffer=nl.sbuf)
    sums = nl.ndarray((p, 1), dtype=nl.float32, buffer=nl.sbuf)
    nisa.activation(dst=squares, op=nl.square, data=src)
    nisa.tensor_reduce(dst=sums, op=nl.add, data=squares, axis=1)
    bias = nl.ndarray((p, 1), nl.float32, nl.sbuf)
    nisa.memset(bias, eps)
    nisa.activation(dst=sums, op=nl.rsqrt, data=sums, bias=bias, scale=1.0 / sizes.columns)
    nisa.tensor_scalar(dst=dst, data=src, op0=nl.multiply, operand0=sums)


@nki_sim.install().jit(mode="trace", debug_kernel=False)
def norm_kernel(x, gamma, plan=None):
    sizes = plan.sizes
    dtype = x.dtype if plan.out_dtype == None else plan.out_dtype  # noqa: E711
    assert _ROUNDED[dtype] in (2, 4) and _ROUNDED[x.dtype] == 4
    out = nl.ndarray(x.shape, dtype, nl.shared_hbm)
    weights = nl.ndarray((sizes.tile, sizes.columns), dtype=gamma.dtype, buffer=nl.sbuf)
    nisa.dma_copy(weights, gamma.ap(pattern=[[0, sizes.tile], [1, sizes.columns]], offset=0))
    for i in nl.affine_range(sizes.tiles()):
        p = min(sizes.tile, sizes.rows - i * sizes.tile)
        tile = nl.ndarray((sizes.tile, sizes.columns), nl.float32, nl.sbuf, name=f"x_{i}")
        nisa.dma_copy(tile[0:p], x[nl.ds(i * sizes.tile, p), :])
        if plan.norm == Norm.rms:
            normalise(tile[0:p, :], tile[0:p, :], sizes)
        result = nl.ndarray((sizes.tile, sizes.columns), dtype, nl.sbuf)
        nisa.scalar_tensor_tensor(
            dst=result[:p], data=tile[:p], op0=nl.multiply, operand0=plan.scale,
            op1=nl.multiply, operand1=weights[:p],
        )  # fmt: skip
        nisa.dma_copy(dst=out[i * sizes.tile : i * sizes.tile + p, :], src=result[0:p, :])
    return out


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [None, nl.bfloat16])
def test_configuration_objects_under_dataclass(target, dtype):
    x, gamma = normal(300, 96), normal(96, seed=1)
    plan = Plan(Sizes(rows=300, columns=96, tile=64), norm=Norm.rms, scale=0.5, out_dtype=dtype)
    assert plan.name == "" and plan.sizes.tiles() == 5
    got = nki_sim.simulate(norm_kernel, target=target)(x, gamma, plan=plan)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * 0.5 * gamma
    assert got.dtype == (np.float32 if dtype is None else BF16)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=1e-5 if dtype is None else 1e-2)


def test_required_fields_may_be_left_out_and_unknown_ones_not():
    partial = Plan(scale=2.0)
    assert partial.sizes is None and partial.scale == 2.0
    with pytest.raises(TypeError, match="no field"):
        Plan(nonsense=1)


class Weights(NamedTuple):
    gate: Any
    bias: Any


@dataclass
class Layer(NKIObject):
    weights: Weights
    blocks: Any = None
    scale: float = 2.0


@pytest.mark.parametrize("target", TARGETS)
def test_arrays_inside_arguments(target):
    """Named tuples, nested containers and objects bring their arrays along; None stays None."""

    def kernel(x, layer, tables):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        tile = nl.multiply(nl.load(x), nl.load(layer.weights.gate))
        if layer.weights.bias is not None:
            tile = nl.add(tile, nl.load(layer.weights.bias))
        for block in layer.blocks:
            tile = nl.add(tile, nl.load(block[0]))
        tile = nl.multiply(tile, layer.scale)
        nl.store(out, nl.add(tile, nl.load(tables["deep"]["er"][1])))
        return out

    x, gate, block, table = (normal(5, 7, seed=i) for i in range(4))
    layer = Layer(weights=Weights(gate, None), blocks=[(block, 1), (block, 2)])
    got = nki_sim.simulate(kernel, target=target)(x, layer, tables={"deep": {"er": (3, table)}})
    np.testing.assert_allclose(got, (x * gate + 2 * block) * 2 + table, rtol=1e-5, atol=1e-6)
    assert layer.weights.gate is gate  # the caller's object stays as it was


# ------------------------------------------------------------------ a package of helper modules

_FILES = {
    "__init__": "",
    "shapes": """
        from typing import Optional
        import nki.language as nl

        P_MAX = nl.tile_size.pmax

        def div_ceil(a: int, b: int) -> int:
            return (a + b - 1) // b

        def banks(nbytes: int, bank: Optional[int] = None) -> int:
            return div_ceil(nbytes, nl.tile_size.psum_fmax * 4 if bank is None else bank)
        """,
    "allocator": """
        import nki.language as nl
        from nki.language import NKIObject

        class Stack(NKIObject):
            def __init__(self, start: int, end: int):
                self.start = start
                self.end = end
                self.marks = []

            def push(self):
                self.marks.append(self.start)

            def pop(self):
                self.start = self.marks.pop()

            def alloc(self, shape, dtype, buffer=nl.sbuf, name=""):
                size = 1
                for n in shape[1:]:
                    size *= n
                address = self.start
                self.start += size * {nl.float32: 4, nl.bfloat16: 2}[dtype]
                assert self.start <= self.end, f"{self.start} over {self.end}"
                return nl.ndarray(shape, dtype, buffer=buffer, name=name, address=(0, address))
        """,
    "product": """
        import nki
        import nki.isa as nisa
        import nki.language as nl
        from nki.isa.constants import dge_mode, oob_mode

        from .allocator import Stack
        from .shapes import P_MAX, banks, div_ceil

        @nki.jit
        def product_kernel(a, b, stack_bytes: int = 16384):
            k, m = a.shape
            _, n = b.shape
            out = nl.ndarray((m, n), dtype=nl.float32, buffer=nl.shared_hbm)
            stack = Stack(0, stack_bytes)
            assert banks(n * 4) == 1
            psum = nl.ndarray((m, n), nl.float32, buffer=nl.psum, address=(0, 2 * 2048))
            steps = div_ceil(k, P_MAX)
            for i in range(steps):
                stack.push()
                rows = min(P_MAX, k - i * P_MAX)
                left = stack.alloc((rows, m), a.dtype, name=f"left_{i}")
                right = stack.alloc((rows, n), b.dtype, name=f"right_{i}")
                nisa.dma_copy(dst=left, src=a[i * P_MAX:i * P_MAX + rows, :],
                              dge_mode=dge_mode.none, oob_mode=oob_mode.error)
                nisa.dma_copy(right, b.ap([[n, rows], [1, n]], i * P_MAX * n))
                nisa.nc_matmul(psum[...], left[...], right[...], accumulate=i > 0)
                stack.pop()
            tile = nl.ndarray((m, n), nl.float32)
            newer = nisa.get_nc_version() > nisa.nc_version.gen2
            engine = nisa.scalar_engine if newer else nisa.vector_engine
            nisa.tensor_copy(tile, psum, engine=engine)
            nisa.dma_copy(out, tile)
            return out
        """,
}


@pytest.fixture
def package(tmp_path):
    """A throw-away package of kernels that import each other, bound to the simulator."""
    nki_sim.install()
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name, text in _FILES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    sys.path.insert(0, str(tmp_path))
    try:
        yield importlib.import_module("shipped.product")
    finally:
        sys.path.remove(str(tmp_path))
        for name in [n for n in sys.modules if n.split(".")[0] == "shipped"]:
            del sys.modules[name]


@pytest.mark.parametrize("target", TARGETS)
def test_nested_helper_modules_with_an_address_stack(package: ModuleType, target):
    a, b = normal(300, 96), normal(300, 200, seed=1)
    got = nki_sim.simulate(package.product_kernel, target=target)(a, b)
    np.testing.assert_allclose(got, a.T @ b, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="over 512"):
        nki_sim.simulate(package.product_kernel, target=target)(a, b, stack_bytes=512)


# ------------------------------------------------------------------ views with offsets


class View(NKIObject):
    """Its own description of a view, as libraries keep one, lowered to ``ap`` at the end."""

    def __init__(self, base, sizes, strides, offset=0):
        self.base, self.sizes, self.strides, self.offset = base, sizes, strides, offset

    def take(self, dim, start, end):
        sizes = tuple(end - start if i == dim else n for i, n in enumerate(self.sizes))
        return View(self.base, sizes, self.strides, self.offset + start * self.strides[dim])

    def get(self):
        pattern = [[s, n] for s, n in zip(self.strides, self.sizes, strict=True)]
        return self.base.ap(pattern=pattern, offset=self.offset)


@pytest.mark.parametrize("target", TARGETS)
def test_views_with_offsets_compose_with_instructions(target):
    def kernel(x):
        b, s, h, d = x.shape
        out = nl.ndarray((h, d, b, s), x.dtype, nl.shared_hbm)
        turned = x.rearrange(("b", "s", "h", "d"), ("s", "b", "h", "d"))
        tile = nl.ndarray((s, b * h * d), x.dtype, nl.sbuf)
        nisa.dma_copy(tile.reshape((s, b, h, d)), turned)
        heads = tile.reshape((s, b, h, d))
        for head in range(h):
            for j in range(b):
                psum = nl.ndarray((d, s), nl.float32, nl.psum)
                one = heads[:, j, head, :]
                assert one.shape == (s, d) and one.offset == (j * h + head) * d
                identity = nl.shared_identity_matrix(s, dtype=x.dtype)
                nisa.nc_matmul(psum, one, identity)
                back = nl.ndarray((d, s), x.dtype, nl.sbuf)
                nisa.tensor_copy(dst=back, src=psum)
                view = View(out, (d, s), (b * s, 1), head * d * b * s).take(1, 0, s)
                view.offset += j * s
                nisa.dma_copy(dst=view.get(), src=back)
        return out

    x = normal(2, 40, 3, 16)
    got = nki_sim.simulate(kernel, target=target)(x)
    np.testing.assert_array_equal(got, x.transpose(2, 3, 0, 1))


@pytest.mark.parametrize("target", TARGETS)
def test_rearrange_select_slice_and_view_share_storage(target):
    def kernel(x):
        p, n = x.shape
        tile = nl.load(x)
        pairs = tile.rearrange(("p", ("n", "two")), ("p", "two", "n"), {"two": 2})
        even, odd = pairs.select(1, 0), pairs.select(1, 1)
        swapped = nl.ndarray((p, n), x.dtype)
        halves = swapped.reshape_dim(1, (n // 2, 2))
        nisa.tensor_copy(halves[:, :, 0], odd)
        nisa.tensor_scalar(halves[:, :, 1], even, nl.multiply, -1.0)
        bits = swapped.view(nl.uint32)
        nisa.tensor_scalar(bits, bits, nl.bitwise_xor, 1 << 31)
        out = nl.ndarray((p, n), x.dtype, nl.shared_hbm)
        nisa.dma_copy(out.slice(1, 0, n), swapped)
        return out

    x = normal(77, 30)
    got = nki_sim.simulate(kernel, target=target)(x)
    want = np.empty_like(x)
    want[:, 0::2], want[:, 1::2] = -x[:, 1::2], x[:, 0::2]
    np.testing.assert_array_equal(got, want)


# ------------------------------------------------------------------ constants, registers, loops


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_from_a_file_gathered_by_a_register(target, tmp_path):
    table = normal(12, 8, 20)
    file = tmp_path / "table.npy"
    np.save(file, table)

    def kernel(index, file, count):
        rows = nl.shared_constant(file)
        slots = nl.ndarray((1, index.shape[1]), nl.int32, nl.sbuf)
        nisa.dma_copy(slots, index)
        out = nl.ndarray((index.shape[1], 8, 20), nl.float32, nl.shared_hbm)
        nisa.dma_copy(out, rows[0 : index.shape[1]])
        limit = nisa.register_alloc(count)
        where = nisa.register_alloc()
        tile = nl.ndarray((8, 20), nl.float32)

        def body(i):
            nisa.register_load(where, slots.ap([[index.shape[1], 1], [1, 1]], scalar_offset=i,
                                               indirect_dim=1))  # fmt: skip
            nisa.dma_copy(tile, rows.select(0, where))
            nisa.dma_copy(out.select(0, i), tile)

        nl.fori_loop(0, limit, body)
        return out

    index = np.array([[7, 0, 11, 3, 3]], np.int32)
    got = nki_sim.simulate(kernel, target=target)(index, str(file), 4)
    want = table[index[0]].copy()
    want[4] = table[4]  # the loop stops before the last
    np.testing.assert_array_equal(got, want)


def test_tile_sizes_and_versions_choose_the_code():
    def kernel(x):
        wide = nl.tile_size.gemm_moving_fmax
        assert nl.tile_size.pmax == 128 and wide >= 512 and nl.tile_size.psum_fmax >= 512
        if nisa.get_nc_version() >= nisa.nc_version.gen3:
            factor = 3.0
        elif nisa.get_nc_version() == nisa.nc_version.gen2:
            factor = 2.0
        tile = nl.load(x)
        nisa.tensor_scalar(tile, tile, nl.multiply, factor, False)
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nl.store(out, tile)
        return out

    x = normal(4, 4)
    np.testing.assert_array_equal(run(kernel, x, target="trn1"), 2 * x)
    np.testing.assert_array_equal(run(kernel, x, target="trn2"), 3 * x)


# ------------------------------------------------------------------ two cores


def _shard(size: int) -> tuple[int, int]:
    """(start, length) of this core's part, the whole on one core."""
    cores = nl.num_programs(0) if nl.program_ndim() > 0 else 1
    core = nl.program_id(0) if cores > 1 else 0
    part = (size + cores - 1) // cores
    return core * part, min(part, size - core * part)


@pytest.mark.parametrize("target", ["trn2", "trn3"])
@pytest.mark.parametrize("cores", [1, 2])
def test_two_cores_sum_their_halves_by_sendrecv(target, cores):
    def kernel(x):
        p, n = x.shape
        start, length = _shard(n)
        mine = nl.ndarray((p, length), x.dtype)
        nisa.dma_copy(mine, x[:, nl.ds(start, length)])
        total = nl.ndarray((p, 1), nl.float32)
        nisa.tensor_reduce(total, nl.add, mine, axis=1)
        if nl.num_programs() == 2:
            other = nl.ndarray((p, 1), nl.float32)
            peer = 1 - nl.program_id(0)
            nisa.sendrecv(src=total, dst=other, send_to_rank=peer, recv_from_rank=peer, pipe_id=0)
            nisa.tensor_tensor(total, total, other, nl.add)
        nisa.tensor_scalar(mine, mine, nl.subtract, total)
        shared = nl.ndarray((p, n), x.dtype, nl.shared_hbm)
        out = nl.ndarray((p, n), x.dtype, nl.shared_hbm)
        nisa.dma_copy(shared[:, nl.ds(start, length)], mine)
        if nl.num_programs() == 2:
            nisa.core_barrier(shared, (0, 1))
        half = nl.load(shared[:, n - start - length : n - start])  # what the other core wrote
        nisa.dma_copy(out[:, n - start - length : n - start], half)
        return out

    x = np.random.default_rng(0).integers(-9, 9, (60, 34)).astype(np.float32)
    got = nki_sim.simulate(kernel, target=target)[cores](x)
    np.testing.assert_array_equal(got, x - x.sum(1, keepdims=True))


# ------------------------------------------------------------------ a whole attention


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_online_softmax_attention(target, dtype):
    def kernel(q, k, v, scale, tile=96):
        d, n = q.shape
        m = k.shape[1]
        out = nl.ndarray((n, d), q.dtype, nl.shared_hbm)
        query = nl.load(q)
        peak = nl.full((n, 1), -3e38, nl.float32)
        total, acc = nl.zeros((n, 1), nl.float32), nl.zeros((n, d), nl.float32)
        for start in range(0, m, tile):
            width = min(tile, m - start)
            keys, values = nl.load(k[:, start : start + width]), nl.load(v[nl.ds(start, width), :])
            logits = nl.ndarray((n, width), nl.float32, nl.psum)
            nisa.nc_matmul(logits, query, keys)
            masked = nl.ndarray((n, width), nl.float32)
            nisa.activation(masked, nl.copy, logits, scale=scale)
            nisa.affine_select(
                masked, [[-1, width]], 1, masked, -3e38, nl.greater_equal, offset=m - n - start
            )
            old, new = peak, nl.ndarray((n, 1), nl.float32)
            nisa.tensor_reduce(new, nl.maximum, masked, axis=(1,))
            nisa.tensor_tensor(new, new, old, op=nl.maximum)
            minus, fade = nl.ndarray((n, 1), nl.float32), nl.ndarray((n, 1), nl.float32)
            nisa.tensor_scalar(dst=minus, data=new, op0=nl.multiply, operand0=-1.0)
            nisa.activation(dst=fade, op=nl.exp, data=old, bias=minus)
            weights, part = nl.ndarray((n, width), q.dtype), nl.ndarray((n, 1), nl.float32)
            nisa.activation_reduce(weights, nl.exp, masked, nl.add, part, bias=minus)
            turned = nl.ndarray((width, n), weights.dtype, nl.psum)
            nisa.nc_transpose(turned, weights)
            stationary = nl.ndarray((width, n), q.dtype)
            nisa.tensor_copy(stationary, turned)
            product = nl.ndarray((n, d), nl.float32, nl.psum)
            nisa.nc_matmul(product, stationary, values)
            nisa.scalar_tensor_tensor(acc, acc, nl.multiply, fade, nl.add, product)
            nisa.scalar_tensor_tensor(total, total, nl.multiply, fade, nl.add, part)
            peak = new
        nisa.reciprocal(total, total)
        result = nl.ndarray((n, d), q.dtype)
        nisa.tensor_scalar(result, acc, nl.multiply, total)
        nisa.dma_copy(out, result)
        return out

    d, n, m = 40, 50, 250
    q, k = normal(d, n, dtype=dtype), normal(d, m, dtype=dtype, seed=1)
    v = normal(m, d, dtype=dtype, seed=2)
    got = nki_sim.simulate(kernel, target=target)(q, k, v, scale=d**-0.5)
    logits = q.astype(np.float64).T @ k.astype(np.float64) * d**-0.5
    logits[np.arange(m)[None] > np.arange(n)[:, None] + m - n] = -np.inf
    weights = np.exp(logits - logits.max(1, keepdims=True))
    want = weights @ v.astype(np.float64) / weights.sum(1, keepdims=True)
    tolerance = 1e-5 if dtype is np.float32 else 2e-2
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------ kernels that are no functions


class Scaler:
    """Kernels as methods, and an object that is a kernel itself."""

    def __init__(self, factor):
        self.factor = factor

    @jit
    def scaled(self, x):
        out = nl.ndarray(x.shape, x.dtype, nl.shared_hbm)
        nl.store(out, nl.multiply(nl.load(x), self.factor))
        return out

    def __call__(self, x):
        return self.scaled(x)


def test_methods_partials_and_callable_objects_are_kernels():
    x, three = normal(5, 7), Scaler(3.0)
    partial = functools.partial(Scaler.scaled.func, three)
    for kernel in (three.scaled, three, partial, jit(partial), three.scaled[1]):
        np.testing.assert_array_equal(nki_sim.simulate(kernel, target="trn2")(x), 3 * x)
    np.testing.assert_array_equal(three.scaled(x), 3 * x)
