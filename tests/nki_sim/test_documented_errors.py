"""What the docstrings of ``nki.isa`` (NKI 0.6) forbid, instruction by instruction.

Each case quotes no text: it is named after the instruction, and breaks one sentence of its
docstring. The other documented errors have their cases in ``test_rules`` and ``test_special``.
"""

from __future__ import annotations

import pytest

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import NkiValidationError
from tests.nki_sim.helpers import run

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore")]

I8, I32, U8, U16, U32 = nl.int8, nl.int32, nl.uint8, nl.uint16, nl.uint32
BF16, F16, TF32 = nl.bfloat16, nl.float16, nl.tfloat32
CMD, ENGINE, DGE, OOB = nisa.reduce_cmd, nisa.engine, nisa.dge_mode, nisa.oob_mode


def sb(*shape, dtype=nl.float32):
    return nl.zeros(shape, dtype)


def ps(*shape, dtype=nl.float32):
    return nl.zeros(shape, dtype, nl.psum)


def hbm(*shape, dtype=nl.float32):
    return nl.zeros(shape, dtype, nl.shared_hbm)


def rows(n, table=64, width=8, dtype=BF16, index=U32, columns=1, partitions=None):
    """A gather of ``n`` rows of an HBM table."""
    where = sb(partitions or n, columns, dtype=index)
    return hbm(table, width, dtype=dtype).ap([[width, n], [1, width]], vector_offset=where)


# instruction, target, what breaks it
CASES = [
    ("dma_copy", "trn2", lambda: nisa.dma_copy(sb(4, 4), sb(4, 4), dge_mode=2)),
    ("dma_copy", "trn2", lambda: nisa.dma_copy(sb(4, 4), sb(4, 4), oob_mode="skip")),
    ("dma_copy", "trn2", lambda: nisa.dma_copy(
        sb(16, 8, dtype=BF16), rows(16), dge_mode=DGE.hwdge)),
    ("dma_copy", "trn2", lambda: nisa.dma_copy(
        sb(16, 8, dtype=BF16), rows(16), dge_mode=DGE.none)),
    ("dma_copy", "trn2", lambda: nisa.dma_copy(
        sb(4, 4), sb(4, 4), dge_mode=DGE.hwdge, engine=ENGINE.vector)),
    ("dma_copy", "trn2", lambda: nisa.dma_copy(sb(4, 4), ps(4, 4))),
    ("tensor_copy", "trn1", lambda: nisa.tensor_copy(sb(4, 4), ps(4, 4), engine=ENGINE.gpsimd)),
    ("tensor_copy", "trn1", lambda: nisa.tensor_copy(ps(4, 4), sb(4, 4), engine=ENGINE.gpsimd)),
    ("tensor_copy", "trn1", lambda: nisa.tensor_copy(sb(4, 4), sb(4, 4), engine=ENGINE.scalar)),
    ("tensor_copy", "trn2", lambda: nisa.tensor_copy(sb(4, 4), sb(4, 4), engine=ENGINE.tensor)),
    ("tensor_copy", "trn2", lambda: nisa.tensor_copy(sb(4, 4), hbm(4, 4))),
    ("memset", "trn1", lambda: nisa.memset(hbm(4, 4), 0.0)),
    ("memset", "trn1", lambda: nisa.memset(ps(4, 4), 0.0, engine=ENGINE.gpsimd)),
    ("memset", "trn1", lambda: nisa.memset(sb(4, 4), 0.0, engine=ENGINE.tensor)),
    ("memset", "trn3", lambda: nisa.memset(nl.ndarray((4, 4), nl.float8_e5m2_x4), 1)),
    ("tensor_copy_predicated", "trn1", lambda: nisa.tensor_copy_predicated(
        sb(4, 4), ps(4, 4), ps(4, 4, dtype=U8))),
    ("tensor_copy_predicated", "trn1", lambda: nisa.tensor_copy_predicated(
        sb(4, 4), sb(4, 5), sb(4, 4, dtype=U8))),
    ("tensor_copy_predicated", "trn1", lambda: nisa.tensor_copy_predicated(
        sb(4, 4), sb(4, 4), sb(4, 5, dtype=U8))),
    ("nc_matmul", "trn1", lambda: nisa.nc_matmul(ps(4, 4), ps(4, 4), sb(4, 4))),
    ("nc_matmul", "trn1", lambda: nisa.nc_matmul(ps(4, 4), sb(4, 4), ps(4, 4))),
    ("nc_matmul", "trn1", lambda: nisa.nc_matmul(
        ps(4, 4), sb(4, 4, dtype=TF32), sb(4, 4, dtype=BF16))),
    ("nc_matmul", "trn2", lambda: nisa.nc_matmul(
        ps(4, 4, dtype=BF16), sb(4, 4, dtype=BF16), sb(4, 4, dtype=BF16))),
    ("nc_matmul", "trn3", lambda: nisa.nc_matmul(
        ps(4, 4), sb(4, 4, dtype=nl.float8_e4m3), sb(4, 4, dtype=nl.float8_e4m3fn))),
    ("nc_matmul", "trn1", lambda: nisa.nc_matmul(
        ps(4, 4), sb(4, 4), sb(4, 4), tile_position=(0, 0))),
    ("nc_matmul", "trn1", lambda: nisa.nc_matmul(
        ps(4, 4), sb(4, 4), sb(4, 4), tile_position=(32, 0), tile_size=(64, 128))),
    ("nc_matmul", "trn1", lambda: nisa.nc_matmul(
        ps(4, 4), sb(100, 4), sb(100, 4), tile_position=(0, 0), tile_size=(64, 128))),
    ("nc_matmul", "trn2", lambda: nisa.nc_matmul(
        ps(100, 4), sb(4, 100), sb(4, 4), tile_position=(0, 0), tile_size=(128, 64))),
    ("nc_matmul", "trn2", lambda: nisa.nc_matmul(
        ps(4, 4), sb(4, 2, 4, dtype=nl.float8_e4m3), sb(4, 2, 4, dtype=nl.float8_e4m3),
        perf_mode=nisa.matmul_perf_mode.double_row, tile_position=(0, 0), tile_size=(128, 64))),
    ("nc_matmul", "trn2", lambda: nisa.nc_matmul(
        ps(4, 6), sb(4, 3, 4, dtype=nl.float8_e4m3), sb(4, 3, 6, dtype=nl.float8_e4m3),
        perf_mode=nisa.matmul_perf_mode.double_row)),
    ("nc_transpose", "trn1", lambda: nisa.nc_transpose(sb(4, 4), sb(4, 4), ENGINE.tensor)),
    ("nc_transpose", "trn1", lambda: nisa.nc_transpose(ps(4, 4), ps(4, 4), ENGINE.tensor)),
    ("nc_transpose", "trn1", lambda: nisa.nc_transpose(ps(128, 4), sb(4, 129), ENGINE.tensor)),
    ("nc_transpose", "trn1", lambda: nisa.nc_transpose(ps(4, 33), sb(33, 4), ENGINE.vector)),
    ("nc_transpose", "trn1", lambda: nisa.nc_transpose(sb(4, 4), sb(4, 4), ENGINE.gpsimd)),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(ps(4, 4), sb(4, 4))),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(sb(4, 4), sb(4, 4, dtype=BF16))),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 32, dtype=BF16), sb(32, 8, dtype=BF16), dge_mode=DGE.hwdge)),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 16), sb(16, 8), dge_mode=DGE.hwdge)),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 16, 3, dtype=BF16), sb(3, 16, 8, dtype=BF16), dge_mode=DGE.hwdge)),
    ("dma_transpose", "trn1", lambda: nisa.dma_transpose(
        sb(8, 16, dtype=BF16), sb(16, 8, dtype=BF16), dge_mode=DGE.hwdge)),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(4, 4), sb(4, 4), dge_mode=DGE.swdge)),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 12, dtype=BF16), rows(12), axes=(1, 0))),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 16, dtype=BF16), rows(16, index=I32), axes=(1, 0))),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 32), rows(32, dtype=nl.float32), axes=(1, 0))),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 32, dtype=BF16), rows(32, columns=2, partitions=16), axes=(1, 0))),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(
        sb(8, 32, dtype=BF16), rows(32), axes=(1, 0), dge_mode=DGE.hwdge)),
    ("dma_transpose", "trn2", lambda: nisa.dma_transpose(sb(4, 4), sb(4, 4), oob_mode=OOB.skip)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(sb(4, 4), sb(4, 4), sb(5, 4), nl.add)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(sb(4, 4), sb(4, 4), sb(4, 1), nl.add)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(sb(4, 4), ps(4, 4), ps(4, 4), nl.add)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(sb(4, 4), ps(4, 4), sb(4, 4), nl.power)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(
        sb(4, 4), sb(4, 4, dtype=I32), sb(4, 4, dtype=I32), nl.bitwise_and)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(
        sb(4, 4), sb(4, 4), sb(4, 4), nl.add, engine=ENGINE.scalar)),
    ("tensor_tensor", "trn1", lambda: nisa.tensor_tensor(sb(4, 4), sb(4, 4), sb(4, 4), nl.exp)),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(
        sb(4, 4), sb(4, 4), nl.add, sb(4, 1, dtype=F16))),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(sb(4, 4), sb(4, 4), nl.add, sb(5, 1))),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(
        sb(4, 4), sb(4, 4), nl.add, 1.0, op1=nl.add)),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(
        sb(4, 4), sb(4, 4), nl.bitwise_or, 1)),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(
        sb(4, 4, dtype=I32), sb(4, 4, dtype=I32), nl.bitwise_or, 1, engine=ENGINE.gpsimd)),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(
        sb(4, 4), sb(4, 4), nl.add, 1.0, engine=ENGINE.gpsimd)),
    ("tensor_scalar", "trn1", lambda: nisa.tensor_scalar(
        sb(4, 4), sb(4, 4), nl.multiply, 1.0, engine=ENGINE.scalar)),
    ("tensor_reduce", "trn1", lambda: nisa.tensor_reduce(sb(4, 1), nl.add, sb(4, 4), 0)),
    ("tensor_reduce", "trn1", lambda: nisa.tensor_reduce(sb(4, 3), nl.add, sb(4, 4, 3), (1,))),
    ("tensor_reduce", "trn1", lambda: nisa.tensor_reduce(
        sb(4, 1, dtype=I32), nl.bitwise_or, sb(4, 4, dtype=I32), 1, negate=True)),
    ("tensor_reduce", "trn1", lambda: nisa.tensor_reduce(sb(4, 1), nl.bitwise_or, sb(4, 4), 1)),
    ("tensor_reduce", "trn1", lambda: nisa.tensor_reduce(sb(5, 1), nl.add, sb(4, 4), 1)),
    ("tensor_partition_reduce", "trn1", lambda: nisa.tensor_partition_reduce(
        sb(1, 4), nl.multiply, sb(4, 4))),
    ("tensor_partition_reduce", "trn1", lambda: nisa.tensor_partition_reduce(
        sb(1, 4), nl.add, ps(4, 4))),
    ("tensor_partition_reduce", "trn1", lambda: nisa.tensor_partition_reduce(
        sb(2, 4), nl.add, sb(4, 4))),
    ("tensor_scalar_cumulative", "trn1", lambda: nisa.tensor_scalar_cumulative(
        sb(4, 4), sb(4, 4, dtype=I32), nl.add, nl.add, 1.0)),
    ("tensor_scalar_cumulative", "trn1", lambda: nisa.tensor_scalar_cumulative(
        sb(4, 4, dtype=U32), sb(4, 4), nl.add, nl.add, 1.0)),
    ("tensor_scalar_cumulative", "trn1", lambda: nisa.tensor_scalar_cumulative(
        sb(4, 4), sb(4, 4), nl.bitwise_and, nl.add, 1.0)),
    ("tensor_scalar_cumulative", "trn1", lambda: nisa.tensor_scalar_cumulative(
        sb(4, 4), sb(4, 4), nl.add, nl.logical_and, 1.0)),
    ("tensor_scalar_cumulative", "trn1", lambda: nisa.tensor_scalar_cumulative(
        sb(4, 4), sb(4, 4), nl.add, nl.add, 1.0, reduce_cmd=CMD.load_reduce)),
    ("activation", "trn2", lambda: nisa.activation(
        sb(4, 4), nl.exp, sb(4, 4), reduce_op=nl.maximum, reduce_res=sb(4, 1),
        reduce_cmd=CMD.reset_reduce)),
    ("activation", "trn1", lambda: nisa.activation(
        sb(4, 4), nl.exp, sb(4, 4), scale=sb(4, 1, dtype=BF16))),
    ("activation", "trn1", lambda: nisa.activation(
        sb(4, 4), nl.exp, sb(4, 4), bias=sb(4, 1, dtype=TF32))),
    ("activation", "trn1", lambda: nisa.activation(sb(4, 4), nl.exp, sb(4, 4), bias=sb(3, 1))),
    ("activation", "trn1", lambda: nisa.activation(sb(4, 4), nl.exp, sb(4, 4), bias=sb(4, 4))),
    ("activation", "trn1", lambda: nisa.activation(sb(4, 5), nl.exp, sb(4, 4))),
    ("activation", "trn1", lambda: nisa.activation(sb(5, 4), nl.exp, sb(4, 4))),
    ("activation_reduce", "trn1", lambda: nisa.activation_reduce(
        sb(4, 4), nl.exp, sb(4, 4), nl.maximum, sb(4, 1))),
    ("activation_reduce", "trn1", lambda: nisa.activation_reduce(
        sb(4, 4), nl.exp, sb(4, 4), nl.add, sb(4, 4))),
    ("iota", "trn1", lambda: nisa.iota(ps(4, 4), [[1, 4]])),
    ("iota", "trn1", lambda: nisa.iota(sb(4, 4), [[1, 2], [1, 3]])),
    ("iota", "trn1", lambda: nisa.iota(sb(1, 32), [[1, 2]] * 5)),
    ("affine_select", "trn1", lambda: nisa.affine_select(
        ps(4, 4), [[1, 4]], 1, sb(4, 4), 0.0)),
    ("affine_select", "trn1", lambda: nisa.affine_select(
        sb(4, 4), [[1, 4]], 1, ps(4, 4), 0.0)),
    ("affine_select", "trn1", lambda: nisa.affine_select(
        sb(4, 4), [[1, 5]], 1, sb(4, 4), 0.0)),
    ("affine_select", "trn1", lambda: nisa.affine_select(
        sb(4, 4), [[1, 4]], 1, sb(4, 4), 0.0, nl.add)),
    ("affine_select", "trn1", lambda: nisa.affine_select(
        sb(4, 4), [[1, 4]], 1, sb(5, 4), 0.0)),
    ("range_select", "trn2", lambda: nisa.range_select(
        sb(4, 4), sb(4, 4, dtype=I32), nl.less, nl.less, sb(4, 1), sb(4, 1))),
    ("range_select", "trn2", lambda: nisa.range_select(
        sb(4, 4), sb(4, 4), nl.less, nl.less, sb(4, 1, dtype=BF16), sb(4, 1))),
    ("range_select", "trn2", lambda: nisa.range_select(
        sb(4, 4), sb(4, 4), nl.not_equal, nl.less, sb(4, 1), sb(4, 1))),
    ("range_select", "trn2", lambda: nisa.range_select(
        sb(4, 4), sb(4, 4), nl.less, nl.less, sb(4, 1), sb(4, 1), on_false_value=0.0)),
    ("range_select", "trn2", lambda: nisa.range_select(
        sb(4, 4), sb(4, 4), nl.less, nl.less, sb(4, 1), sb(4, 1), reduce_op=nl.add)),
    ("range_select", "trn2", lambda: nisa.range_select(
        sb(4, 4), sb(4, 4), nl.less, nl.less, sb(3, 1), sb(4, 1))),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), ps(4, 4, dtype=U8), ps(4, 4), 0.0)),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), sb(4, 4, dtype=U8), sb(4, 4, dtype=I32), 0.0)),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), sb(4, 4, dtype=U32), sb(4, 4), 0.0)),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), sb(4, 4), sb(4, 4), 0.0)),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), sb(4, 4, dtype=U8), sb(4, 4), 0.0, sb(4, 2), CMD.reset_reduce, nl.maximum)),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), sb(4, 4, dtype=U8), sb(4, 4), 0.0, sb(4, 1, dtype=I32), CMD.reset_reduce,
        nl.maximum)),
    ("select_reduce", "trn1", lambda: nisa.select_reduce(
        sb(4, 4), sb(4, 4, dtype=U8), sb(4, 4), 0.0, sb(4, 1), CMD.reset_reduce, nl.add)),
    ("local_gather", "trn1", lambda: nisa.local_gather(
        sb(16, 16), sb(16, 4), sb(16, 1, dtype=U32))),
    ("local_gather", "trn1", lambda: nisa.local_gather(
        sb(17, 16), sb(17, 4), sb(17, 1, dtype=U16))),
    ("local_gather", "trn1", lambda: nisa.local_gather(
        sb(16, 48), sb(16, 4), sb(16, 1, dtype=U16), 3)),
    ("local_gather", "trn1", lambda: nisa.local_gather(
        sb(16, 17), sb(16, 4), sb(16, 1, dtype=U16), 1, 17)),
    ("local_gather", "trn1", lambda: nisa.local_gather(
        sb(16, 16, dtype=BF16), sb(16, 4), sb(16, 1, dtype=U16))),
    ("local_gather", "trn1", lambda: nisa.local_gather(
        sb(16, 16), ps(16, 4), sb(16, 1, dtype=U16))),
    ("nc_n_gather", "trn1", lambda: nisa.nc_n_gather(sb(4, 4), sb(4, 4), sb(4, 4, dtype=I32))),
    ("nc_n_gather", "trn1", lambda: nisa.nc_n_gather(sb(4, 4), sb(4, 4), sb(4, 5, dtype=U32))),
    ("nc_n_gather", "trn1", lambda: nisa.nc_n_gather(sb(4, 4), sb(5, 4), sb(4, 4, dtype=U32))),
    ("nc_n_gather", "trn1", lambda: nisa.nc_n_gather(sb(4, 4), ps(4, 4), sb(4, 4, dtype=U32))),
    ("nc_n_gather", "trn1", lambda: nisa.nc_n_gather(
        sb(4, 4, dtype=BF16), sb(4, 4), sb(4, 4, dtype=U32))),
    ("nc_n_gather", "trn1", lambda: nisa.nc_n_gather(
        sb(4, 4), sb(4, 4), nl.full((4, 4), 4, U32))),
    ("bn_stats", "trn1", lambda: nisa.bn_stats(sb(4, 5), sb(4, 4))),
    ("bn_stats", "trn1", lambda: nisa.bn_stats(sb(5, 6), sb(4, 4))),
    ("bn_aggr", "trn1", lambda: nisa.bn_aggr(sb(4, 2), sb(4, 4))),
    ("bn_aggr", "trn1", lambda: nisa.bn_aggr(sb(4, 3), sb(4, 6))),
    ("tensor_tensor_scan", "trn1", lambda: nisa.tensor_tensor_scan(
        sb(4, 4), ps(4, 4), ps(4, 4), 0.0, nl.add, nl.add)),
    ("tensor_tensor_scan", "trn1", lambda: nisa.tensor_tensor_scan(
        sb(4, 4), sb(4, 4), sb(4, 5), 0.0, nl.add, nl.add)),
    ("tensor_tensor_scan", "trn1", lambda: nisa.tensor_tensor_scan(
        sb(4, 4), sb(4, 4), sb(4, 4), sb(3, 1), nl.add, nl.add)),
    ("tensor_tensor_scan", "trn1", lambda: nisa.tensor_tensor_scan(
        sb(4, 4), sb(4, 4), sb(4, 4), 0.0, nl.bitwise_and, nl.add)),
    ("nc_stream_shuffle", "trn1", lambda: nisa.nc_stream_shuffle(
        sb(32, 4), sb(32, 4, dtype=BF16), [0] * 32)),
    ("nc_stream_shuffle", "trn1", lambda: nisa.nc_stream_shuffle(
        sb(32, 4), sb(32, 5), [0] * 32)),
    ("nc_stream_shuffle", "trn1", lambda: nisa.nc_stream_shuffle(sb(32, 4), sb(32, 4), [0] * 31)),
    ("nc_stream_shuffle", "trn1", lambda: nisa.nc_stream_shuffle(sb(32, 4), sb(32, 4), [32] * 32)),
    ("dropout", "trn1", lambda: nisa.dropout(sb(4, 4, dtype=BF16), sb(4, 4), 0.5)),
    ("dropout", "trn1", lambda: nisa.dropout(sb(4, 4), sb(4, 4), sb(4, 2))),
    ("dropout", "trn1", lambda: nisa.dropout(
        sb(4, 4, dtype=I32), sb(4, 4, dtype=I32), sb(4, 1, dtype=BF16))),
    ("reciprocal", "trn1", lambda: nisa.reciprocal(sb(4, 5), sb(4, 4))),
    ("reciprocal", "trn1", lambda: nisa.reciprocal(sb(5, 4), sb(4, 4))),
    ("max8", "trn1", lambda: nisa.max8(sb(4, 8), sb(4, 16385))),
    ("max8", "trn1", lambda: nisa.max8(sb(5, 8), sb(4, 16))),
    ("nc_find_index8", "trn1", lambda: nisa.nc_find_index8(
        sb(4, 8, dtype=U32), sb(4, 7), sb(4, 8))),
    ("nc_find_index8", "trn1", lambda: nisa.nc_find_index8(
        sb(4, 8, dtype=I32), sb(4, 16), sb(4, 8))),
    ("nc_match_replace8", "trn1", lambda: nisa.nc_match_replace8(
        sb(4, 16), sb(4, 16), sb(4, 9), 0.0)),
    ("nc_match_replace8", "trn1", lambda: nisa.nc_match_replace8(
        sb(4, 15), sb(4, 16), sb(4, 8), 0.0)),
    ("nc_match_replace8", "trn1", lambda: nisa.nc_match_replace8(
        sb(4, 16), sb(4, 16), sb(4, 8), 0.0, dst_idx=sb(4, 8))),
    ("sequence_bounds", "trn1", lambda: nisa.sequence_bounds(sb(1, 2, 4), sb(1, 5))),
    ("sequence_bounds", "trn1", lambda: nisa.sequence_bounds(
        sb(1, 2, 4, dtype=BF16), sb(1, 4, dtype=BF16))),
    ("scalar_tensor_tensor", "trn1", lambda: nisa.scalar_tensor_tensor(
        sb(4, 4), sb(4, 4), nl.bitwise_and, 1.0, nl.add, sb(4, 4))),
    ("scalar_tensor_tensor", "trn1", lambda: nisa.scalar_tensor_tensor(
        sb(4, 4), ps(4, 4), nl.add, 1.0, nl.add, ps(4, 4))),
    ("scalar_tensor_tensor", "trn1", lambda: nisa.scalar_tensor_tensor(
        sb(4, 4), sb(4, 4), nl.add, sb(4, 2), nl.add, sb(4, 4))),
    ("scalar_tensor_tensor", "trn1", lambda: nisa.scalar_tensor_tensor(
        sb(4, 4), sb(4, 4), nl.add, 1.0, nl.add, sb(4, 1))),
    ("tensor_scalar_reduce", "trn1", lambda: nisa.tensor_scalar_reduce(
        sb(4, 4, dtype=I32), sb(4, 4, dtype=I32), nl.bitwise_and, 1, nl.add, sb(4, 1))),
    ("tensor_scalar_reduce", "trn1", lambda: nisa.tensor_scalar_reduce(
        sb(4, 4), sb(4, 4), nl.add, 1.0, nl.add, sb(4, 2))),
    ("tensor_scalar_reduce", "trn1", lambda: nisa.tensor_scalar_reduce(
        sb(4, 4), sb(4, 4), nl.add, 1.0, nl.add, sb(4, 1), reduce_init=sb(4, 1))),
    ("tensor_scalar_reduce", "trn1", lambda: nisa.tensor_scalar_reduce(
        sb(4, 4), sb(4, 4), nl.add, 1.0, nl.add, sb(4, 1), reduce_cmd=CMD.load_reduce)),
    ("dma_compute", "trn1", lambda: nisa.dma_compute(sb(4, 4), [sb(4, 4)] * 17, nl.add)),
    ("dma_compute", "trn1", lambda: nisa.dma_compute(sb(4, 4), [sb(4, 4), sb(4, 5)], nl.add)),
    ("dma_compute", "trn1", lambda: nisa.dma_compute(sb(4, 4), [ps(4, 4)], nl.add)),
    ("dma_compute", "trn1", lambda: nisa.dma_compute(
        sb(16, 8, dtype=BF16), [rows(16), sb(16, 8)], nl.add, unique_indices=False)),
    ("rng", "trn1", lambda: nisa.rng(sb(4, 4))),
    ("rng", "trn2", lambda: nisa.rng(ps(4, 4, dtype=I32), engine=ENGINE.gpsimd)),
    ("rng", "trn2", lambda: nisa.rng(sb(4, 4, dtype=I32), engine=ENGINE.scalar)),
    ("set_rng_seed", "trn1", lambda: nisa.set_rng_seed(sb(1, 1, dtype=U16))),
    ("rand_set_state", "trn1", lambda: nisa.rand_set_state(sb(4, 6, dtype=U32))),
    ("rand_set_state", "trn2", lambda: nisa.rand_set_state(sb(4, 6, dtype=I32))),
    ("rand_set_state", "trn2", lambda: nisa.rand_set_state(sb(4, 24, dtype=U32), ENGINE.vector)),
    ("rand_get_state", "trn2", lambda: nisa.rand_get_state(ps(4, 6, dtype=U32))),
    ("rand_get_state", "trn2", lambda: nisa.rand_get_state(sb(4, 5, dtype=U32))),
    ("nonzero_with_count", "trn2", lambda: nisa.nonzero_with_count(
        sb(16, 5, dtype=I32), sb(16, 4, dtype=BF16))),
    ("nonzero_with_count", "trn2", lambda: nisa.nonzero_with_count(
        sb(16, 4, dtype=I32), sb(16, 4))),
    ("nonzero_with_count", "trn2", lambda: nisa.nonzero_with_count(
        sb(16, 5), sb(16, 4))),
    ("topk", "trn2", lambda: nisa.topk(
        sb(16, 8, dtype=BF16), sb(16, 8, dtype=U32), sb(16, 4), 32)),
    ("topk", "trn2", lambda: nisa.topk(
        sb(8, 8, dtype=BF16), sb(8, 8, dtype=U32), sb(8, 4, dtype=BF16), 32)),
    ("topk", "trn2", lambda: nisa.topk(
        sb(16, 40, dtype=BF16), sb(16, 40, dtype=U32), sb(16, 4, dtype=BF16), 32)),
    ("topk", "trn2", lambda: nisa.topk(
        sb(16, 8, dtype=BF16), sb(16, 8, dtype=I32), sb(16, 4, dtype=BF16), 32)),
    ("register_load", "trn1", lambda: nisa.register_load(
        nisa.register_alloc(), sb(1, 2, dtype=I32))),
    ("register_load", "trn1", lambda: nisa.register_load(
        nisa.register_alloc(), ps(1, 1, dtype=I32))),
    ("register_store", "trn1", lambda: nisa.register_store(
        sb(1, 2, dtype=I32), nisa.register_alloc(1))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "target", "body"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_documented_error(name, target, body):
    with pytest.raises(NkiValidationError) as caught:
        run(body, target=target)
    assert "test_documented_errors.py:" in str(caught.value)
    assert any(entry.name == name for entry in caught.traceback)  # not while making its operands


@pytest.mark.parametrize(
    ("argument", "body"),
    [
        ("on_false_value", lambda: nisa.affine_select(sb(4, 4), [[1, 4]], 1, sb(4, 4), sb(4, 1))),
        ("imm", lambda: nisa.nc_match_replace8(sb(4, 16), sb(4, 16), sb(4, 8), sb(4, 1))),
        ("value", lambda: nisa.memset(sb(4, 4), sb(4, 1))),
    ],
)
def test_a_tensor_where_a_constant_belongs(argument, body):
    with pytest.raises(TypeError, match=argument):
        run(body)
