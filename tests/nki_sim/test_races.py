"""What goes wrong by sharing memory: between cores, iterations, indices and addresses; and near
misses that must stay quiet."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim import RuleError, Trace
from nki_sim.kernel import jit
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim

HERE = "test_races.py:"


def two_cores(body, *arrays):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return nki_sim.simulate(jit(body)[2], target="trn2")(*arrays)


def refused(rule, run_it):
    """The error of a broken rule, which names two places of this file."""
    with pytest.raises(RuleError) as caught:
        run_it()
    text = str(caught.value)
    assert rule in text and text.count(HERE) == 2, text
    return text


# ---------------------------------------------------------------------- two cores


def test_the_conflicting_instruction_is_named_not_the_latest():
    def kernel(a):
        me = nl.program_id(0)
        if me == 0:
            nisa.dma_copy(a[0:2], nl.full((2, 6), 1.0, nl.float32))  # conflicts
            nisa.dma_copy(a[4:6], nl.full((2, 6), 1.0, nl.float32))  # does not
        else:
            nl.load(a[1:3])

    text = refused("race", lambda: two_cores(kernel, normal(6, 6)))
    assert f"{HERE}{kernel.__code__.co_firstlineno + 3}" in text


def test_sendrecv_orders_what_stands_on_both_sides():
    def kernel(a, ordered):
        me = nl.program_id(0)
        tile = nl.full((2, 6), float(me), nl.float32)
        got = nl.ndarray((2, 6), nl.float32)
        nisa.dma_copy(a[nl.ds(2 * me, 2)], tile)
        if ordered:
            nisa.sendrecv(tile, got, 1 - me, 1 - me, 0)
        nl.load(a[nl.ds(2 * (1 - me), 2)])

    two_cores(kernel, normal(4, 6), True)
    refused("race", lambda: two_cores(kernel, normal(4, 6), False))


def test_run_time_addresses_race_where_they_meet():
    def scatter(a, rows):
        me = nl.program_id(0)
        index = nl.load(rows[nl.ds(4 * me, 4)])
        tile = nl.full((4, 6), float(me), nl.float32)
        nisa.dma_copy(a.ap([[6, 4], [1, 6]], vector_offset=index), tile)

    apart = np.arange(8, dtype=np.int32)[::-1].reshape(8, 1).copy()
    two_cores(scatter, normal(8, 6), apart)
    apart[5] = apart[1]
    refused("race", lambda: two_cores(scatter, normal(8, 6), apart))

    def at_register(a, rows):
        at = nisa.register_alloc()
        nisa.register_load(at, nl.load(rows[nl.ds(nl.program_id(0), 1)]))
        tile = nl.full((1, 6), 1.0, nl.float32)
        nisa.dma_copy(a.ap([[6, 1], [1, 6]], scalar_offset=at, indirect_dim=0), tile)

    two_cores(at_register, normal(8, 6), np.array([[3], [4]], np.int32))
    same = np.array([[3], [3]], np.int32)
    refused("race", lambda: two_cores(at_register, normal(8, 6), same))


def test_reinterpreted_halves_do_not_race():
    def kernel(a, other):
        me = nl.program_id(0)
        words = a.view(nl.float32)  # [4, 6] int16 as [4, 3] float32
        at = me if not other else 0
        nisa.dma_copy(words[nl.ds(2 * at, 2)], nl.full((2, 3), 1.0, nl.float32))

    x = np.zeros((4, 6), np.int16)
    two_cores(kernel, x, False)
    refused("race", lambda: two_cores(kernel, x, True))


# ---------------------------------------------------------------------- unique indices


def add_rows(rows, oob):
    def kernel(a, index):
        at = nl.load(index)
        view = a.ap([[6, 4], [1, 6]], vector_offset=at)
        nisa.dma_compute(view, [view, nl.full((4, 6), 1.0, nl.float32)], nl.add, oob_mode=oob)

    a = np.zeros((8, 6), np.float32)
    run(kernel, a, np.array(rows, np.int32).reshape(4, 1), target="trn2")
    return a


def test_a_promise_of_unique_indices():
    with pytest.raises(RuleError, match=r"dma\.unique-indices") as caught:
        add_rows([3, 1, 2, 3], nisa.oob_mode.error)
    text = str(caught.value)
    assert "vector_offset = 3" in text and HERE in text
    assert "row 0 (index[0, 0]) and row 3 (index[3, 0])" in text
    assert add_rows([3, 1, 2, 7], nisa.oob_mode.error).sum() == 24
    # indices that are skipped may repeat: padding
    assert add_rows([3, 100, 2, 100], nisa.oob_mode.skip).sum() == 12


# ---------------------------------------------------------------------- dynamic loops


def test_a_value_kept_from_an_earlier_iteration():
    def kernel(out, late):
        kept = []

        def body(i):
            t = nl.ndarray((1, 4), nl.float32)
            nisa.memset(t, 1.0)
            kept.append(t)
            if len(kept) == 3 and late:
                nisa.dma_copy(out, kept[0])
            else:
                nisa.dma_copy(out, t)

        nl.fori_loop(0, 3, body)

    refused("loop.memory", lambda: run(kernel, normal(1, 4), True))
    run(kernel, normal(1, 4), False)


def test_a_read_that_finds_the_iteration_before():
    def kernel(out):
        def body(i):
            t = nl.ndarray((1, 4), nl.float32)
            nisa.dma_copy(out, t)
            nisa.memset(t, 1.0)

        nl.fori_loop(0, 3, body)

    trace = Trace()
    with pytest.warns(nki_sim.UnwrittenReadWarning):
        run(kernel, normal(1, 4), trace=trace)
    found = [f for f in trace.findings if f.kind == "loop-memory"]
    assert len(found) == 1 and HERE in found[0].line and HERE in found[0].text


def test_a_body_that_writes_only_a_part():
    def kernel(out, columns, again):
        def body(i):
            t = nl.ndarray((2, 6), nl.float32)
            nisa.memset(t[:, columns], 1.0)
            if again:
                nisa.memset(t[:, 3:6], 2.0)
            nisa.dma_copy(out, t)

        nl.fori_loop(0, 3, body)

    def findings(columns, again=False):
        trace = Trace()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(kernel, normal(2, 6), columns, again, trace=trace)
        return [f for f in trace.findings if f.kind == "loop-memory"]

    # on the device no iteration writes columns 3 to 5: no earlier iteration's value is there
    assert findings(slice(0, 3)) == []
    assert findings(slice(0, 3), again=True) == []
    assert findings(slice(0, 6, 2), again=True) == []


def test_a_part_that_only_an_earlier_iteration_wrote():
    def kernel(out, columns):
        def body(i):
            t = nl.ndarray((2, 6), nl.float32)
            nisa.memset(t[:, columns], 1.0)
            nisa.dma_copy(out, t)
            nisa.memset(t, 2.0)

        nl.fori_loop(0, 3, body)

    for columns, loud in ((slice(0, 3), True), (slice(0, 6, 2), True), (slice(None), False)):
        trace = Trace()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(kernel, normal(2, 6), columns, trace=trace)
        found = [f for f in trace.findings if f.kind == "loop-memory"]
        assert len(found) == loud
        if loud:
            lines = kernel.__code__.co_consts[1].co_firstlineno
            assert found[0].line.endswith(f"{HERE}{lines + 3}"), found
            assert f"memset at {found[0].line.rsplit(':', 1)[0]}:{lines + 4}" in found[0].text


def test_a_kept_value_that_later_iterations_overwrite_in_parts():
    def kernel(out, keep):
        kept = []

        def body(i):
            t = nl.ndarray((1, 4), nl.float32)
            part = slice(0, 2) if len(kept) % 2 == 0 else slice(2, 4)
            nisa.memset(t[:, part], 1.0)
            kept.append(t[:, part])
            nisa.dma_copy(out[:, part], kept[-keep] if len(kept) >= 3 else kept[-1])

        nl.fori_loop(0, 3, body)

    refused("loop.memory", lambda: run(kernel, normal(1, 4), 3))
    run(kernel, normal(1, 4), 1)


def test_loops_side_by_side_and_nested_stay_quiet():
    def kernel(out):
        def inner(i):
            t = nl.zeros((1, 4), nl.float32)
            nisa.dma_copy(out, t)

        def outer(i):
            first, second = nl.zeros((1, 4), nl.float32), nl.zeros((1, 4), nl.float32)
            nl.fori_loop(0, 2, inner)
            nisa.tensor_tensor(first, first, second, nl.add)
            nl.fori_loop(0, 2, inner)
            nisa.dma_copy(out, first)

        nl.fori_loop(0, 3, outer)
        nl.fori_loop(0, 3, outer)

    trace = Trace()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(kernel, normal(1, 4), trace=trace)
    assert trace.findings == []


# ---------------------------------------------------------------------- explicit addresses


def placed(byte):
    return nl.ndarray((128, 64), nl.float32, nl.sbuf, address=(0, byte))


def test_overlapping_addresses():
    def kernel(pieces):
        a, b = placed(0), placed(128)
        out = nl.ndarray((128, 64), nl.float32)
        nisa.memset(a, 1.0)
        nisa.memset(b, 2.0)
        for piece in pieces:  # of a, rewritten before it is read again
            nisa.memset(a[:, piece], 3.0)
        nisa.tensor_copy(out, a)

    run(kernel, [slice(32, 64)])
    run(kernel, [slice(48, 64), slice(32, 48)])  # in two pieces
    run(kernel, [slice(None)])
    refused("memory.overlap", lambda: run(kernel, [slice(32, 48)]))


def test_interleaved_addresses_do_not_overlap():
    def kernel(first):
        a, b = placed(0), placed(0)
        nisa.memset(a[:, 0::2], 1.0)
        nisa.memset(b[:, first::2], 2.0)
        nisa.tensor_copy(nl.ndarray((128, 32), nl.float32), a[:, 0::2])

    run(kernel, 1)
    refused("memory.overlap", lambda: run(kernel, 0))
