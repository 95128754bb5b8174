"""The fused kernels of a decode layer against fp64, and that fusing is worth it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import nki_sim
from models.causal_lm.rope import rotate
from nki_kernels import launch
from nki_kernels.cases import make_rows, make_weights
from nki_kernels.decode_layer import reference
from nki_kernels.decode_layer.validate import validate_heads, validate_rows
from nki_kernels.errors import InputError
from tests.nki_kernels.unfused import gains

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("error")]

MODULE = "nki_kernels.decode_layer.kernel"
DTYPES = ("float32", "bfloat16")
TOLERANCE = {"float32": 2e-6, "bfloat16": 2 * 2.0**-7}
EPS = 1e-5


def run(name: str, *arguments: Any, target: str = "trn1", **options: Any) -> Any:
    return nki_sim.simulate(launch.load(MODULE, name), target=target)(*arguments, **options)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    """Each row within the dtype's rounding of its largest element."""
    assert actual.dtype == getattr(torch, dtype) and actual.shape == expected.shape
    largest = expected.flatten(1).abs().amax(1)
    error = (actual.double() - expected).flatten(1).abs().amax(1)
    assert (error <= TOLERANCE[dtype] * largest).all(), (error / largest).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "b,H,h,g,d", [(1, 128, 1, 1, 2), (5, 256, 4, 4, 32), (16, 384, 26, 13, 64), (99, 128, 3, 1, 96)]
)  # fmt: skip
def test_norm_qkv_rope(b: int, H: int, h: int, g: int, d: int, dtype: str) -> None:
    x, gain = make_rows(b, H, dtype)
    w = make_weights(H, (h + 2 * g) * d, dtype=dtype, seed=1)
    angles = torch.tensor(np.random.default_rng(2).uniform(0, 7, (b, d // 2)), dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    found = run("norm_qkv_rope_kernel", x, gain, w, cos, sin, h=h, eps=EPS)
    wide = (x.double(), gain.double(), w.double())
    expected = reference.norm_qkv_rope(*wide, cos, sin, h, EPS)
    for one, other in zip(found, expected, strict=True):
        close(one, other, dtype)
    # The models' own rotation, whose convention this is.
    plain = reference.norm_qkv_rope(*wide, cos * 0 + 1, sin * 0, h, EPS)[0]
    turned = rotate(plain.float(), cos.unsqueeze(1), sin.unsqueeze(1))
    torch.testing.assert_close(turned.double(), expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "b,H,width", [(1, 128, 1), (5, 256, 200), (16, 2176, 1700), (128, 128, 128)]
)
def test_gated_mlp(b: int, H: int, width: int, dtype: str) -> None:
    x, gain = make_rows(b, H, dtype)
    gate, up = (make_weights(H, width, dtype=dtype, seed=i) for i in (3, 4))
    down = make_weights(width, H, dtype=dtype, seed=5)
    found = run("gated_mlp_kernel", x, gain, gate, up, down, eps=EPS)
    wide = [t.double() for t in (x, gain, gate, up, down)]
    close(found, reference.gated_mlp(*wide, EPS), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b,K,N", [(1, 1, 1), (7, 300, 2100), (128, 256, 512)])
def test_projection(b: int, K: int, N: int, dtype: str) -> None:
    x, w = make_rows(b, K, dtype)[0], make_weights(K, N, dtype=dtype, seed=6)
    close(run("projection_kernel", x, w), x.double() @ w.double(), dtype)


@pytest.mark.parametrize("rows_,g", [(1, 1), (5, 3), (128, 2)])
def test_write_kv_changes_its_rows_alone(rows_: int, g: int) -> None:
    random = np.random.default_rng(7)
    k, v = (torch.tensor(random.standard_normal((rows_, g, 16))).float() for _ in range(2))
    k_suf, v_suf = (torch.tensor(random.standard_normal((g, rows_ * 9, 16))) for _ in range(2))
    k_suf, v_suf = k_suf.float(), v_suf.float()
    slots = torch.tensor([9 * i + random.integers(9) for i in range(rows_)], dtype=torch.int32)
    expected = k_suf.clone(), v_suf.clone()
    reference.write_kv(k, v, *expected, slots)
    found = run("write_kv_kernel", k, v, k_suf, v_suf, slots)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("target", ["trn1", "trn2"])
def test_fusing_gains_a_tenth_of_a_layer(target: str) -> None:
    """Against the same steps in one program, with projection and attention at b = 16 counted in."""
    found = gains(target, 16, 4096, 4, 4, 128, 1376)
    gained = sum(found[f"{part} program"] - found[f"{part} fused"] for part in ("qkv", "mlp"))
    fused = found["qkv fused"] + found["mlp fused"]
    rest = 26 + 120  # output projection, KV write and bifurcated attention, generously
    assert gained >= 0.1 * (fused + gained + rest)


def test_refusals() -> None:
    validate_rows(128, 4096)
    validate_heads(8, 2, 128)
    with pytest.raises(InputError, match="1 to 128 rows b, got 129"):
        validate_rows(129, 128)
    with pytest.raises(InputError, match="multiple of 128 columns, got 200"):
        validate_rows(1, 200)
    with pytest.raises(InputError, match="multiple of g = 3, got 4"):
        validate_heads(4, 3, 64)
    with pytest.raises(InputError, match="even and at most 512, got 7"):
        validate_heads(4, 4, 7)
