"""One breach and one near miss for every rule of the language check.

A case is the body of a kernel `k(x, y)`, or a whole module where it decorates a kernel itself. The
line that breaks the rule ends in "#!".
"""

from __future__ import annotations

from typing import NamedTuple

HEADER = """import enum
from dataclasses import dataclass

import nki
import nki.collectives as ncc
import nki.isa as nisa
import nki.language as nl
"""


class Case(NamedTuple):
    """`breach` breaks `rule` in the versions `since` to `until`; `near_miss` does not, in any."""

    rule: str
    since: str
    until: str
    breach: str
    near_miss: str


def module(text: str) -> str:
    """The source of a case as a module."""
    if "@nki." in text:
        return HEADER + text
    body = "\n".join("    " + line for line in text.splitlines())
    return f"{HEADER}\n@nki.jit\ndef k(x, y):\n{body}\n"


TILE = "t = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf)\n"
CUBE = "t = nl.ndarray((128, 8, 64), dtype=nl.float32, buffer=nl.sbuf)\n"
OUT = "o = nl.ndarray((128, 64), dtype=nl.float32, buffer={})\n"

CASES = (
    # The language.
    Case("is-operator", "0.3", "0.6", "if y is None:  #!\n    pass", "if y == None:\n    pass"),
    Case("is-operator", "0.3", "0.6", "z = y is not None  #!", "z = 'is' in y"),
    Case(
        "keyword-only",
        "0.3",
        "0.6",
        "@nki.jit\ndef k(x, *, scale=1.0):  #!\n    pass",
        "def h(x, *, scale=1.0):\n    pass\n@nki.jit\ndef k(x, scale=1.0):\n    h(x, scale=scale)",
    ),
    Case(
        "list-default",
        "0.3",
        "0.6",
        "@nki.jit\ndef k(x, stride=[1, 1]):  #!\n    pass",
        "def h(x, s=[1, 1]):\n    pass\n@nki.jit\ndef k(x, stride=(1, 1)):\n    h(x)",
    ),
    Case(
        "list-argument",
        "0.3",
        "0.6",
        "@nki.jit\ndef k(x, s):\n    pass\ndef run(x):\n    return k[2](x, [1, 1])  #!",
        "def h(x, s):\n    pass\n@nki.jit\ndef k(x, s):\n    h(x, [1])\n"
        "def run(x):\n    return k(x, (1, 1)), h(x, [1])",
    ),
    Case(
        "list-annotation",
        "0.3",
        "0.6",
        "@nki.jit\ndef k(x, s: list[int]):  #!\n    pass",
        "@nki.jit\ndef k(x, s: tuple[int, ...]):\n    pass",
    ),
    Case(
        "class-inheritance",
        "0.2",
        "0.6",
        "class A(nl.NKIObject):\n    a: int\nclass B(A):  #!\n    b: int\n"
        "@nki.jit\ndef k(x):\n    B(1)",
        "class A(nl.NKIObject):\n    a: int\nclass E(enum.Enum):\n    a = 1\nclass Host(dict):\n"
        "    pass\nclass Bad(ValueError):\n    pass\n"
        "@nki.jit\ndef k(x):\n    A(1)\n    raise Bad(E.a)",
    ),
    Case(
        "class-base-missing",
        "0.2",
        "0.6",
        "class A:  #!\n    pass\n@nki.jit\ndef k(x, a: A):\n    pass",
        "class A(nl.NKIObject):\n    pass\nclass Host:\n    pass\n"
        "@nki.jit\ndef k(x, a: A):\n    pass",
    ),
    Case(
        "frozen-dataclass",
        "0.2",
        "0.3",
        "@dataclass(frozen=True)\nclass A(nl.NKIObject):  #!\n    a: int\n"
        "@nki.jit\ndef k(x):\n    A(1)",
        "@dataclass(frozen=False)\nclass A(nl.NKIObject):\n    a: int\n"
        "@nki.jit\ndef k(x):\n    A(1)",
    ),
    Case(
        "enum-operator",
        "0.2",
        "0.6",
        "class E(enum.Enum):\n    a = 1\n@nki.jit\ndef k(x, e):\n    return e < E.a  #!",
        "class E(enum.Enum):\n    a = 1\n@nki.jit\ndef k(x, e):\n    return e == E.a",
    ),
    Case("dict-key", "0.2", "0.6", "d = {'a': 1, 2: 3}  #!", "d = {'a': 1, y: 3}"),
    Case("dict-key", "0.2", "0.6", "d = {}\nd[0] = 1  #!", "d = {}\nd['a'] = 1\ne = []\ne[0] = 1"),
    Case(
        "generator",
        "0.2",
        "0.6",
        "def tiles():\n    yield 1  #!\nfor i in tiles():\n    pass",
        "for i in [j for j in range(3)]:\n    pass",
    ),
    Case(
        "async",
        "0.2",
        "0.6",
        "async def h():  #!\n    pass",
        "def wait():\n    pass\nwait()",
    ),
    Case(
        "external-state",
        "0.2",
        "0.7",
        "STATE = {}\n@nki.jit\ndef k(x):\n    STATE['a'] = 1  #!",
        "STATE = {}\n@nki.jit\ndef k(x):\n    a = STATE['a']\n    STATE_ = {}\n    STATE_['a'] = 1",
    ),
    Case(
        "external-state",
        "0.2",
        "0.7",
        "STATE = 0\n@nki.jit\ndef k(x):\n    global STATE  #!\n    STATE = 1",
        "STATE = 0\n@nki.jit\ndef k(x):\n    count = 0\n    def step():\n"
        "        nonlocal count\n        count += STATE\n    step()",
    ),
    Case(
        "sub-kernel-decorator",
        "0.2",
        "0.6",
        "@nki.jit\ndef h(x):\n    pass\n@nki.jit\ndef k(x):\n    h(x)  #!",
        "@nki.jit\ndef h(x):\n    pass\ndef g(x):\n    pass\n@nki.jit\ndef k(x):\n    g(x)\n"
        "def run(x):\n    h(x)",
    ),
    Case(
        "output-buffer",
        "0.3",
        "0.7",
        OUT.format("nl.hbm") + "return o  #!",
        OUT.format("nl.shared_hbm") + "return o",
    ),
    Case(
        "output-buffer",
        "0.3",
        "0.7",
        TILE + "return x, t  #!",
        TILE + "def h():\n    return t\nreturn x",
    ),
    # Loops on the device.
    Case(
        "dynamic-range-removed",
        "0.7",
        "0.7",
        "for i in nl.dynamic_range(4):  #!\n    pass",
        "for i in nl.static_range(4):\n    pass",
    ),
    Case(
        "register-while-removed",
        "0.7",
        "0.7",
        "r = nisa.register_alloc(1)\nwhile r:  #!\n    pass",
        "r = 1\nwhile r:\n    r -= 1",
    ),
    Case(
        "no-reorder-loop",
        "0.3",
        "0.6",
        "def h():\n    for i in nl.dynamic_range(4):\n        pass\n"
        "with nl.no_reorder():\n    h()  #!",
        "with nl.no_reorder():\n    for i in nl.affine_range(4):\n        pass",
    ),
    Case(
        "loop-variable-written",
        "0.4",
        "0.6",
        "for i in nl.dynamic_range(4):\n    nisa.register_move(i, y)  #!",
        "r = nisa.register_alloc(1)\nfor i in nl.static_range(4):\n    nisa.register_move(r, i)",
    ),
    Case(
        "loop-variable-arithmetic",
        "0.3",
        "0.6",
        "for i in nl.dynamic_range(4):\n    nisa.dma_copy(dst=x[i * 2], src=y)  #!",
        "for i in nl.static_range(4):\n    nisa.dma_copy(dst=x[i * 2], src=y)",
    ),
    Case(
        "loop-variable-arithmetic",
        "0.6",
        "0.6",
        "def body(i):\n    nisa.dma_copy(dst=x[i + 1], src=y)  #!\nnl.fori_loop(0, y, body)",
        "def body(i, n=2):\n    nisa.dma_copy(dst=x.ap([[1, n + 1]], scalar_offset=i), src=y)\n"
        "nl.fori_loop(0, 4, body)",
    ),
    Case(
        "loop-variable-offset",
        "0.3",
        "0.3",
        "for i in nl.dynamic_range(4):\n    v = x.ap([[1, 1]], scalar_offset=i)  #!",
        "r = nisa.register_alloc(1)\nv = x.ap([[1, 1]], scalar_offset=r)",
    ),
    Case(
        "loop-step",
        "0.2",
        "0.7",
        "for i in nl.dynamic_range(8, 0, -1):  #!\n    pass",
        "for i in range(8, 0, -1):\n    pass",
    ),
    Case(
        "fori-body-returns",
        "0.6",
        "0.7",
        "def body(i):\n    return i  #!\nnl.fori_loop(0, 4, body)",
        "def body(i):\n    return None\ndef other(i):\n    return i\nother(1)\n"
        "nl.fori_loop(0, 4, body)",
    ),
    Case(
        "while-body-returns-nothing",
        "0.6",
        "0.7",
        "def body(r):  #!\n    return\nnl.while_loop(y, body)",
        "def body(r):\n    nisa.register_load(r, x)\n    return r\nnl.while_loop(y, body)",
    ),
    # Names.
    Case(
        "legacy-namespace",
        "0.4",
        "0.7",
        "import neuronxcc.nki.isa as old  #!\n@nki.jit\ndef k(x):\n    old.reciprocal(x)",
        "import neuronxcc.nki.isa as old\n@nki.jit\ndef k(x):\n    pass\n"
        "def host(x):\n    old.reciprocal(x)",
    ),
    Case(
        "host-api-removed",
        "0.2",
        "0.7",
        "@nki.benchmark(warmup=1)  #!\ndef k(x):\n    pass",
        "@nki.jit\ndef k(x):\n    pass\nnki.simulate(k)",
    ),
    Case("name-removed", "0.2", "0.7", "i = nl.arange(4)  #!", "nl = y\ni = nl.arange(4)"),
    Case("name-removed", "0.2", "0.7", "s = (2, nl.par_dim(128), 4)  #!", "s = (128, 2, 4)"),
    Case(
        "dynamic-copy-removed",
        "0.4",
        "0.7",
        "nisa.tensor_copy_dynamic_src(x, y)  #!",
        "nisa.tensor_copy(x, y)",
    ),
    Case("name-newer", "0.2", "0.2", "t = nl.load(x)  #!", "nisa.dma_copy(dst=x, src=y)"),
    Case("name-newer", "0.2", "0.2", "t = nl.exp(x)  #!", "nisa.activation(x, op=nl.exp, data=y)"),
    Case(
        "name-newer",
        "0.2",
        "0.3",
        "nisa.activate2(x, nl.exp, y, 1.0, 0.0, nl.multiply, nl.add)  #!",
        "nisa.activation(x, nl.exp, y)",
    ),
    Case("name-newer", "0.2", "0.4", "d = nl.float8_e8m0fnu  #!", "d = nl.float8_e4m3fn"),
    Case(
        "name-newer",
        "0.2",
        "0.3",
        "n = nl.tile_size.sbuf_fmax_bytes  #!",
        "n = nl.tile_size.total_available_sbuf_size",
    ),
    Case(
        "name-newer",
        "0.2",
        "0.5",
        "nl.fori_loop(0, 4, y)  #!",
        "y.fori_loop(0, 4, y)",
    ),
    Case(
        "name-newer",
        "0.2",
        "0.2",
        "import nki.typing as nt  #!\n@nki.jit\ndef k(x: nt.tensor[1, 2]):\n    pass",
        "import typing as nt\n@nki.jit\ndef k(x: nt.Any):\n    pass",
    ),
    Case("view-method-newer", "0.2", "0.4", TILE + "t.permute((1, 0))  #!", "y.permute((1, 0))"),
    Case("nested-slicing", "0.2", "0.2", TILE + "u = t[0:64][:, 0]  #!", "u = y[0][:, 0]"),
    # Calls.
    Case("dst-missing", "0.2", "0.7", "nisa.tensor_copy(src=y)  #!", "nisa.tensor_copy(**y)"),
    Case("dst-missing", "0.2", "0.7", "z = nisa.reciprocal(y)  #!", "z = nisa.reciprocal(x, y)"),
    Case(
        "mask-removed",
        "0.2",
        "0.7",
        "nisa.tensor_copy(x, y, mask=y)  #!",
        "nisa.nc_stream_shuffle(dst=x, src=y, shuffle_mask=[0] * 32)",
    ),
    Case(
        "isa-dtype-removed",
        "0.2",
        "0.7",
        "nisa.tensor_copy(x, y, dtype=nl.float32)  #!",
        "t = nl.zeros((1, 1), dtype=nl.float32)",
    ),
    Case(
        "matmul-keyword-removed",
        "0.2",
        "0.7",
        "nisa.nc_matmul(x, y, y, psumAccumulateFlag=3)  #!",
        "nisa.nc_matmul(x, y, y, is_moving_onezero=True)",
    ),
    Case(
        "dma-copy-rmw-removed",
        "0.3",
        "0.7",
        "nisa.dma_copy(x, y, dst_rmw_op=nl.add)  #!",
        "nisa.dma_copy(x, y, dge_mode=nisa.dge_mode.none)",
    ),
    Case(
        "sendrecv-flag-removed",
        "0.3",
        "0.7",
        "nisa.sendrecv(x, y, 0, 1, 0, use_gpsimd_dma=True)  #!",
        "nisa.sendrecv(x, y, 0, 1, 0)",
    ),
    Case("register-move-imm", "0.3", "0.7", "nisa.register_move(x, imm=3)  #!", "y.move(x, imm=3)"),
    Case(
        "num-channels-removed",
        "0.3",
        "0.7",
        "ncc.collective_permute_implicit_current_processing_rank_id(0, y, num_channels=2)  #!",
        "ncc.collective_permute_implicit_current_processing_rank_id(0, y, channel_id=2)",
    ),
    Case(
        "dma-compute-order",
        "0.3",
        "0.7",
        "nisa.dma_compute(x, [y], [1.0], nl.add)  #!",
        "nisa.dma_compute(x, [y], scales=[1.0], reduce_op=nl.add)",
    ),
    Case(
        "dma-compute-order",
        "0.2",
        "0.2",
        "nisa.dma_compute(x, [y], nl.add, [1.0])  #!",
        "nisa.dma_compute(x, [y], *y)",
    ),
    Case(
        "affine-select-order",
        "0.3",
        "0.7",
        "nisa.affine_select(x, [[1, 4]], 0, 1, y, 0.0)  #!",
        "nisa.affine_select(x, [[1, 4]], offset=0, channel_multiplier=1, on_true_tile=y,"
        " on_false_value=0.0)",
    ),
    Case(
        "keyword-newer",
        "0.2",
        "0.2",
        "nisa.nc_matmul(x, y, y, accumulate=True)  #!",
        "nisa.nc_matmul(x, y, y, is_transpose=True)",
    ),
    Case(
        "keyword-newer",
        "0.2",
        "0.3",
        "ncc.all_reduce(x, y, y, nl.add, priority=1)  #!",
        "ncc.all_reduce(x, y, y, nl.add, name='sum')",
    ),
    Case(
        "keyword-unknown",
        "0.2",
        "0.6",
        "nisa.memset(x, value=0, colour=1)  #!",
        "nisa.memset(x, value=0, engine=nisa.engine.vector, name='zero')",
    ),
    Case(
        "argument-missing",
        "0.2",
        "0.6",
        "nisa.tensor_tensor(x, y, y)  #!",
        "nisa.tensor_tensor(x, y, *y)",
    ),
    Case(
        "argument-extra",
        "0.2",
        "0.6",
        "nisa.reciprocal(x, y, dst=x)  #!",
        "nisa.reciprocal(x, y, name='r')",
    ),
    Case(
        "enum-integer",
        "0.3",
        "0.7",
        "nisa.dma_copy(x, y, dge_mode=2)  #!",
        "nisa.dma_copy(x, y, dge_mode=nisa.dge_mode.hwdge)",
    ),
    Case(
        "buffer-string",
        "0.3",
        "0.7",
        "t = nl.ndarray((1, 1), nl.int32, 'sbuf')  #!",
        "t = nl.ndarray((1, 1), nl.int32, nl.sbuf, 'sbuf')",
    ),
    Case(
        "memset-type",
        "0.3",
        "0.7",
        "t = nl.ndarray((1, 1), dtype=nl.int32)\nnisa.memset(t[0:1], value=2.0)  #!",
        "t = nl.ndarray((1, 1), dtype=nl.int32)\nu = nl.ndarray((1, 1), dtype=nl.float32)\n"
        "nisa.memset(t, value=2)\nnisa.memset(u, value=2.0)\nnisa.memset(u, value=2)",
    ),
    Case(
        "dma-from-psum",
        "0.3",
        "0.7",
        "p = nl.zeros((1, 1), nl.float32, nl.psum)\nnisa.dma_copy(x, p[0:1])  #!",
        "p = nl.zeros((1, 1), nl.float32, nl.psum)\nnisa.tensor_copy(x, p)",
    ),
    Case(
        "reduce-axis",
        "0.3",
        "0.7",
        CUBE + "nisa.tensor_reduce(x, nl.add, t, axis=1)  #!",
        TILE + "nisa.tensor_reduce(x, nl.add, t, axis=1)\nnisa.tensor_reduce(x, nl.add, y, axis=1)",
    ),
    Case(
        "platform-target",
        "0.3",
        "0.7",
        "@nki.jit(platform_target='trn1')  #!\ndef k(x):\n    pass",
        "@nki.jit(mode='torch')\ndef k(x):\n    pass",
    ),
    Case(
        "nl-not-in-hardware",
        "0.3",
        "0.6",
        "z = nl.divide(x, y)  #!",
        "nisa.tensor_tensor(x, x, y, op=nl.divide)",
    ),
    Case(
        "nl-not-in-hardware",
        "0.3",
        "0.6",
        "z = nl.matmul(x, y)  #!",
        "z = y.matmul(x, y)",
    ),
)
