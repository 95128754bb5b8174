"""Which generation is simulated, and what it changes."""

from __future__ import annotations

import pytest

import nki_sim
import nki_sim.isa as nisa
import nki_sim.language as nl
from nki_sim.kernel import jit, simulate

pytestmark = pytest.mark.null


@pytest.mark.parametrize(
    ("name", "generation"),
    [("trn1", "gen2"), ("inf2", "gen2"), ("gen2", "gen2"), ("trn2", "gen3"), ("gen3", "gen3"),
     ("trn3", "gen4"), ("GEN4", "gen4")],
)  # fmt: skip
def test_names(name, generation, monkeypatch):
    assert nki_sim.get_target(name).generation == generation
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", name)
    assert nki_sim.get_target().generation == generation


def test_default_is_trn3(monkeypatch):
    monkeypatch.delenv("NEURON_PLATFORM_TARGET_OVERRIDE", raising=False)
    assert nki_sim.get_target().generation == "gen4"
    assert nisa.get_nc_version() is nisa.nc_version.gen4


def test_unknown_target(monkeypatch):
    with pytest.raises(ValueError, match="target = 'trn9'"):
        nki_sim.get_target("trn9")
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "tpu")
    with pytest.raises(ValueError, match="NEURON_PLATFORM_TARGET_OVERRIDE = 'tpu'"):
        nki_sim.get_target()


def test_the_environment_decides_for_nki_simulate(monkeypatch):
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "inf2")
    seen = []

    @jit
    def kernel():
        seen.append((nisa.get_nc_version().name, nl.tile_size.sbuf_fmax_bytes, nl.program_id(0)))

    simulate(kernel)()
    kernel()
    nki_sim.simulate(kernel, target="trn2")()
    assert seen == [("gen2", 180224, 0), ("gen2", 180224, 0), ("gen3", 212984, 0)]


def test_tile_sizes():
    t = nl.tile_size
    assert (t.pmax, t.psum_fmax, t.psum_bank_fmax, t.psum_bank_fmax_bytes) == (128, 512, 512, 2048)
    assert (t.gemm_stationary_fmax, t.gemm_moving_fmax, t.bn_stats_fmax) == (128, 512, 512)
    assert t.psum_num_banks == 8

    def kernel():
        assert t.sbuf_size_bytes == 24 * 2**20 and t.sbuf_fmax == 45056
        assert t.total_available_sbuf_size == t.sbuf_fmax_bytes

    nki_sim.simulate(kernel, target="trn1")()


def test_jit_forms():
    def f():
        return None

    assert jit(f).func is f and jit(mode="baremetal")(f).func is f and jit(jit(f)).func is f
    with pytest.raises(TypeError, match="one integer"):
        jit(f)["2"]
