"""The bound on attention, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nki_kernels.errors import InputError
from nki_kernels.speed_of_light import Decode, Prefill, speed_of_light

pytestmark = pytest.mark.null

MHA = Decode(G=1, r=16, n=1, h=4, g=4, d=128, m_c=8192, m_d=128)


def test_multi_head_decode_is_bound_by_bytes() -> None:
    found = speed_of_light(MHA, "trn1")
    keys = 8192 + 16 * 128
    nbytes = 2 * 4 * 128 * keys * 2 + 2 * 16 * 4 * 128 * 2
    assert found.nbytes == nbytes
    assert found.resource == found.without_max == "dma"
    assert found.us == pytest.approx(nbytes / (16 * 17) / 1000)
    # 64 blocks of 128 keys: 64 cycles for the logits of 16 rows, 64 for their values; and for
    # each of 16 samples and 128 keys the same.
    assert found.resources["tensor"] == pytest.approx(4 * (64 + 16) * 128 / 2.8e3)
    logits = 16 * 4 * keys_seen(8192, 128)
    assert found.resources["scalar"] == pytest.approx(logits / 128 / 1.4e3)
    assert found.resources["vector"] == pytest.approx(logits / 128 / 1.12e3)
    port = found.resources["scalar"] + found.resources["vector"]
    assert found.resources["psum port"] == pytest.approx(port)


def keys_seen(context: int, suffix: int) -> int:
    return context + suffix


def test_many_samples_are_bound_by_the_psum_port_on_gen2_alone() -> None:
    many = replace(MHA, r=64, h=8, g=1)
    assert speed_of_light(many, "trn1").resource == "psum port"
    assert speed_of_light(many, "trn2").resource == "vector"
    assert "psum port" not in speed_of_light(many, "trn2").resources


def test_the_second_line_is_never_below_the_first() -> None:
    for r in (1, 16, 128, 1024):
        for target in ("inf2", "trn2", "trn3"):
            found = speed_of_light(replace(MHA, r=r), target)
            assert found.us >= found.without_max_us > 0


def test_fp32_costs_four_passes_and_twice_the_bytes() -> None:
    half, full = (speed_of_light(replace(MHA, element_bytes=n), "trn1") for n in (2, 4))
    assert full.nbytes == 2 * half.nbytes
    assert full.resources["tensor"] == 4 * half.resources["tensor"]


def test_context_counts_once_a_prompt_and_suffix_once_a_sample() -> None:
    one = speed_of_light(MHA, "trn1").nbytes
    more_samples = speed_of_light(replace(MHA, r=17), "trn1").nbytes
    more_context = speed_of_light(replace(MHA, m_c=8193), "trn1").nbytes
    assert more_samples - one == (2 * 4 * 128 * 128 + 2 * 4 * 128) * 2
    assert more_context - one == 2 * 4 * 128 * 2


def test_nothing_decoded_yet_asks_for_nothing() -> None:
    none = speed_of_light(replace(MHA, m_d=0), "trn1")
    assert none.resources["scalar"] == pytest.approx(16 * 4 * 8192 / 128 / 1.4e3)
    assert none.resources["tensor"] == pytest.approx(4 * 64 * 128 / 2.8e3)


def test_causal_prefill() -> None:
    found = speed_of_light(Prefill(B=1, S=256, h=1, g=1, d=128), "trn1")
    assert found.nbytes == 4 * 256 * 128 * 2
    # Tiles of 128 queries against 128 and 256 keys, 128 cycles a 128 x 128 block and product.
    assert found.resources["tensor"] == pytest.approx(3 * 2 * 128 / 2.8e3)
    assert found.resources["scalar"] == pytest.approx(256 * 257 / 2 / 128 / 1.4e3)


def test_stored_keys_add_to_prefill() -> None:
    plain = speed_of_light(Prefill(B=1, S=2048, h=4, g=1, d=128), "trn1")
    prior = speed_of_light(Prefill(B=1, S=2048, h=4, g=1, d=128, prior=4096), "trn1")
    assert prior.nbytes - plain.nbytes == 2 * 4096 * 128 * 2
    assert prior.resources["tensor"] > 3 * plain.resources["tensor"]


def test_hbm_is_shared_when_all_cores_read() -> None:
    alone = speed_of_light(MHA, "trn2")
    together = speed_of_light(MHA, "trn2", all_cores=True)
    assert together.us == pytest.approx(alone.us * 435.2 / 375)
    assert speed_of_light(MHA, "trn1", all_cores=True).us == speed_of_light(MHA, "trn1").us


def test_refusals() -> None:
    with pytest.raises(InputError, match="r must be at least 1, got 0"):
        speed_of_light(replace(MHA, r=0), "trn1")
    with pytest.raises(InputError, match="no multiple of g = 3"):
        speed_of_light(replace(MHA, g=3), "trn1")
    with pytest.raises(ValueError, match="trn9"):
        speed_of_light(MHA, "trn9")
