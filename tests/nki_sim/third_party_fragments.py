"""What the fragments in AWS's pages and docstrings take for granted, and what must hold after them.

A fragment is a run of statements without a kernel around it. It is executed inside a kernel, after
definitions of the names that it uses, and followed by a check where its text promises a value.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fragment:
    """Statements that are run inside a kernel.

    Attributes:
        file: part of the path of its page.
        key: text that picks it.
        before: definitions of its names, beyond ``COMMON``.
        after: a check of what it did.
        since: the oldest target that has everything it uses.
        rule: the rule that it breaks, on every target.
        refusal: the beginning of another error that it must raise.
        warns: part of a warning that AWS documents.
        cores: cores of the launch.
    """

    file: str
    key: str
    before: str = ""
    after: str = ""
    since: str = "trn1"
    rule: str | None = None
    refusal: str | None = None
    warns: str = ""
    cores: int = 1


def _hbm(name: str, shape: str, value: str = "2.0", dtype: str = "nl.float32") -> str:
    return f"{name} = nl.full({shape}, {value}, {dtype}, buffer=nl.shared_hbm)"


def _sbuf(name: str, shape: str, value: str = "2.0", dtype: str = "nl.float32") -> str:
    return f"{name} = nl.full({shape}, {value}, {dtype})"


_WIDE = "(128, 512)"
COMMON = {
    **{n: _hbm(n, _WIDE) for n in ("input_tensor", "out_tensor", "data_tensor", "actual_tensor",
                                   "in_tensor", "hbm_tensor")},
    **{n: _hbm(n, "(128, 128)") for n in ("x_tensor", "y_tensor")},
    "expected_tensor": "expected_tensor = nl.ndarray((128, 128), nl.float32, nl.shared_hbm)\n"
                       "nl.store(expected_tensor, nl.shared_identity_matrix(128, nl.float32))",
    "indices_tensor": _hbm("indices_tensor", _WIDE, "1", "nl.uint32"),
    "sbuf_tile": _sbuf("sbuf_tile", _WIDE),
    "ub_input": _hbm("ub_input", "(1, 1)", "3", "nl.int32"),
    "count_input": _hbm("count_input", "(1, 1)", "3", "nl.int32"),
    "N": "N = 8",
    "P_DIM": "P_DIM = 128",
    "idx": _sbuf("idx", "(1, 1)", "0", "nl.int32"),
    "shape": "shape = (4, 128, 512)",
    "batch_size": "batch_size = 64",
    "hidden_dim": "hidden_dim = 96",
    "core_id": "core_id = nl.program_id(0)",
    "core_barrier": "core_barrier = nisa.core_barrier",
    "sendrecv": "sendrecv = nisa.sendrecv",
    **{n: _sbuf(n, "(32, 32)") for n in ("a", "b", "c", "x", "y", "z")},
    "dynamic_range": "dynamic_range = nl.dynamic_range",
    "count_tensor": _sbuf("count_tensor", "(1, 1)", "3", "nl.int32"),
    "cond_tensor": _sbuf("cond_tensor", "(1, 1)", "0", "nl.int32"),
    **{n: _hbm(n, "(64, 48)") for n in ("a_input", "b_input")},
    **{n: _sbuf(n, "(64, 48)") for n in ("a_tile", "b_tile", "c_tile")},
    "hbm_src": _hbm("hbm_src", "(512, 128)", "2.0", "nl.bfloat16"),
    "sbuf_src": _sbuf("sbuf_src", "(128, 128)", "2.0", "nl.bfloat16"),
    "reg": "reg = nisa.register_alloc(3)",
    "temp": _sbuf("temp", "(1, 1)"),
    "acc": _sbuf("acc", "(1, 1)", "0.0"),
    "val": _sbuf("val", "(1, 1)"),
    "one_sb": _sbuf("one_sb", "(1, 1)", "1", "nl.int32"),
    "count_sb": _sbuf("count_sb", "(1, 1)", "3", "nl.int32"),
}  # fmt: skip

_LISTS = """inputs = [nl.full((32, 32), 4.0, nl.float32) for _ in range(3)]
outputs = [nl.ndarray((32, 32), nl.float32) for _ in range(3)]"""
_TILED = _hbm("input", "(256, 256)") + "\n" + _hbm("output", "(256, 256)", "0.0")
_HALF = "assert (output.values == 0.5).all()"
_SQUARED = "assert (out_tensor.values == 4).all()"
_ROWS = """t = nl.full((10, 32, 32), 2.0, nl.float32, buffer=nl.shared_hbm)
moved = nl.full((32, 32), 1.0, nl.float32)
moves = []
def process_tensor(tile):
    moves.append(nisa.dma_copy(moved, tile))"""
_MOVED = "assert len(moves) in (3, 10, 13) and (moved.values == 2).all()"
_DGE = "deep-dives/nki-dge.rst"
_MIG = "migration/index.rst"
_LIST_SHAPE = "AssertionError"

FRAGMENTS = [
    Fragment("language/__init__.py", "nl.abs_max(", since="trn3"),
    Fragment("language/__init__.py", "nl.abs_min(", since="trn3"),
    Fragment("language/__init__.py", "nl.copy(result_psum)",
             after="assert (result.values == 512).all()"),
    Fragment("language/__init__.py", "nl.gather_flattened(",
             after="assert (actual_tensor.values == 2).all()"),
    *(Fragment("language/__init__.py", f"nl.{n}_range(", after=_SQUARED)
      for n in ("affine", "sequential", "static", "dynamic")),
    Fragment("language/__init__.py", "nl.fori_loop(0, ub_reg", _hbm("data", "(1, 8)") + "\n" +
             _hbm("output", "(1, 8)"),
             "assert output.values.tolist() == [[2, 2, 2, 0, 0, 0, 0, 0]]"),
    Fragment("language/__init__.py", "nl.while_loop(reg", _hbm("data", "(1, 1)"),
             "assert acc.values[0, 0] == 6"),
    Fragment("isa/__init__.py", "nl.dynamic_range(reg)", after=_SQUARED),
    Fragment("isa/__init__.py", "core_barrier(data=shared", "", since="trn2", cores=2,
             warns="never written"),
    Fragment("isa/__init__.py", "Exchange data between two cores", since="trn2", cores=2,
             warns="never written"),
    Fragment("nki-aps.rst", "src_access = src.ap([32, 16]", rule="ap.bounds"),
    Fragment("nki-aps.rst", "The following is illegal", rule="ap.partition-step"),
    Fragment(_DGE, "dge_mode.hwdge,\n              engine", since="trn2"),
    Fragment(_DGE, "hwdge_transpose", _hbm("hbm_tensor", "(16, 128)", dtype="nl.bfloat16") + "\n" +
             _sbuf("sbuf_tile", "(128, 16)", dtype="nl.bfloat16"), since="trn2"),
    Fragment(_DGE, "gather_transpose",
             _hbm("hbm_tensor", "(128, 128)", dtype="nl.bfloat16") + "\n" +
             _sbuf("sbuf_tile", "(128, 128)", dtype="nl.bfloat16") + "\n" +
             _sbuf("indices", "(128, 1)", "5", "nl.uint32"), since="trn2"),
    Fragment(_DGE, "auto_transpose", _hbm("hbm_tensor", "(128, 128)", dtype="nl.bfloat16") + "\n" +
             _sbuf("sbuf_tile", "(128, 128)", dtype="nl.bfloat16")),
    Fragment(_DGE, "dge_mode.hwdge", since="trn2"),
    Fragment("nki-dynamic-loops.rst", "for _ in nl.dynamic_range(1)", after=_SQUARED),
    Fragment("nki-dynamic-loops.rst", "scalar_offset=i), dst=tile",
             _hbm("input_tensor", "(512, 512)") + "\n" + _hbm("out_tensor", "(512, 512)"),
             "assert (out_tensor.values == 4).all()"),
    Fragment("nki-dynamic-loops.rst", "while reg:\n"),
    Fragment("about/index.rst", "for i in range(input_tensor", after=_SQUARED),
    Fragment("about/index.rst", "nisa.nc_matmul(output",
             "output = nl.ndarray((128, 512), nl.float32, nl.psum)\n"
             "stationary, moving = nl.full((128, 128), 1.0, nl.float32), "
             "nl.full((128, 512), 1.0, nl.float32)\nx = y = moving",
             "assert (output.values == 2).all()"),
    Fragment("about/index.rst", "nisa.register_load(reg, cond)"),
    Fragment("about/index.rst", "process_tensor(t[i])", _ROWS, _MOVED),
    Fragment("nki-language-guide.rst", "process_tensor(t[i])", _ROWS, _MOVED),
    Fragment("about/index.rst", "len(inputs)", _LISTS,
             "assert (outputs[1].values == 0.25).all() and (outputs[0].values == 4).all()"),
    Fragment("nki-language-guide.rst", "len(inputs)",
             after="assert (y.values == 0.5).all() and (z.values == 2).all()"),
    Fragment("indexing-overview.rst", "x[1].shape == [2, 2]", refusal=_LIST_SHAPE),
    Fragment("indexing-overview.rst", "x[1, :, :]", refusal=_LIST_SHAPE),
    Fragment("tiling-overview.rst", "process first tile", _TILED, _HALF),
    Fragment("tiling-overview.rst", "for i in range(input.shape[0]", _TILED, _HALF),
    Fragment("trainium2_arch.rst", "nisa.dma_transpose",
             after="assert (sbuf_dst.values == 2).all()"),
    Fragment("trainium_inferentia2_arch.rst", "condition 1: a psum buffer",
             _sbuf("stationary_tile", "(128, 128)", "1.0") + "\nmoving_tile = stationary_tile",
             "assert (psum_buf.values == 1024).all()"),
    Fragment(_MIG, "for i in nl.dynamic_range(reg):\n    nisa.dma_copy", _hbm("data", "(1, 8)"),
             "assert temp.values[0, 0] == 2"),
    Fragment(_MIG, "nl.fori_loop(0, reg, body)", _hbm("data", "(1, 8)"),
             "assert temp.values[0, 0] == 2"),
    Fragment(_MIG, "nisa.tensor_tensor(dst=acc", after="assert acc.values[0, 0] == 6"),
    Fragment(_MIG, "Option A", _hbm("src_4d", "(4096, 1, 1, 128)") + "\nsrc = src_4d\n" +
             _hbm("src_3d", "(300, 2, 128)") + "\n" + _hbm("dst_3d", "(128, 2, 300)")),
    Fragment(_MIG, "buf = nl.ndarray((128, 128), dtype=nl.int32", rule="memset.value"),
    Fragment(_MIG, "buffer='sbuf'", rule="tensor.buffer"),
    Fragment(_MIG, "output = nl.ndarray((B, C, L)", "B, C, L = 2, 3, 4\n" + _sbuf("x", "(4, 4)")),
    Fragment(_MIG, "result[p, f], t[p, f]", "result = nl.ndarray((129, 513), nl.float32)\n"
             "t = nl.ndarray((129, 513), nl.float32)", rule="tensor.partitions"),
    Fragment(_MIG, "nisa.tensor_copy(result[p_start:p_end",
             "p_start, p_end, f_start, f_end = 32, 64, 5, 9\n" + _sbuf("t", "(128, 64)")
             + "\n" + _sbuf("result", "(128, 64)", "0.0"),
             "assert result.values.sum() == 2 * 32 * 4"),
    Fragment(_MIG, "address=(0, 128)", _sbuf("a", "(64, 32)")),
    Fragment(_MIG, "k_loaded_tensors = []",
             "num_512_tiles_cur_section, p_k, n_k, sca = 3, 128, 64, 4096"),
]  # fmt: skip

NOT_RUN = [
    ("migration", "nisa.register_alloc(x=None)", "pseudo-code: a list of signatures"),
    ("about/index.rst", "def my_function", "its output is not defined"),
    ("nki-language-guide.rst", "def select_activation", "the functions it selects are not given"),
    ("quickstart", 'of two input tensors.\n    """', "a signature without its body"),
    ("nki-language-guide.rst", "compile_kernel", "the compiler's own interface, not part of nki"),
    ("nki/api/nki/isa", "if reduce_cmd", "pseudo-code of the semantics"),
    ("nki/api/nki/isa", "num_elements_per_partition", "pseudo-code of the semantics"),
    ("nki/api/nki/isa", "np.where(mask", "pseudo-code of the semantics"),
    ("nki/api/nki/isa", "np.where(predicate", "pseudo-code of the semantics"),
    ("nki/api/nki/isa", "nonzero_indices", "pseudo-code of the semantics"),
    ("nki/api/nki/isa", "numpy, and data0", "pseudo-code of the semantics"),
    ("nki/api/nki/language", "range(lower, upper", "pseudo-code of the semantics"),
    ("nki/api/nki/language", "r = init", "pseudo-code of the semantics"),
    ("nki-aps.rst", "t.flatten()", "pseudo-code of the semantics"),
    ("migration", "A.flatten()", "pseudo-code of the semantics"),
    ("mx_kernel_utils.py", "", "helpers of mx_kernels.py, no example of its own"),
    ("mx_cpu_utils.py", "", "helpers of mx_toplevel.py"),
    ("mx_toplevel.py", "", "runs on a device through torch_xla (gen4 MX)"),
    ("_torch.py", "", "runs the kernels file beside it on a device"),
    ("_jax.py", "", "runs the kernels file beside it on a device"),
    ("nki_simulator.rst", "breakpoint()", "stops in the debugger"),
    ("nki_simulator.rst", "hw_result", "needs a device"),
    ("nki_simulator.rst", "nki.simulate(my_kernel)(inputs)", "no kernel given"),
    ("about/index.rst", "nisa.core_barrier(data, cores)", "pseudo-code: a list of parameters"),
    ("trainium3_arch.rst", "", "gen4-only"),
    ("migration", "_mx", "gen4-only"),
    ("migration", "_x4", "gen4-only"),
    ("migration", "# NKI 0.2.0", "shows old and new calls side by side"),
]
