"""Each documented rule is broken once; the error must name rule, source, operand, value and
line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import NkiValidationError, RuleError, rules
from tests.nki_sim.helpers import run

pytestmark = pytest.mark.sim


def sb(*shape, dtype=nl.float32):
    return nl.zeros(shape, dtype)


def ps(*shape, dtype=nl.float32):
    return nl.ndarray(shape, dtype, nl.psum)


def written_psum(*shape, dtype=nl.float32):
    return nl.zeros(shape, dtype, nl.psum)


def hbm(*shape, dtype=nl.float32):
    return nl.ndarray(shape, dtype, nl.shared_hbm)


def register(value=0):
    return nisa.register_alloc(value)


RESET = nisa.reduce_cmd.reset_reduce

# (rule, target, body that breaks it)
CASES = [
    (rules.TENSOR_SHAPE, "trn1", lambda: nl.ndarray((4, 0), nl.float32)),
    (rules.TENSOR_SHAPE, "trn1", lambda: nl.ndarray(("a",), nl.float32)),
    (rules.TENSOR_PARTITIONS, "trn1", lambda: nl.ndarray((256, 512), nl.float32)),
    (rules.TENSOR_CAPACITY, "trn1", lambda: nl.ndarray((128, 45057), nl.float32)),
    (rules.TENSOR_CAPACITY, "trn1", lambda: ps(128, 4097)),
    (rules.TENSOR_BUFFER, "trn1", lambda: nl.ndarray((4, 4), nl.float32, "sbuf")),
    (rules.TENSOR_ADDRESS, "trn1", lambda: nl.ndarray((4, 4), nl.float32, nl.psum, "", (0, 1024))),
    (rules.TENSOR_ADDRESS, "trn1", lambda: nl.ndarray((64, 4), nl.float32, nl.sbuf, "", (96, 0))),
    (
        rules.TENSOR_ADDRESS,
        "trn1",
        lambda: nl.ndarray((4, 4), nl.float32, nl.sbuf, "", (0, 180220)),
    ),
    (rules.VIEW, "trn1", lambda: sb(4, 4)[0:5]),
    (rules.VIEW_PARTITION, "trn1", lambda: sb(4, 4).permute((1, 0))),
    (rules.AP_PARTITION_STEP, "trn1", lambda: sb(16, 32).ap([[64, 8], [1, 32]])),
    (rules.AP_BOUNDS, "trn1", lambda: sb(16, 32).ap([[32, 17], [1, 32]])),
    (rules.AP_DYNAMIC, "trn1", lambda: sb(8, 4).vector_select(0, sb(8, 1, dtype=nl.int32))),
    (rules.OPERAND_SPACE, "trn1", lambda: nisa.tensor_copy(sb(4, 4), hbm(4, 4))),
    (rules.OPERAND_SPACE, "trn1", lambda: nisa.nc_matmul(sb(4, 4), sb(4, 4), sb(4, 4))),
    (rules.OPERAND_SPACE, "trn1", lambda: nisa.nc_matmul(ps(4, 4), written_psum(4, 4), sb(4, 4))),
    (rules.OPERAND_SPACE, "trn1", lambda: nisa.iota(ps(4, 4), [[1, 4]])),
    (
        rules.OPERAND_SPACE,
        "trn1",
        lambda: nisa.tensor_copy(sb(4, 4), written_psum(4, 4), engine=nisa.engine.gpsimd),
    ),
    (rules.START_PARTITION, "trn1", lambda: nisa.memset(sb(128, 4)[1:2], 0.0)),
    (rules.START_PARTITION, "trn1", lambda: nisa.memset(sb(128, 4)[32:96], 0.0)),
    (rules.START_PARTITION, "trn1", lambda: nisa.memset(sb(128, 4)[32:128], 0.0)),
    (
        rules.OPERAND_FREE_DIMS,
        "trn1",
        lambda: nisa.memset(sb(4, 3, 3, 3, 3, 3)[:, 0:2, 0:2, 0:2, 0:2, 0:2], 0.0),
    ),
    (rules.SAME_PARTITIONS, "trn1", lambda: nisa.tensor_copy(sb(4, 6), sb(6, 4))),
    (rules.SAME_ELEMENTS, "trn1", lambda: nisa.tensor_copy(sb(4, 6), sb(4, 5))),
    (
        rules.VECTOR_OPERAND,
        "trn1",
        lambda: nisa.tensor_scalar(sb(4, 6), sb(4, 6), nl.add, sb(4, 2)),
    ),
    (
        rules.OPERAND_FP32,
        "trn1",
        lambda: nisa.tensor_scalar(sb(4, 6), sb(4, 6), nl.add, sb(4, 1, dtype=nl.bfloat16)),
    ),
    (
        rules.BOTH_PSUM,
        "trn1",
        lambda: nisa.tensor_tensor(sb(4, 6), written_psum(4, 6), written_psum(4, 6), nl.add),
    ),
    (rules.ENGINE, "trn1", lambda: nisa.tensor_copy(sb(4, 6), sb(4, 6), engine=nisa.engine.scalar)),
    (rules.ENGINE, "trn1", lambda: nisa.memset(sb(4, 6), 0.0, engine=nisa.engine.scalar)),
    (
        rules.ENGINE,
        "trn2",
        lambda: nisa.tensor_scalar(sb(4, 6), sb(4, 6), nl.subtract, 1.0, engine=nisa.engine.scalar),
    ),
    (rules.ENUM, "trn1", lambda: nisa.tensor_copy(sb(4, 6), sb(4, 6), engine=5)),
    (
        rules.AVAILABILITY,
        "trn1",
        lambda: nisa.range_select(sb(4, 6), sb(4, 6), nl.less, nl.less, sb(4, 1), sb(4, 1)),
    ),
    (rules.OP, "trn1", lambda: nisa.tensor_tensor(sb(4, 6), sb(4, 6), sb(4, 6), nl.exp)),
    (rules.OP, "trn1", lambda: nisa.tensor_scalar(sb(4, 6), sb(4, 6), nl.square, 0.0)),
    (rules.OP, "trn1", lambda: nisa.tensor_reduce(sb(4, 1), nl.greater, sb(4, 6), 1)),
    (
        rules.OP_MIXED,
        "trn1",
        lambda: nisa.tensor_scalar(
            sb(4, 6, dtype=nl.int32),
            sb(4, 6, dtype=nl.int32),
            nl.bitwise_and,
            1,
            False,
            nl.add,
            1.0,
        ),
    ),
    (
        rules.OP_INTEGER,
        "trn1",
        lambda: nisa.tensor_tensor(sb(4, 6), sb(4, 6), sb(4, 6), nl.bitwise_or),
    ),
    (
        rules.OP_PAIR,
        "trn1",
        lambda: nisa.tensor_scalar(sb(4, 6), sb(4, 6), nl.add, 1.0, operand1=2.0),
    ),
    (rules.OP_UNARY, "trn1", lambda: nisa.tensor_scalar(sb(4, 6), sb(4, 6), nl.abs, 3.0)),
    (rules.ACTIVATION, "trn1", lambda: nisa.activation(sb(4, 6), nl.add, sb(4, 6))),
    (rules.REDUCE_AXIS, "trn1", lambda: nisa.tensor_reduce(sb(4, 3), nl.add, sb(4, 2, 3), 1)),
    (rules.REDUCE_AXIS, "trn1", lambda: nisa.tensor_reduce(sb(1, 3), nl.add, sb(4, 3), (0, 1))),
    (rules.REDUCE_DST, "trn1", lambda: nisa.tensor_reduce(sb(4, 2), nl.add, sb(4, 6), 1)),
    (
        rules.REDUCE_CMD,
        "trn1",
        lambda: nisa.tensor_scalar_reduce(
            sb(4, 6), sb(4, 6), nl.add, 0.0, nl.add, reduce_cmd=nisa.reduce_cmd.idle
        ),
    ),
    (
        rules.REDUCE_STATE,
        "trn1",
        lambda: nisa.tensor_scalar_reduce(
            sb(4, 6), sb(4, 6), nl.add, 0.0, nl.add, reduce_cmd=nisa.reduce_cmd.reduce
        ),
    ),
    (rules.MATMUL_K, "trn1", lambda: nisa.nc_matmul(ps(4, 6), sb(8, 4), sb(9, 6))),
    (rules.MATMUL_STATIONARY, "trn1", lambda: nisa.nc_matmul(ps(128, 6), sb(8, 129), sb(8, 6))),
    (rules.MATMUL_MOVING, "trn1", lambda: nisa.nc_matmul(ps(4, 513), sb(8, 4), sb(8, 513))),
    (rules.MATMUL_MOVING, "trn2", lambda: nisa.nc_matmul(ps(4, 1024), sb(8, 4), sb(8, 1024))),
    (rules.MATMUL_DST, "trn1", lambda: nisa.nc_matmul(ps(6, 4), sb(8, 4), sb(8, 6))),
    (
        rules.MATMUL_DST_DTYPE,
        "trn1",
        lambda: nisa.nc_matmul(ps(4, 6, dtype=nl.bfloat16), sb(8, 4), sb(8, 6)),
    ),
    (
        rules.MATMUL_DST_DTYPE,
        "trn2",
        lambda: nisa.nc_matmul(ps(4, 6, dtype=nl.bfloat16), sb(8, 4), sb(8, 6)),
    ),
    (
        rules.MATMUL_DTYPES,
        "trn1",
        lambda: nisa.nc_matmul(ps(4, 6), sb(8, 4), sb(8, 6, dtype=nl.bfloat16)),
    ),
    (
        rules.MATMUL_DTYPES,
        "trn1",
        lambda: nisa.nc_matmul(ps(4, 6), sb(8, 4, dtype=nl.int8), sb(8, 6, dtype=nl.int8)),
    ),
    (
        rules.MATMUL_DTYPES,
        "trn2",
        lambda: nisa.nc_matmul(
            ps(4, 6), sb(8, 4, dtype=nl.float8_e4m3fn), sb(8, 6, dtype=nl.float8_e4m3fn)
        ),
    ),
    (
        rules.MATMUL_BANK,
        "trn1",
        lambda: nisa.nc_matmul(ps(4, 1024)[:, 500:560], sb(8, 4), sb(8, 60)),
    ),
    (
        rules.MATMUL_ACCUMULATE,
        "trn1",
        lambda: nisa.nc_matmul(ps(4, 6), sb(8, 4), sb(8, 6), accumulate=True),
    ),
    (
        rules.MATMUL_TILING,
        "trn1",
        lambda: nisa.nc_matmul(
            ps(4, 6), sb(8, 4), sb(8, 6), tile_position=(0, 0), tile_size=(32, 128)
        ),
    ),
    (
        rules.MATMUL_DOUBLE_ROW,
        "trn1",
        lambda: nisa.nc_matmul(
            ps(4, 6),
            sb(8, 2, 4, dtype=nl.float8_e4m3),
            sb(8, 2, 6, dtype=nl.float8_e4m3),
            perf_mode=nisa.matmul_perf_mode.double_row,
        ),
    ),
    (
        rules.MATMUL_DOUBLE_ROW,
        "trn2",
        lambda: nisa.nc_matmul(
            ps(4, 6), sb(8, 2, 4), sb(8, 2, 6), perf_mode=nisa.matmul_perf_mode.double_row
        ),
    ),
    (rules.TRANSPOSE_SIZE, "trn1", lambda: nisa.nc_transpose(sb(33, 32), sb(32, 33))),
    (
        rules.TRANSPOSE_DTYPE,
        "trn1",
        lambda: nisa.nc_transpose(ps(8, 4), sb(4, 8, dtype=nl.bfloat16)),
    ),
    (
        rules.DTYPE,
        "trn1",
        lambda: nisa.tensor_copy_predicated(
            sb(4, 6), sb(4, 6, dtype=nl.bfloat16), sb(4, 6, dtype=nl.uint8)
        ),
    ),
    (rules.MEMSET_VALUE, "trn1", lambda: nisa.memset(sb(4, 6, dtype=nl.int32), 1.5)),
    (rules.BIAS, "trn1", lambda: nisa.activation(sb(4, 6), nl.exp, sb(4, 6), bias=1.0)),
    (rules.BIAS, "trn1", lambda: nisa.activation(sb(4, 6), nl.reciprocal, sb(4, 6), bias=sb(4, 1))),
    (
        rules.PREDICATE,
        "trn1",
        lambda: nisa.tensor_copy_predicated(sb(4, 6), 1.0, sb(4, 6, dtype=nl.int32)),
    ),
    (rules.PATTERN, "trn1", lambda: nisa.iota(sb(4, 6), [[1, 5]])),
    (rules.DMA_SPACE, "trn1", lambda: nisa.dma_copy(hbm(4, 6), written_psum(4, 6))),
    (rules.DMA_ELEMENTS, "trn1", lambda: nisa.dma_copy(hbm(4, 6), sb(4, 5))),
    (
        rules.DMA_DGE,
        "trn1",
        lambda: nisa.dma_copy(hbm(4, 6), sb(4, 6), dge_mode=nisa.dge_mode.hwdge),
    ),
    (
        rules.DMA_DGE,
        "trn2",
        lambda: nisa.dma_copy(hbm(4, 6), sb(4, 6, dtype=nl.bfloat16), dge_mode=nisa.dge_mode.hwdge),
    ),
    (
        rules.DMA_BOUNDS,
        "trn1",
        lambda: nisa.dma_copy(sb(4, 6), hbm(9, 4, 6).select(0, nl.full((1, 1), 9, nl.int32))),
    ),
    (rules.DMA_ENGINE, "trn2", lambda: nisa.dma_copy(hbm(4, 6), sb(4, 6), engine=nisa.engine.sync)),
    (rules.DMA_PRIORITY, "trn2", lambda: nisa.dma_copy(hbm(4, 6), sb(4, 6), priority=1)),
    (rules.KERNEL_OUTPUT, "trn1", lambda: sb(4, 6)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("rule", "target", "body"), CASES, ids=[f"{c[0].id}-{i}" for i, c in enumerate(CASES)]
)
def test_breaking_a_rule(rule, target, body):
    with pytest.raises(RuleError) as caught:
        run(body, target=target)
    error = caught.value
    assert error.rule == rule.id
    text = str(error)
    assert rule.text in text and rule.source in text and error.operand in text
    assert error.value in text
    assert isinstance(error, NkiValidationError) and isinstance(error, AssertionError)
    if rule is not rules.KERNEL_OUTPUT:
        assert "test_rules.py:" in error.line


def test_lnc2_needs_gen3():
    import nki_sim

    kernel = nki_sim.kernel.Kernel(lambda: None)
    for target, lnc in (("trn1", 2), ("trn2", 3)):
        with pytest.raises(RuleError, match=r"kernel\.lnc"):
            nki_sim.simulate(kernel[lnc], target=target)()


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="mask"):
        run(lambda: nisa.tensor_copy(sb(4, 4), sb(4, 4), mask=None))


def test_operands_must_be_tensors():
    with pytest.raises(TypeError, match="src"):
        run(lambda: nisa.tensor_copy(sb(4, 4), np.zeros((4, 4), np.float32)))


def test_start_partitions_that_are_legal():
    def kernel():
        t = sb(128, 4)
        for start, n in (
            (0, 128),
            (0, 65),
            (0, 64),
            (64, 64),
            (64, 33),
            (32, 32),
            (96, 1),
            (32, 7),
        ):
            nisa.memset(t[start : start + n], 1.0)

    run(kernel)


def test_rules_have_identifiers_texts_and_sources():
    for rule in rules.ALL.values():
        assert rule.id and rule.text and rule.source


def test_every_rule_has_a_case_somewhere():
    here = {case[0].id for case in CASES}
    folder = Path(__file__).parent
    texts = [
        p.read_text().replace("\\", "")
        for p in folder.glob("test_*.py")
        if p.name != "test_rules.py"
    ]
    elsewhere = "\n".join(texts)
    here.add("kernel.lnc")  # test_lnc2_needs_gen3
    missing = [r for r in rules.ALL if r not in here and r not in elsewhere]
    assert missing == []
