"""Every rule the simulator enforces, with the public document that states it.

``python -m nki_sim rules`` prints this table. An engine that finds a rule broken calls ``broken``
with it; the error carries the rule's identifier, text and source, the operand, its value and the
kernel's line. Where public sources contradict each other, the rule follows the one it cites and
says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from nki_sim.errors import RuleError
from nki_sim.trace import kernel_line


@dataclass(frozen=True, slots=True)
class Rule:
    """One documented constraint: its identifier, what it says, and where AWS says it."""

    id: str
    text: str
    source: str


ALL: dict[str, Rule] = {}


def _rule(id: str, text: str, source: str) -> Rule:
    assert id not in ALL, id
    ALL[id] = Rule(id, text, source)
    return ALL[id]


def broken(rule: Rule, operand: str, value: Any, detail: str = "") -> NoReturn:
    """Raise the ``RuleError`` of ``rule`` for one operand."""
    raise RuleError(rule.id, rule.text, rule.source, operand, str(value), kernel_line(), detail)


_A1 = "trainium_inferentia2_arch.rst"
_LG = "nki-language-guide.rst"
_AP = "nki-aps.rst"


def _isa(name: str) -> str:
    return f"nki.isa.{name}, NKI 0.6"


# --- tensors and memories
TENSOR_SHAPE = _rule(
    "tensor.shape",
    "a tensor's sizes are positive compile-time integers",
    f"{_LG}, Creating Tensors",
)
TENSOR_PARTITIONS = _rule(
    "tensor.partitions",
    "an on-chip tensor spans at most 128 partitions",
    f"{_A1}; NKI 0.6.0 release notes",
)
TENSOR_CAPACITY = _rule(
    "tensor.capacity",
    "one tensor cannot be larger than the memory it lives in, per partition",
    f"{_A1}, SBUF and PSUM sizes",
)
TENSOR_BUFFER = _rule(
    "tensor.buffer",
    "buffer is an nl memory region, not a string or number",
    "NKI 0.3.0 release notes",
)
TENSOR_ADDRESS = _rule(
    "tensor.address",
    "address = (partition, byte) lies inside the memory; a PSUM address starts a 2-KiB bank",
    "nki/migration/index.rst, direct allocation",
)
VIEW = _rule("view", "a view stays inside the tensor it is taken of", f"{_LG}, Tensor Indexing")
VIEW_PARTITION = _rule(
    "view.partition",
    "the partition dimension of an on-chip tensor stays first and whole",
    f"{_LG}, View primitives",
)
AP_PARTITION_STEP = _rule(
    "ap.partition-step",
    "on chip the first step of an access pattern is the free size of the tensor",
    f"{_AP}, Restriction on SBUF/PSUM Tensors",
)
AP_BOUNDS = _rule("ap.bounds", "an access pattern stays inside its storage", f"{_AP}, Semantics")
AP_DYNAMIC = _rule(
    "ap.dynamic",
    "scalar_offset and vector_offset exclude each other; a vector offset is an SBUF tensor that "
    "indexes dimension 0 of an HBM tensor, and an indirect view is not indexed again",
    f"{_AP}, Dynamic Access",
)

# --- operands of the compute engines
OPERAND_SPACE = _rule(
    "operand.space",
    "each engine reads and writes only the memories it is wired to",
    f"{_A1}, engine data paths; nki.isa, Memory types",
)
START_PARTITION = _rule(
    "operand.start-partition",
    "an access of more than 64 partitions starts at partition 0, of 33 to 64 at 0 or 64, "
    "of at most 32 at 0, 32, 64 or 96",
    f"{_A1}, Tile access start partition",
)
OPERAND_FREE_DIMS = _rule(
    "operand.free-dims", "hardware access patterns have at most 4 free dimensions", f"{_A1}; {_AP}"
)
SAME_PARTITIONS = _rule(
    "operand.same-partitions", "operands have the same number of partitions", "nki.isa, Tile size"
)
SAME_ELEMENTS = _rule(
    "operand.same-elements",
    "operands have the same number of elements per partition",
    "nki.isa, Tile size",
)
VECTOR_OPERAND = _rule(
    "operand.vector",
    "a vector operand is a tile of shape (partitions of data, 1)",
    "nki.isa, Layout",
)
OPERAND_FP32 = _rule(
    "operand.float32",
    "scalar and vector operands of arithmetic operators are float32",
    "nki.isa.tensor_scalar, NKI 0.6",
)
BOTH_PSUM = _rule(
    "operand.both-psum",
    "the two input tiles of one instruction cannot both be in PSUM",
    "nki.isa, Memory types",
)
ENGINE = _rule(
    "engine", "the instruction cannot run on the engine asked for", "nki.isa, engine parameter"
)
ENUM = _rule(
    "argument.enum", "an enumerated parameter takes a member of its enum", "NKI 0.3.0 release notes"
)
AVAILABILITY = _rule(
    "instruction.generation",
    "the instruction or option exists only on newer NeuronCores",
    "nki.isa, notes",
)
REGISTER_ONE = _rule(
    "register.scalar",
    "a register is loaded from and stored to a tensor of one element",
    _isa("register_load"),
)
REGISTER_FROZEN = _rule(
    "register.frozen",
    "the induction variable of a dynamic loop cannot be written",
    "NKI 0.4.0 release notes",
)

# --- operators
OP = _rule(
    "op",
    "the instruction does not support this operator",
    "nki.api.shared.rst, Supported Math Operators",
)
OP_MIXED = _rule(
    "op.mixed",
    "two operators of one instruction are both bitvec or both arithmetic",
    _isa("tensor_scalar"),
)
OP_INTEGER = _rule(
    "op.integer",
    "bitvec operators take and give integer tiles",
    "nki.api.shared.rst, Supported Math Operators",
)
OP_PAIR = _rule(
    "op.pair", "op1 and operand1 are given together or not at all", _isa("tensor_scalar")
)
OP_UNARY = _rule("op.unary", "a unary operator's operand is None or 0", _isa("tensor_scalar"))
ACTIVATION = _rule(
    "op.activation",
    "the scalar engine has no such function",
    "nki.api.shared.rst, Supported Activation Functions",
)
REDUCE_AXIS = _rule(
    "reduce.axis",
    "reduction runs over the last free dimensions, never over partitions",
    _isa("tensor_reduce"),
)
REDUCE_CMD = _rule(
    "reduce.cmd",
    "the instruction does not support this reduce_cmd or combination",
    "nki.isa, Accumulator behavior",
)
REDUCE_STATE = _rule(
    "reduce.state",
    "reduce_cmd.reduce continues an accumulation; after an instruction that ran with idle the "
    "accumulator is undefined",
    "nki.isa.select_reduce, NKI 0.6, Accumulator behavior",
)
REDUCE_DST = _rule(
    "reduce.dst", "dst has one element per partition for each reduced row", _isa("tensor_reduce")
)

# --- tensor engine
MATMUL_K = _rule(
    "matmul.contraction",
    "stationary and moving have equal partition sizes, at most 128",
    _isa("nc_matmul"),
)
MATMUL_STATIONARY = _rule(
    "matmul.stationary-free", "the stationary tile has at most 128 free elements", _isa("nc_matmul")
)
MATMUL_MOVING = _rule(
    "matmul.moving-free",
    "the moving tile has at most 512 free elements (gen4: 4096, or 8192 into bfloat16)",
    _isa("nc_matmul"),
)
MATMUL_DST = _rule(
    "matmul.dst-shape", "dst is [free of stationary, free of moving]", _isa("nc_matmul")
)
MATMUL_DST_DTYPE = _rule(
    "matmul.dst-dtype",
    "the tensor engine writes float32 to PSUM on gen2 and gen3, float32 or bfloat16 on gen4; "
    "a transpose on gen3 and newer keeps its input's dtype",
    f"{_isa('nc_matmul')}; trainium2_arch.rst; nki-samples #134",
)
MATMUL_DTYPES = _rule(
    "matmul.dtypes",
    "matmul takes fp8, bfloat16, float16, tfloat32, float32; float32 kinds only with each other; "
    "float8_e4m3fn only on gen4 and not with float8_e4m3",
    _isa("nc_matmul"),
)
MATMUL_BANK = _rule(
    "matmul.psum-bank",
    "on gen2 and gen3 a matmul writes inside one 2-KiB PSUM bank",
    f"{_A1}, PSUM",
)
MATMUL_ACCUMULATE = _rule(
    "matmul.accumulate",
    "accumulate=True adds to a location that a matmul has written before; on gen2 and gen3 not to "
    "one initialised by another instruction",
    _isa("nc_matmul") + ", Accumulation mode",
)
MATMUL_TILING = _rule(
    "matmul.tiling",
    "tile_position and tile_size come together; positions are multiples of sizes; "
    "the tile covers the operands",
    _isa("nc_matmul") + ", Tiling mode",
)
MATMUL_DOUBLE_ROW = _rule(
    "matmul.double-row",
    "double_row takes fp8 tiles of shape [K, 2, F] on gen3 and newer, without column tiling",
    _isa("nc_matmul") + ", Performance mode",
)
TRANSPOSE_SIZE = _rule(
    "transpose.size",
    "the tensor engine transposes up to 128x128, the vector engine up to 32x32",
    _isa("nc_transpose"),
)
TRANSPOSE_DTYPE = _rule(
    "transpose.dtype", "a transpose keeps the dtype of its input", _isa("nc_transpose")
)

# --- element dtypes of instructions
DTYPE = _rule(
    "operand.dtype", "the operand's dtype is not one the instruction takes", "nki.isa, Data types"
)
MEMSET_VALUE = _rule(
    "memset.value", "the type of the value matches the dtype of dst", "NKI 0.3.0 release notes"
)
BIAS = _rule(
    "activation.bias",
    "on gen2 the bias is a [N, 1] tile; a constant bias needs gen3",
    _isa("activation"),
)
PREDICATE = _rule(
    "predicate.dtype",
    "predicates are unsigned integers (select_reduce: 8 or 16 bits)",
    "nki.isa, Data types",
)
PATTERN = _rule(
    "pattern",
    "a pattern has 1 to 4 [step, num] pairs whose nums multiply to the elements per partition",
    _isa("iota"),
)

# --- DMA
DMA_SPACE = _rule(
    "dma.space",
    "DMA moves between HBM and SBUF; it cannot read or write PSUM",
    "NKI 0.3.0 release notes",
)
DMA_ELEMENTS = _rule(
    "dma.elements", "dst and src have the same number of elements", _isa("dma_copy")
)
DMA_DGE = _rule(
    "dma.dge",
    "hwdge needs gen3 or newer, equal dtypes and no vector offset; vector offsets need swdge",
    f"{_isa('dma_copy')}; nki-dge.rst",
)
DMA_BOUNDS = _rule(
    "dma.out-of-bounds",
    "with oob_mode.error a dynamic access stays inside the tensor",
    _isa("dma_copy"),
)
DMA_ENGINE = _rule(
    "dma.engine", "engine is sync or scalar and only given with dge_mode.hwdge", _isa("dma_copy")
)
DMA_PRIORITY = _rule("dma.priority", "priority is 0 to 3 and exists on gen4 only", _isa("dma_copy"))

DMA_TRANSPOSE = _rule(
    "dma.transpose",
    "a DMA transpose swaps the first and last of 2 to 4 dimensions into a dst of exactly that "
    "shape; hardware descriptors and gathers have further limits on sizes and dtypes",
    _isa("dma_transpose"),
)
DMA_COMPUTE = _rule(
    "dma.compute",
    "dma_compute adds 1 to 16 sources with scales of 1.0; with a vector offset exactly 2, unique "
    "indices",
    _isa("dma_compute"),
)
DMA_UNIQUE = _rule(
    "dma.unique-indices",
    "a promise of unique indices holds",
    _isa("dma_compute") + ", unique_indices",
)

# --- searches, statistics, movement
SEARCH_SIZE = _rule("search.size", "8 to 16384 elements per partition are searched", _isa("max8"))
SEARCH_EIGHT = _rule(
    "search.eight", "exactly 8 values or positions per partition", _isa("nc_find_index8")
)
BN_STATS = _rule(
    "bn.sizes",
    "bn_stats gives 6 numbers of at most 512 elements; bn_aggr 2 numbers of triples",
    _isa("bn_stats"),
)
SHUFFLE_MASK = _rule(
    "shuffle.mask",
    "32 entries, each a partition of src's quadrant (0 to 31) or 255",
    _isa("nc_stream_shuffle"),
)
GATHER = _rule(
    "gather.sizes",
    "local_gather works on groups of 16 partitions, at most 4096 indices each, 1 to 32 elements "
    "an index",
    _isa("local_gather"),
)
GATHER_BOUNDS = _rule(
    "gather.bounds", "gathered positions lie inside the partition", _isa("nc_n_gather")
)
TOPK = _rule(
    "topk.sizes",
    "8 <= n < 65536, 1 <= K < 32768, K <= n, partitions a multiple of 16",
    _isa("topk"),
)
SEQUENCE_BOUNDS = _rule(
    "sequence_bounds.shape", "segment_ids are (1, n) and dst is (1, 2, n)", _isa("sequence_bounds")
)
SEED = _rule(
    "random.state",
    "a seed is one 32-bit value, a state 6 (GpSimd) or 24 (Vector) uint32 words",
    _isa("set_rng_seed") + "; nki.isa.rand_set_state",
)

# --- loops and cores
LOOP_STEP = _rule(
    "loop.step",
    "the step of a dynamic loop is a positive compile-time integer",
    "nki/deep-dives/nki-dynamic-loops.rst",
)
LOOP_MEMORY = _rule(
    "loop.memory",
    "a tensor declared in the body of a dynamic loop is one tensor in all iterations: its value is "
    "not read after a later iteration wrote it",
    "nki/deep-dives/nki-dynamic-loops.rst",
)
LOOP_NO_REORDER = _rule(
    "loop.no-reorder",
    "no dynamic loop stands inside nl.no_reorder()",
    "nki.language.no_reorder, NKI 0.6",
)
LOOP_DEPENDS = _rule(
    "loop.depends-on",
    "a declared dependency does not lead out of a dynamic loop: the producer stands in the same "
    "loop as the consumer or in one around it",
    "nki.isa.NkiInstruction.depends_on, NKI 0.6",
)
CORES = _rule(
    "cores",
    "barriers and sendrecv join cores 0 and 1 of an LNC2 launch",
    _isa("core_barrier") + "; nki.isa.sendrecv",
)

# --- the launch as a whole
MEMORY_CAPACITY = _rule(
    "memory.capacity",
    "the tensors alive at one time fit the memory (the compiler has nowhere to spill PSUM or SBUF)",
    f"{_A1}, SBUF and PSUM sizes",
)
MEMORY_OVERLAP = _rule(
    "memory.overlap",
    "a placed tensor's value is not read after another tensor was written to the same addresses",
    "nki/migration/index.rst, direct allocation",
)
RACE = _rule(
    "race",
    "two cores do not touch the same shared_hbm elements, one of them writing, without a barrier "
    "between",
    _isa("core_barrier") + "; nki/get-started/about/lnc.rst",
)

# --- kernels
KERNEL_OUTPUT = _rule(
    "kernel.output",
    "a kernel returns tensors in nl.shared_hbm",
    "NKI 0.3.0 release notes; nki/migration",
)
KERNEL_LNC = _rule(
    "kernel.lnc",
    "a kernel is launched on 1 or 2 cores, 2 from gen3 on",
    "nki/get-started/about/lnc.rst",
)
