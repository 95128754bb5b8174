"""Refusals of the operators: one sentence that names the argument, what it is and must be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nki_kernels import InputError, bifurcated_attention, flash_attention
from nki_kernels.cases import Case, FlashCase, make, make_flash

pytestmark = pytest.mark.null

CASE = Case(m_c=5, m_d=2, b=3, h=4, g=2, d=16, G=2)  # S_ctx 8, S_dec 5
FLASH_CASE = FlashCase(B=2, S=6, h=4, g=2, d=16)


def int32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


BIFURCATED = {
    "q rank": ({"q": torch.zeros(2, 3, 4, 16)}, r"q must be \[G, r, n, h, d\], got shape \(2, 3"),
    "q empty": ({"q": torch.zeros(2, 0, 1, 4, 16)}, "q must have no empty dimension"),
    "window": ({"window": 0}, "window must be None or a number of positions >= 1, got 0"),
    "query_position shape": (
        {"window": 2, "query_position": int32(5, 5)},
        r"query_position must be \[G, r\] = \(2, 3\), got shape \(2,\)",
    ),
    "query_position alone": (
        {"query_position": int32([1, 2, 3], [1, 2, 3])},
        "query_position says where a window ends; pass a window",
    ),
    "softcap": ({"softcap": -2.0}, r"softcap must be None or finite and > 0, got -2\.0"),
    "k_ctx rank": ({"k_ctx": torch.zeros(2, 16)}, r"k_ctx must be \[g, d, G·S_ctx\]"),
    "heads": ({"k_ctx": torch.zeros(3, 16, 16)}, "q has h = 4 heads, no multiple of k_ctx's g = 3"),
    "k_ctx slots": ({"k_ctx": torch.zeros(2, 16, 15)}, "k_ctx must be .*a multiple of G = 2 slots"),
    "k_ctx not transposed": (
        {"k_ctx": torch.zeros(2, 20, 16)},
        r"k_ctx must be .*got .*\(2, 20, 16",
    ),
    "v_ctx": ({"v_ctx": torch.zeros(2, 16, 16, 1)}, r"v_ctx must be .*\(2, 16, 16\), got"),
    "k_suf rank": ({"k_suf": torch.zeros(2, 30)}, "k_suf must be"),
    "k_suf rows": ({"k_suf": torch.zeros(2, 31, 16)}, "k_suf must be .*a multiple of G·r = 6 rows"),
    "v_suf": ({"v_suf": torch.zeros(2, 24, 16)}, "v_suf must have k_suf's shape"),
    "context_len shape": ({"context_len": int32(5)}, r"context_len must be \[G\] = \(2,\), got"),
    "suffix_len shape": (
        {"suffix_len": int32(1, 2)},
        r"suffix_len must be \[G, r\] = \(2, 3\), got",
    ),
    "length dtype": (
        {"context_len": torch.tensor([5, 5])},
        "context_len must be int32, got .*int64",
    ),
    "dtype": ({"q": torch.zeros(2, 3, 1, 4, 16, dtype=torch.int32)}, "q has dtype torch.int32"),
    "sinks": ({"sinks": torch.zeros(3)}, r"sinks must be \[h\] = \(4,\), got shape \(3,\)"),
    "sinks dtype": ({"sinks": torch.zeros(4).bfloat16()}, "sinks has dtype torch.bfloat16"),
    "one cache in fp8": (
        {"k_ctx": torch.zeros(2, 16, 16).to(torch.float8_e4m3fn)},
        "v_ctx has dtype torch.float32, k_ctx has torch.float8_e4m3fn",
    ),
    "factors of what is not in fp8": (
        {"k_scale": torch.ones(2)},
        "k_scale is a factor of torch.float8_e4m3fn, and k_ctx has dtype torch.float32",
    ),
    "mixed dtypes": ({"v_ctx": torch.zeros(2, 16, 16).bfloat16()}, "v_ctx has dtype .*bfloat16, q"),
    "device": ({"k_suf": torch.zeros(2, 30, 16, device="meta")}, "k_suf is on meta, q is on cpu"),
    "scale": ({"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
    "scale nan": ({"scale": float("nan")}, "scale must be finite"),
    "context too long": (
        {"context_len": int32(5, 9)},
        r"context_len must lie in 0..S_ctx = 8, got 9",
    ),
    "context negative": ({"context_len": int32(-1, 2)}, "context_len must lie in .*got -1"),
    "suffix too long": (
        {"suffix_len": int32([1, 2, 6], [0, 1, 2])},
        r"suffix_len must lie in 0..S_dec = 5, got 6",
    ),
    "kernels": ({"kernels": "cuda"}, "kernels must be one of auto, nki, torch, got 'cuda'"),
    "target": ({"target": "trn9"}, "target must be one of trn1, inf2, trn2, trn3, got 'trn9'"),
}

FLASH = {
    "q rank": ({"q": torch.zeros(6, 4, 16)}, r"q must be \[B, S, h, d\]"),
    "q empty": ({"q": torch.zeros(2, 0, 4, 16)}, "q must have no empty dimension"),
    "window": ({"window": -3}, "window must be None or a number of positions >= 1, got -3"),
    "softcap": ({"softcap": float("inf")}, "softcap must be None or finite and > 0, got inf"),
    "k rank": ({"k": torch.zeros(2, 16)}, r"k must be \[g, d, B·S_ctx\]"),
    "heads": ({"k": torch.zeros(3, 16, 12)}, "q has h = 4 heads, no multiple of k's g = 3"),
    "k": ({"k": torch.zeros(2, 16, 13)}, r"k must be \[g, d, B·S_ctx\] with d = 16 and B = 2, got"),
    "v": ({"v": torch.zeros(2, 16, 12)}, r"v must be \[g, B·S_ctx, d\] = \(2, 12, 16\), got"),
    "start": ({"start": -1}, "start must be a position >= 0, got -1"),
    "too few keys": ({"start": 1}, "k holds 6 keys a prompt, and the queries are at .* 1 to 6"),
    "sinks": ({"sinks": torch.zeros(3)}, r"sinks must be \[h\] = \(4,\), got shape \(3,\)"),
    "sinks dtype": ({"sinks": torch.zeros(4).bfloat16()}, "sinks has dtype torch.bfloat16"),
    "dtype": ({"q": torch.zeros(2, 6, 4, 16, dtype=torch.int32)}, "q has dtype torch.int32"),
    "mixed dtypes": ({"k": torch.zeros(2, 16, 12).bfloat16()}, "k has dtype"),
    "device": ({"v": torch.zeros(2, 12, 16, device="meta")}, "v is on meta"),
    "scale": ({"scale": float("inf")}, "scale must be finite and > 0, got inf"),
    "kernels": ({"kernels": "NKI"}, "kernels must be one of"),
    "target": ({"target": "gen2"}, "target must be one of"),
}


@pytest.mark.parametrize("name", BIFURCATED)
def test_bifurcated_refuses(name: str) -> None:
    changes, message = BIFURCATED[name]
    with pytest.raises(InputError, match=message) as caught:
        bifurcated_attention(**{**make(CASE), **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FLASH)
def test_flash_refuses(name: str) -> None:
    changes, message = FLASH[name]
    with pytest.raises(InputError, match=message) as caught:
        flash_attention(**{**make_flash(FLASH_CASE), **changes})
    assert "\n" not in str(caught.value)


def test_factors_have_a_number_a_kv_head() -> None:
    arguments = make(replace(CASE, fp8=True)) | {"v_scale": torch.ones(3)}
    with pytest.raises(InputError, match=r"v_scale must be \[g\] = \(2,\), got shape \(3,\)"):
        bifurcated_attention(**arguments)


def test_head_sizes_that_the_kernels_do_not_have() -> None:
    """The references take them; the kernels refuse them by name."""
    decode = make(Case(m_c=5, m_d=2, b=3, h=4, g=2, d=257))
    prefill = make_flash(FlashCase(B=1, S=6, h=4, g=2, d=257))
    message = "q has head size d = 257; at most 256 is supported by the NKI kernels"
    for operator, arguments in ((bifurcated_attention, decode), (flash_attention, prefill)):
        assert operator(**arguments).shape == arguments["q"].shape
        with pytest.raises(InputError, match=message):
            operator(**arguments, kernels="nki")


def test_double_is_for_the_reference_alone() -> None:
    arguments = {
        name: value.double() if name in ("q", "k", "v") else value
        for name, value in make_flash(FLASH_CASE).items()
    }
    assert flash_attention(**arguments).dtype == torch.float64
    with pytest.raises(InputError, match=r"q has dtype torch\.float64, which no NeuronCore"):
        flash_attention(**arguments, kernels="nki")


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)
