"""Views of tensors: each against NumPy's own indexing of the same elements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError
from nki_sim.views import reshaped, row_major
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.null


def seen(array, take, on_chip=False):
    """(shape, strides, elements) of ``take(tensor)`` for an HBM argument or its SBUF copy."""
    found = {}

    def kernel(x):
        t = x
        if on_chip:
            t = nl.ndarray(x.shape, x.dtype, nl.sbuf)
            nisa.dma_copy(t, x)
        view = take(t)
        found["shape"], found["strides"] = view.shape, view.strides
        found["values"] = view.values.copy()
        found["view"] = view

    run(kernel, array)
    return found


def test_attributes_of_a_fresh_tensor():
    def kernel():
        t = nl.ndarray((128, 64), dtype=nl.float32, buffer=nl.sbuf, name="weights")
        assert (t.shape, t.strides, t.offset, t.ndim, t.size) == (
            (128, 64),
            (64, 1),
            0,
            2,
            128 * 64,
        )
        assert t.dtype == nl.float32 and t.dtype == "float32" and t.dtype == np.float32
        assert t.buffer == nl.sbuf and t.name == "weights"
        assert t.is_contiguous() and not t.is_indirect()
        assert t.get_pattern() == [[64, 128], [1, 64]]

    run(kernel)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        (np.s_[0, 0, 4], (1, 1)),  # language guide, "Tensor Indexing"
        (np.s_[:, 0], (8, 6)),
        (np.s_[:, 0, 3], (8, 1)),
        (np.s_[0:4, 0, 0:5], (4, 5)),
        (np.s_[:, :, ::2], (8, 5, 3)),
        (np.s_[...], (8, 5, 6)),
        (np.s_[0, ..., :], (1, 5, 6)),
        (np.s_[-1], (1, 5, 6)),
        (np.s_[2:-1, -2:, 1:6:3], (5, 2, 2)),
    ],
)
def test_on_chip_indexing_keeps_the_partition_and_two_dimensions(key, shape):
    x = normal(8, 5, 6)
    found = seen(x, lambda t: t[key], on_chip=True)
    assert found["shape"] == shape
    np.testing.assert_array_equal(found["values"].reshape(-1), np.ravel(x[key]))


@pytest.mark.parametrize(
    "key", [np.s_[1], np.s_[1, 2], np.s_[:, 2], np.s_[1:3, ..., 0], np.s_[-1, -1]]
)
def test_hbm_indexing_drops_dimensions(key):
    x = normal(4, 5, 6)
    found = seen(x, lambda t: t[key])
    assert found["shape"] == x[key].shape
    np.testing.assert_array_equal(found["values"], x[key])


def test_hbm_indexing_keeps_one_dimension():
    x = normal(4, 5)
    assert seen(x, lambda t: t[1, 2])["shape"] == (1,)


def test_dynamic_slice_object():
    x = normal(8, 20)
    found = seen(x, lambda t: t[nl.ds(2, 3), nl.ds(5, 7)], on_chip=True)
    np.testing.assert_array_equal(found["values"], x[2:5, 5:12])


@pytest.mark.parametrize(
    "take",
    [
        lambda t: t[0:9],
        lambda t: t[:, 3:3],
        lambda t: t[8],
        lambda t: t[:, :, 0],
        lambda t: t[:, 5:2],
        lambda t: t[:, ::-1],
        lambda t: t[nl.ds(6, 4)],
        lambda t: t.slice(1, 0, 7),
        lambda t: t.select(1, 6),
        lambda t: t.reshape((8, 7)),
        lambda t: t.reshape_dim(1, (4, 2)),
        lambda t: t.permute((0, 0)),
        lambda t: t.broadcast(1, 3),
        lambda t: t.squeeze_dim(1),
        lambda t: t.ap([[6, 8], [1, 7]]),
        lambda t: t.ap([[6, 9], [1, 6]]),
        lambda t: t.ap([[6, 8], [1, 6]], offset=1),
        lambda t: t.rearrange(("a", ("b", "c")), ("a", "c"), {"b": 2}),
    ],
)
def test_views_outside_the_tensor_are_refused(take):
    with pytest.raises(RuleError, match=r"test_tensor\.py:\d+"):
        seen(normal(8, 6), take, on_chip=True)


def test_partition_dimension_is_not_free():
    x = normal(8, 6)
    for take in (
        lambda t: t.permute((1, 0)),
        lambda t: t.reshape((4, 12)),
        lambda t: t.expand_dim(0),
        lambda t: t.flatten_dims(0, 1),
        lambda t: t.reshape_dim(0, (2, 4)),
        lambda t: t[0:1].broadcast(0, 4),
    ):
        with pytest.raises(RuleError, match=r"view\.partition"):
            seen(x, take, on_chip=True)
    seen(x, lambda t: t.permute((1, 0)))  # HBM has no partitions


def test_views_take_numpy_integers_and_nothing_that_only_looks_like_one():
    seen = []

    def kernel():
        t = nl.ndarray((8, 12), nl.float32, nl.sbuf)
        seen.append(t.slice(np.int64(1), np.int32(2), np.uint8(6)).shape)
        seen.append(t.ap([[np.int64(12), np.int64(8)], [1, np.int16(3)]], np.int64(2)).offset)
        seen.append(t.reshape((np.int64(8), 3, 4)).shape)
        for wrong in (True, np.True_, 1.0, nisa.register_alloc(1)):
            with pytest.raises(TypeError, match=r"compile-time integer|run-time value"):
                t.slice(1, wrong, 6)

    run(kernel)
    assert seen == [(8, 4), 2, (8, 3, 4)]


def test_composition_of_views():
    x = normal(16, 4, 16)
    found = seen(x, lambda t: t[0:8].permute((0, 2, 1))[:, 0, :], on_chip=True)
    assert found["shape"] == (8, 4)
    np.testing.assert_array_equal(found["values"], x[0:8].transpose(0, 2, 1)[:, 0, :])


def test_shape_views_against_numpy():
    x = normal(6, 4, 10)
    cases = [
        (lambda t: t.reshape((6, 40)), x.reshape(6, 40)),
        (lambda t: t.reshape((6, -1)), x.reshape(6, 40)),
        (lambda t: t.reshape_dim(2, (5, -1)), x.reshape(6, 4, 5, 2)),
        (lambda t: t.flatten_dims(1, 2), x.reshape(6, 40)),
        (lambda t: t.expand_dim(1), x[:, None]),
        (lambda t: t.expand_dim(-1), x[..., None]),
        (lambda t: t.expand_dim(1).squeeze_dim(1), x),
        (lambda t: t[:, 1:2].broadcast(1, 7), np.broadcast_to(x[:, 1:2], (6, 7, 10))),
        (lambda t: t.slice(2, 1, 9, 3), x[:, :, 1:9:3]),
        (lambda t: t.select(1, 2), x[:, 2]),
        (lambda t: t[:, :, 2:6].flatten_dims(2, 2), x[:, :, 2:6]),
    ]
    for take, expected in cases:
        np.testing.assert_array_equal(seen(x, take, on_chip=True)["values"], expected)
    found = seen(x, lambda t: t.rearrange(("b", "c", ("h", "w")), ("b", "w", "c", "h"), {"h": 5}))
    np.testing.assert_array_equal(found["values"], x.reshape(6, 4, 5, 2).transpose(0, 3, 1, 2))


def test_view_reinterprets_bytes():
    x = normal(4, 6)
    np.testing.assert_array_equal(
        seen(x, lambda t: t.view(nl.uint8), True)["values"], x.view(np.uint8)
    )
    np.testing.assert_array_equal(
        seen(x, lambda t: t.view(nl.int32), True)["values"], x.view(np.int32)
    )
    y = np.arange(4 * 12, dtype=np.uint8).reshape(4, 12)
    np.testing.assert_array_equal(
        seen(y, lambda t: t.view(nl.float32), True)["values"], y.view(np.float32)
    )
    with pytest.raises(RuleError):
        seen(y, lambda t: t[:, 1:9].view(nl.uint16), True)


def test_ap_addresses_the_storage():
    x = normal(16, 32)
    for take in (
        lambda t: t.ap([[32, 16], [1, 8]], offset=8),
        lambda t: t.ap([[32, 16], [2, 16]]).ap([[32, 16], [1, 8]], offset=8),
    ):
        np.testing.assert_array_equal(seen(x, take, True)["values"], x[:, 8:16])
    inherited = seen(x, lambda t: t.slice(1, 8, 24).ap([[32, 16], [1, 8]]), True)
    np.testing.assert_array_equal(inherited["values"], x[:, 8:16])
    as_bytes = seen(x, lambda t: t.ap([[128, 16], [1, 4]], offset=4, dtype=nl.uint8), True)
    np.testing.assert_array_equal(as_bytes["values"], x.view(np.uint8)[:, 4:8])
    with pytest.raises(RuleError, match=r"ap\.partition-step"):
        seen(x, lambda t: t.ap([[64, 8], [1, 32]]), True)
    repeated = seen(x, lambda t: t.ap([[0, 3], [1, 32]]))["values"]  # HBM takes any pattern
    np.testing.assert_array_equal(repeated, np.broadcast_to(x[0], (3, 32)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_reshaped_agrees_with_numpy(data):
    sizes = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)
    shape = data.draw(sizes)
    order = data.draw(st.permutations(range(len(shape))))
    base = np.arange(int(np.prod(shape))).reshape(shape)
    view = base.transpose(order)
    flat = data.draw(st.permutations(view.shape))
    new_shape = [n for n in flat if n > 1] or [1]
    strides = tuple(s // base.itemsize for s in view.strides)
    found = reshaped(view.shape, strides, new_shape)
    expected = view.reshape(new_shape)
    if found is None:
        assert not np.shares_memory(expected, base)
    else:
        ours = np.lib.stride_tricks.as_strided(
            base, new_shape, [s * base.itemsize for s in found], writeable=False
        )
        np.testing.assert_array_equal(ours, expected)
    assert row_major((3, 4, 5)) == (20, 5, 1)


def test_dtypes_are_strings_numpy_dtypes_and_keys():
    assert nl.bfloat16 == "bfloat16" and str(nl.bfloat16) == "bfloat16"
    assert np.zeros(2, dtype=nl.bfloat16).dtype == nl.bfloat16.numpy
    assert {nl.bfloat16: 2, nl.float32: 4}[nl.float32] == 4
    assert nl.float32 == np.float32 and np.float32 != nl.float16 and nl.uint8 != nl.int8
    assert f"{nl.float8_e4m3}" == "float8_e4m3"
    with pytest.raises(TypeError, match="float64"):
        run(lambda: nl.ndarray((2, 2), np.float64))
