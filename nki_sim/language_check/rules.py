"""The rules, as data: what the compiler refuses, in which NKI versions, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nki_sim.language_check.versions import span

Evidence = Literal["stated", "published", "inferred"]

# Where the statements stand: pages of AWS's Neuron documentation,
# https://awsdocs-neuron.readthedocs-hosted.com.
GUIDE = "NKI Language Guide (nki/get-started/nki-language-guide)"
CLASSES = f"{GUIDE}, Class Support"
MIGRATION = "NKI Migration Guides (nki/migration)"
TO_02 = f"{MIGRATION}, 0.1.0 to 0.2.0"
TO_03 = f"{MIGRATION}, 0.2.0 to 0.3.0"
TO_04 = f"{MIGRATION}, 0.3.0 to 0.4.0"
TO_06 = f"{MIGRATION}, 0.5.0 to 0.6.0"
NOTES = "NKI release notes (release-notes/components/nki)"
LOOPS = "NKI Dynamic Loops (nki/deep-dives/nki-dynamic-loops)"
REFERENCE = "NKI API reference (nki/api) of Neuron SDK 2.28 to 2.32"
_RESTRICTIONS = f"{TO_03}, Language restrictions"
_UNEXPECTED = f"{REFERENCE}; {NOTES}, 0.2.0 Bug Fixes (unexpected keyword argument)"


@dataclass(frozen=True)
class Rule:
    """One thing that a compiler refuses.

    `evidence` is "stated" where a document says so in words, "published" where it follows from the
    names and signatures in the API reference of each release, "inferred" where it follows from what
    the documents list as allowed. `since` and `until` bound the versions, both included; None
    leaves the side open. A finding may name fewer versions.
    """

    id: str
    refuses: str
    since: str | None
    until: str | None
    source: str
    evidence: Evidence = "stated"

    @property
    def versions(self) -> tuple[str, ...]:
        return span(self.since, self.until)


# 0.7 runs the kernel as Python ("all of Python for meta-programming", release notes 0.7.0), so
# what only the parser frontend refuses ends with 0.6; what the API itself refuses stays.
RULES: tuple[Rule, ...] = (
    # The language.
    Rule("is-operator", "`is` and `is not`", "0.3", "0.6", _RESTRICTIONS),
    Rule("keyword-only", "the `*` separator in a kernel's signature", "0.3", "0.6", _RESTRICTIONS),
    Rule("list-default", "a list as the default of a kernel argument", "0.3", "0.6", _RESTRICTIONS),
    Rule("list-argument", "a list passed to a kernel", "0.3", "0.6", _RESTRICTIONS),
    Rule(
        "list-annotation",
        "a kernel argument annotated as a list",
        "0.3",
        "0.6",
        _RESTRICTIONS,
        "inferred",
    ),
    Rule(
        "class-inheritance",
        "inheritance from anything but NKIObject or Enum",
        "0.2",
        "0.6",
        f"{CLASSES}; {NOTES}, 0.7.0",
    ),
    Rule(
        "class-base-missing",
        "a class in NKI code that does not inherit from NKIObject",
        "0.2",
        "0.6",
        CLASSES,
    ),
    Rule(
        "frozen-dataclass",
        "instances of an NKIObject under @dataclass(frozen=True)",
        "0.2",
        "0.3",
        f"{NOTES}, 0.4.0 Bug Fixes",
    ),
    Rule(
        "enum-operator",
        "operators other than == and != on enumeration members",
        "0.2",
        "0.6",
        f"{GUIDE}, Enumerations",
    ),
    Rule(
        "dict-key",
        "dictionary keys that are not strings",
        "0.2",
        "0.6",
        f"{GUIDE}, NKI Values; {TO_02}",
    ),
    Rule("generator", "generators (`yield`)", "0.2", "0.6", f"{NOTES}, 0.7.0"),
    Rule(
        "async", "`async` functions and `await`", "0.2", "0.6", f"{GUIDE}, NKI Values", "inferred"
    ),
    Rule(
        "external-state",
        "changing state outside the kernel, which is cached by its arguments",
        "0.2",
        None,
        f"{GUIDE}, Kernel Caching; {NOTES}, 0.3.0 Known Issues",
    ),
    Rule(
        "sub-kernel-decorator",
        "calling a function decorated with nki.jit from NKI code",
        "0.2",
        "0.6",
        f"{TO_02}, Remove nki.jit decorator on sub-kernels",
    ),
    Rule(
        "output-buffer",
        "returning a tensor that is not in nl.shared_hbm",
        "0.3",
        None,
        f"{TO_03}, Output tensors must use nl.shared_hbm",
    ),
    # Loops on the device.
    Rule(
        "dynamic-range-removed",
        "nl.dynamic_range (use nl.fori_loop)",
        "0.7",
        None,
        f"{NOTES}, 0.7.0; {TO_06}",
    ),
    Rule(
        "register-while-removed",
        "`while` on a register (use nl.while_loop)",
        "0.7",
        None,
        f"{NOTES}, 0.7.0; {TO_06}",
    ),
    Rule(
        "no-reorder-loop",
        "a dynamic loop inside nl.no_reorder()",
        "0.3",
        "0.6",
        f"{LOOPS}; {TO_06}",
    ),
    Rule(
        "loop-variable-written",
        "writing to the variable of a dynamic_range loop",
        "0.4",
        "0.6",
        f"{NOTES}, 0.4.0 Bug Fixes",
    ),
    Rule(
        "loop-variable-arithmetic",
        "Python arithmetic on the variable of a dynamic loop",
        "0.3",
        "0.6",
        f"{NOTES}, 0.3.0 Known Issues; {LOOPS}; {TO_06}",
    ),
    Rule(
        "loop-variable-offset",
        "the variable of a dynamic_range loop as scalar_offset",
        "0.3",
        "0.3",
        f"{NOTES}, 0.3.0 Known Issues and 0.4.0 Bug Fixes",
    ),
    Rule(
        "loop-step",
        "a dynamic loop whose step is not a positive integer",
        "0.2",
        None,
        f"{LOOPS}; {TO_06}",
    ),
    Rule(
        "fori-body-returns",
        "a fori_loop body that returns a value",
        "0.6",
        None,
        f"{TO_06}, Rules for migrated loops",
    ),
    Rule(
        "while-body-returns-nothing",
        "a while_loop body that returns no next condition",
        "0.6",
        None,
        f"{TO_06}, Rules for migrated loops",
    ),
    # Names.
    Rule(
        "legacy-namespace", "neuronxcc.nki", "0.4", None, f"{TO_04}, neuronxcc.nki.* inside kernels"
    ),
    Rule(
        "host-api-removed",
        "nki.benchmark, nki.profile, nki.baremetal, nki.simulate_kernel",
        "0.2",
        None,
        f"{NOTES}, 0.2.0 Bug Fixes",
    ),
    Rule(
        "name-removed",
        "names of the 0.1 language that later versions dropped",
        "0.2",
        None,
        f"{TO_02}; {NOTES}, 0.1.0",
    ),
    Rule(
        "dynamic-copy-removed",
        "nisa.tensor_copy_dynamic_src and _dst",
        "0.4",
        None,
        f"{TO_04}, Removed APIs",
    ),
    Rule(
        "name-newer",
        "a name that a later version added",
        "0.2",
        "0.6",
        f"{NOTES}; {REFERENCE}",
        "published",
    ),
    Rule(
        "view-method-newer",
        "view methods of tensors that 0.5 added",
        "0.2",
        "0.4",
        f"{NOTES}, 0.5.0 New Features",
    ),
    Rule("nested-slicing", "indexing the result of an index of a tensor", "0.2", "0.2", TO_02),
    # Calls.
    Rule(
        "dst-missing",
        "an instruction without its destination",
        "0.2",
        None,
        f"{TO_02}, All ISA functions require a destination parameter",
    ),
    Rule("mask-removed", "mask=", "0.2", None, f"{TO_02}, Deprecation of masking; {NOTES}, 0.1.0"),
    Rule("isa-dtype-removed", "dtype= on nki.isa instructions", "0.2", None, f"{NOTES}, 0.1.0"),
    Rule(
        "matmul-keyword-removed",
        "psumAccumulateFlag= and is_moving_zero= of nc_matmul",
        "0.2",
        None,
        f"{NOTES}, 0.2.0 Breaking Changes",
    ),
    Rule(
        "dma-copy-rmw-removed",
        "dst_rmw_op= and unique_indices= of dma_copy",
        "0.3",
        None,
        f"{TO_03}, nisa.dma_copy dst_rmw_op",
    ),
    Rule(
        "sendrecv-flag-removed",
        "use_gpsimd_dma= of sendrecv",
        "0.3",
        None,
        f"{TO_03}, nisa.sendrecv",
    ),
    Rule("register-move-imm", "imm= of register_move", "0.3", None, f"{TO_03}, nisa.register_move"),
    Rule(
        "num-channels-removed",
        "num_channels= of the implicit permute rank id",
        "0.3",
        None,
        f"{TO_03}, Collectives",
    ),
    Rule(
        "dma-compute-order",
        "dma_compute with scales and reduce_op in the other order",
        "0.2",
        None,
        f"{TO_03}, nisa.dma_compute",
    ),
    Rule(
        "affine-select-order",
        "offset of affine_select in the third place",
        "0.3",
        None,
        f"{TO_03}, nisa.affine_select",
    ),
    Rule(
        "keyword-newer",
        "a keyword that a later version added",
        "0.2",
        "0.6",
        _UNEXPECTED,
        "published",
    ),
    Rule(
        "keyword-unknown",
        "a keyword that the signature does not have",
        "0.2",
        "0.6",
        _UNEXPECTED,
        "published",
    ),
    Rule(
        "argument-missing",
        "a call without a required argument",
        "0.2",
        "0.6",
        REFERENCE,
        "published",
    ),
    Rule(
        "argument-extra",
        "more arguments than the signature has, or one given twice",
        "0.2",
        "0.6",
        REFERENCE,
        "published",
    ),
    Rule(
        "enum-integer",
        "an integer where an instruction takes an enumeration",
        "0.3",
        None,
        f"{TO_03}, Integer enum constants no longer supported",
    ),
    Rule(
        "buffer-string",
        "a string as buffer",
        "0.3",
        None,
        f"{TO_03}, String buffer names no longer supported",
    ),
    Rule(
        "memset-type",
        "memset of an integer tensor with a float",
        "0.3",
        None,
        f"{TO_03}, nisa.memset strict type matching",
    ),
    Rule(
        "dma-from-psum",
        "dma_copy that reads PSUM",
        "0.3",
        None,
        f"{TO_03}, nisa.dma_copy reading from PSUM",
    ),
    Rule(
        "reduce-axis",
        "tensor_reduce with axis=1 for the last of several dimensions",
        "0.3",
        None,
        f"{TO_03}, nisa.tensor_reduce axis handling fix",
    ),
    Rule(
        "platform-target",
        "platform_target= of nki.jit",
        "0.3",
        None,
        f"{TO_03}, nki.jit(platform_target=...)",
    ),
    Rule(
        "nl-not-in-hardware",
        "nl calls that are simulated but not compiled, such as nl.divide",
        "0.3",
        "0.6",
        f"{NOTES}, 0.3.0 and 0.4.0 Known Issues",
    ),
)

_BY_ID = {rule.id: rule for rule in RULES}


def rule(rule_id: str) -> Rule:
    """The rule of that id."""
    return _BY_ID[rule_id]
