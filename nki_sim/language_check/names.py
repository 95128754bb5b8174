"""Names of the `nki` modules that came or went, beside the published signatures."""

from __future__ import annotations

from nki_sim.language_check.rules import NOTES, REFERENCE, TO_02, Evidence

# Dotted name -> what to use instead, whose word it is, and how sure.
REMOVED_IN_02: dict[str, tuple[str, str, Evidence]] = {
    "nki.language.arange": ("use slices or .ap()", TO_02, "stated"),
    "nki.language.mgrid": ("use slices or .ap()", TO_02, "stated"),
    "nki.language.par_dim": (
        "tensors have no block dimensions, the first dimension is the partition",
        TO_02,
        "stated",
    ),
    "nki.language.all_reduce": ("use nki.isa instructions", REFERENCE, "published"),
    "nki.language.atomic_rmw": ("use nisa.dma_compute", REFERENCE, "published"),
    "nki.language.loop_reduce": ("accumulate in a tensor", REFERENCE, "published"),
    "nki.language.static_cast": ("use nisa.tensor_copy or .view()", REFERENCE, "published"),
    "nki.language.spmd_dim": ("launch with kernel[lnc]", REFERENCE, "published"),
    "nki.language.nc": ("launch with kernel[lnc]", REFERENCE, "published"),
    "nki.language.fp32": ("write the number", REFERENCE, "published"),
    "nki.compiler.sbuf": ("use ndarray(address=...)", f"{TO_02}; {REFERENCE}", "published"),
    "nki.compiler.psum": ("use ndarray(address=...)", f"{TO_02}; {REFERENCE}", "published"),
}

DYNAMIC_COPIES = ("nki.isa.tensor_copy_dynamic_src", "nki.isa.tensor_copy_dynamic_dst")

HOST_APIS = ("nki.benchmark", "nki.profile", "nki.baremetal", "nki.simulate_kernel")

# Values, types and attributes that a later version added -> that version, whose word it is, and
# how sure.
ADDED: dict[str, tuple[str, str, Evidence]] = {
    "nki.typing": ("0.3", f"{NOTES}, 0.3.0 New Features", "stated"),
    "nki.language.NkiTensor": ("0.3", REFERENCE, "published"),
    "nki.isa.VirtualRegister": ("0.3", REFERENCE, "published"),
    "nki.isa.dma_engine.dma": ("0.3", f"{NOTES}, 0.3.0 Breaking Changes", "stated"),
    "nki.isa.dma_engine.gpsimd_dma": ("0.3", f"{NOTES}, 0.3.0 Breaking Changes", "stated"),
    "nki.language.prelu": ("0.4", f"{NOTES}, 0.4.0 New Features", "stated"),
    "nki.language.bypass": ("0.4", f"{NOTES}, 0.4.0 New Features", "stated"),
    "nki.language.tile_size.sbuf_size_bytes": ("0.4", f"{NOTES}, 0.4.0 New Features", "stated"),
    "nki.language.tile_size.sbuf_fmax": ("0.4", f"{NOTES}, 0.4.0 New Features", "stated"),
    "nki.language.tile_size.sbuf_fmax_bytes": ("0.4", f"{NOTES}, 0.4.0 New Features", "stated"),
    "nki.language.tile_size.psum_bank_fmax": ("0.4", f"{NOTES}, 0.4.0 New Features", "stated"),
    "nki.language.tile_size.psum_bank_fmax_bytes": (
        "0.4",
        f"{NOTES}, 0.4.0 New Features",
        "stated",
    ),
    "nki.language.tile_size.psum_num_banks": ("0.5", f"{NOTES}, 0.5.0 New Features", "stated"),
    "nki.language.float8_e8m0fnu": ("0.5", f"{NOTES}, 0.5.0 New Features", "stated"),
    "nki.language.average": ("0.5", REFERENCE, "published"),
}

# Functions whose arrival the release notes announce; the others are known from the published
# references alone.
ANNOUNCED: dict[str, str] = {
    "nki.collectives.all_to_all_v": f"{NOTES}, 0.3.0 New Features",
    "nki.language.load": f"{NOTES}, 0.3.0 New Features; {TO_02}",
    "nki.language.store": f"{NOTES}, 0.3.0 New Features; {TO_02}",
    "nki.language.copy": f"{NOTES}, 0.3.0 New Features",
    "nki.language.matmul": f"{NOTES}, 0.3.0 New Features",
    "nki.language.transpose": f"{NOTES}, 0.3.0 New Features",
    "nki.language.softmax": f"{NOTES}, 0.3.0 New Features",
    "nki.language.abs_max": f"{NOTES}, 0.4.0 New Features",
    "nki.language.abs_min": f"{NOTES}, 0.4.0 New Features",
    "nki.isa.activate2": f"{NOTES}, 0.4.0 New Features",
    "nki.language.fori_loop": f"{NOTES}, 0.6.0 New Features",
    "nki.language.while_loop": f"{NOTES}, 0.6.0 New Features",
    "nki.isa.topk": f"{NOTES}, 0.6.0 New Features",
    "nki.collectives.all_gather_v": f"{NOTES}, 0.6.0 New Features",
}

# Keywords whose arrival the release notes announce, likewise.
ANNOUNCED_KEYWORDS: dict[tuple[str, str], str] = {
    ("nki.isa.nc_matmul", "accumulate"): f"{NOTES}, 0.3.0 New Features",
    ("nki.isa.nc_matmul_mx", "accumulate"): f"{NOTES}, 0.3.0 New Features",
    ("nki.isa.sendrecv", "dma_engine"): f"{NOTES}, 0.3.0 Breaking Changes",
    ("nki.isa.dma_compute", "unique_indices"): f"{NOTES}, 0.3.0 Breaking Changes",
    ("nki.isa.register_move", "src"): f"{NOTES}, 0.3.0 Breaking Changes",
    ("nki.isa.dma_compute", "oob_mode"): f"{NOTES}, 0.4.0 New Features",
}

# Keywords that documents say went, with the rule of each; None stands for any function of the
# module.
REMOVED_KEYWORDS: dict[tuple[str | None, str], str] = {
    (None, "mask"): "mask-removed",
    ("nki.isa", "dtype"): "isa-dtype-removed",
    ("nki.isa.nc_matmul", "psumAccumulateFlag"): "matmul-keyword-removed",
    ("nki.isa.nc_matmul", "is_moving_zero"): "matmul-keyword-removed",
    ("nki.isa.dma_copy", "dst_rmw_op"): "dma-copy-rmw-removed",
    ("nki.isa.dma_copy", "unique_indices"): "dma-copy-rmw-removed",
    ("nki.isa.sendrecv", "use_gpsimd_dma"): "sendrecv-flag-removed",
    ("nki.isa.register_move", "imm"): "register-move-imm",
    (
        "nki.collectives.collective_permute_implicit_current_processing_rank_id",
        "num_channels",
    ): "num-channels-removed",
}

# 0.5 added these to NkiTensor; reshape, view, ap and get_pattern were there before (release notes
# 0.5.0).
VIEW_METHODS_OF_05 = frozenset(
    (
        "broadcast",
        "expand_dim",
        "flatten_dims",
        "indirect",
        "is_contiguous",
        "is_indirect",
        "permute",
        "rearrange",
        "reshape_dim",
        "select",
        "slice",
        "squeeze_dim",
        "vector_select",
    )
)
