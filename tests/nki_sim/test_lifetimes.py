"""What a report says of on-chip memory: who was there, where it fits, what was in vain."""

from __future__ import annotations

import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_kernels import launch
from nki_kernels.cases import Case, FlashCase, make, make_flash
from nki_sim import RuleError, Trace, memory_report
from nki_sim.kernel import Simulation
from nki_sim.lifetimes import Tenant, first_fit, tenants
from nki_sim.memory import PSUM, SBUF, Allocation
from tests.nki_kernels.running import BIFURCATED, FLASH, bifurcated_options, flash_options
from tests.nki_sim.helpers import normal, run

pytestmark = pytest.mark.sim


def report(body, *arrays, target="trn1"):
    trace = Trace()
    run(body, *arrays, target=target, trace=trace)
    found = memory_report(trace)
    sbuf, psum = found.usage
    return found, sbuf, psum


def put(out, tile):
    """Use a tile."""
    nisa.dma_copy(out[0 : tile.shape[0], 0:1], tile[:, 0:1])


def test_a_loop_s_tensors_are_one_and_live_through_it():
    def kernel(out):
        def body(i):
            a = nl.ndarray((128, 100), nl.float32)
            b = nl.ndarray((128, 50), nl.float32)
            nisa.memset(a, 0.0)
            put(out, a)
            nisa.memset(b, 0.0)  # a is dead here, but alive again in the next iteration
            put(out, b)

        nl.fori_loop(0, 5, body)

    _, sbuf, _ = report(kernel, normal(128, 4))
    assert sbuf.peak == 600 and len(sbuf.occupants) == 2

    def unrolled(out):
        for _ in range(5):
            for n in (100, 50):
                t = nl.zeros((128, n), nl.float32)
                put(out, t)

    assert report(unrolled, normal(128, 4))[1].peak == 400


def test_placed_tensors_at_one_address_count_once():
    def kernel(out):
        tiles = [nl.ndarray((128, 30000), nl.float32, nl.sbuf, address=(0, 0)) for _ in range(3)]
        for t in tiles * 2:
            nisa.memset(t, 0.0)
            put(out, t)

    found, sbuf, _ = report(kernel, normal(128, 4))
    assert sbuf.peak == sbuf.needed == found.first_fit[0] == 120000

    def beside(out):
        tiles = [
            nl.ndarray((128, 1000), nl.float32, nl.sbuf, address=(0, at)) for at in (0, 2000, 8000)
        ]
        for t in tiles * 2:
            nisa.memset(t, 0.0)
            put(out, t)

    found, sbuf, _ = report(beside, normal(128, 4))
    assert sbuf.peak == 10000 and found.first_fit[0] == 12000


def tenant(nbytes, first, last, space=SBUF, byte=None):
    address = None if byte is None else (0, byte)
    return Tenant(Allocation(0, space, (128, nbytes), nl.uint8, "", address=address), first, last)


def test_first_fit_shows_fragmentation():
    holes = [tenant(100, 0, 9), tenant(100, 1, 3), tenant(100, 2, 9), tenant(150, 4, 9)]
    assert first_fit(holes) == 450  # 350 bytes are alive at the end, in 100 + 100 + 150
    assert first_fit([*holes[:3], tenant(80, 4, 9)]) == 300
    assert first_fit([tenant(100, 0, 9), tenant(50, 3, 5, byte=120), tenant(60, 1, 2)]) == 170
    assert first_fit([tenant(100, 0, 9), tenant(60, 1, 4), tenant(50, 3, 5, byte=120)]) == 230
    banks = [tenant(1500, 0, 9, PSUM), tenant(1500, 0, 9, PSUM), tenant(500, 0, 9, PSUM)]
    assert first_fit(banks) == 2048 + 1500  # a tile stays in one bank; the small one shares


def test_the_table_names_who_and_where():
    def kernel(out):
        keys = nl.ndarray((128, 64), nl.float32, name="keys")
        nisa.memset(keys, 0.0)
        put(out, keys)
        nl.ndarray((2, 2), nl.float32, name="forgotten")
        vain = nl.ndarray((2, 2), nl.float32, name="vain")
        nisa.memset(vain, 0.0)

    found, _, _ = report(kernel, normal(128, 4))
    text = str(found)
    assert "'keys'" in text and text.count("[test_lifetimes.py:") == 3
    line = kernel.__code__.co_firstlineno
    assert f"[test_lifetimes.py:{line + 1}]" in text
    assert "never touched: <sbuf#2 'forgotten'" in text
    assert "written but never read: <sbuf#3 'vain'" in text
    assert "sbuf 0" in text and "180224" in text and "16384" in text


def test_unused_outputs_that_must_be_given_are_not_reported():
    def kernel(out):
        data = nl.load(out)
        dst, total = nl.ndarray((128, 4), nl.float32), nl.ndarray((128, 1), nl.float32)
        nisa.activation_reduce(dst, nl.exp, data, nl.add, total)
        put(out, total)

    assert report(kernel, normal(128, 4))[0].idle.never_read == ()


def test_what_nothing_wrote():
    def kernel(out):
        t = nl.ndarray((128, 4), nl.float32, name="empty")
        put(out, t)

    with pytest.warns(nki_sim.UnwrittenReadWarning):
        found, _, _ = report(kernel, normal(128, 4))
    assert [a.name for a in found.idle.never_written] == ["empty"]


def test_the_refusal_names_the_largest_tenants_and_their_lines():
    def kernel(out):
        tiles = [nl.zeros((128, 15000), nl.float32, name=f"big{i}") for i in range(4)]
        for t in tiles:
            put(out, t)

    with pytest.raises(RuleError, match=r"240000 of 180224 .*'big0'.*\[test_lifetimes\.py:"):
        run(kernel, normal(128, 4))


def test_lifetimes_of_a_trace():
    def kernel(out):
        a = nl.zeros((128, 8), nl.float32)  # 0
        b = nl.zeros((128, 8), nl.float32)  # 1
        put(out, b)  # 2
        put(out, a)  # 3

    trace = Trace()
    run(kernel, normal(128, 4), trace=trace)
    assert [(t.first, t.last) for t in tenants(trace, nl.sbuf, 0)] == [(0, 3), (1, 2)]
    with pytest.raises(ValueError, match="no launch"):
        memory_report(Trace())


@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize(
    "case", [Case(600, 9, 2, 4, 2, 16, n=3), FlashCase(2, 300, 2, 1, 32)], ids=str
)
def test_the_shipped_kernels_fit_and_waste_nothing(case, target):
    decodes = isinstance(case, Case)
    arguments = make(case) if decodes else make_flash(case)
    options = bifurcated_options(arguments) if decodes else flash_options(arguments, target)
    trace = Trace()
    kernel = launch.load(*(BIFURCATED if decodes else FLASH))
    nki_sim.simulate(kernel, target=target, trace=trace)(*arguments.values(), **options)
    found = memory_report(trace)
    for usage, placed in zip(found.usage, found.first_fit, strict=True):
        assert 0 < usage.needed <= usage.peak <= placed <= usage.capacity
    assert found.idle.never_written == () and found.idle.never_read == ()


def test_capacity_and_loops_are_checked_without_data():
    def too_full(x):
        tiles = [nl.ndarray((128, 30000), nl.float32) for _ in range(2)]
        for tile in tiles:
            nisa.memset(tile, 1.0)
        nisa.tensor_tensor(tiles[0], tiles[0], tiles[1], nl.add)

    def keeps(x):
        kept = []

        def body(i):
            kept.append(nl.full((1, 4), 1.0, nl.float32))
            nisa.dma_copy(x, kept[0])

        nl.fori_loop(0, 2, body)

    for kernel, rule in ((too_full, "memory.capacity"), (keeps, "loop.memory")):
        with pytest.raises(RuleError) as caught:
            Simulation(kernel, "trn1", shapes_only=True)(normal(1, 4))
        assert caught.value.rule == rule
