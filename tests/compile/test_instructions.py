"""Instruction counts: what is grown from short calls against the same calls recorded whole."""

from __future__ import annotations

import numpy as np
import pytest

from compile import instructions
from models.causal_lm import CacheShape
from models.causal_lm.sharding import Heads, split_heads
from nki_kernels import launch
from nki_kernels.flash_attention import tuning
from nki_kernels.flash_attention.validate import Shape
from nki_kernels.predict import profile
from nki_kernels.speed_of_light import Decode
from tests.models.tiny import CONFIG

pytestmark = pytest.mark.sim

ONE = split_heads(CONFIG, 4, 0)  # h = g = 1
TWO = split_heads(CONFIG, 1, 0)  # h = 4, g = 2


def recorded_flash(S: int, h: int, g: int, target: str) -> int:
    d = CONFIG.d
    shape = Shape(B=1, S=S, h=h, g=g, d=d, S_ctx=S, start=0)
    arrays = [np.empty(s, np.float32) for s in ((1, S, h, d), (g, d, S), (g, S, d))]
    kernel = launch.load("nki_kernels.flash_attention.kernel", "flash_attention_kernel")
    options = tuning.kernel_options(tuning.schedule(shape, 4, target), 0)
    return instructions.record(kernel, target, *arrays, d**-0.5, **options)


@pytest.mark.parametrize("target", ["trn1", "trn2"])
@pytest.mark.parametrize(
    ("S", "heads", "evidence"),
    [(300, ONE, "computed"), (512, TWO, "predicted"), (3000, ONE, "predicted")],
)
def test_prefill(S: int, heads: Heads, evidence: str, target: str) -> None:
    count = instructions.prefill(CONFIG, heads, 1, S, target, 4, True)
    whole = CONFIG.layers * recorded_flash(S, heads.h, heads.g, target)
    assert count.attention_evidence == evidence
    if evidence == "computed":
        assert count.attention == whole
    assert count.attention == pytest.approx(whole, rel=0.15)


@pytest.mark.parametrize(
    ("path", "G", "r", "S_ctx", "heads", "evidence"),
    [
        ("bifurcated", 1, 16, 500, ONE, "computed"),
        ("bifurcated", 1, 16, 6144, ONE, "predicted"),
        ("bifurcated", 1, 16, 500, TWO, "predicted"),
        ("ordinary", 16, 1, 500, ONE, "computed"),
        ("ordinary", 24, 1, 500, TWO, "predicted"),
    ],
)
def test_decode(path: str, G: int, r: int, S_ctx: int, heads: Heads, evidence: str) -> None:
    shape = CacheShape(G=G, r=r, S_ctx=S_ctx, S_dec=32)
    count = instructions.decode(CONFIG, heads, 1, shape, path, "trn1", 4, True)
    work = Decode(
        G=G, r=r, n=1, h=heads.h, g=heads.g, d=CONFIG.d,
        m_c=S_ctx, m_d=32, element_bytes=4,
    )  # fmt: skip
    whole = CONFIG.layers * profile(path, work, "trn1").instructions
    assert count.attention_evidence == evidence
    if evidence == "computed":
        assert count.attention == whole
    assert count.attention == pytest.approx(whole, rel=0.2)
