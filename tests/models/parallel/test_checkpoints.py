"""Checkpoints loaded by the ranks of a group, whole and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.causal_lm.convert import quantise, split
from models.parallel import SINGLE
from tests.models.causal_lm import families
from tests.models.parallel import loaded
from tests.models.parallel.ranks import Pool

pytestmark = pytest.mark.null


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "kind"), [(2, "int8"), (4, "fp8")])
def test_quantised_weights_and_caches(pool: Pool, kind: Any, tp: int, tmp_path: Path) -> None:
    """Factors go with their channel and head; at tp = 4 two ranks share a head's context."""
    families.make("qwen2").save_pretrained(tmp_path / "whole")
    text = [(7 * i * i + i) % 61 for i in range(60)]
    quantise(tmp_path / "whole", tmp_path / "q", kind, "fp8", calibration=text)
    split(tmp_path / "q", tmp_path / "split", tp)
    expected, nbytes = loaded.logits(SINGLE, tmp_path / "q")
    ranks = pool.call(tp, loaded.logits, tmp_path / "split")
    whole = pool.call(tp, loaded.logits, tmp_path / "q")
    for (found, part), (again, _) in zip(ranks, whole, strict=True):
        assert loaded.same(found, again)
        assert part < nbytes * (1 / tp + 0.2)
        for a, b in zip(found, expected, strict=True):
            # A sum over ranks rounds otherwise, and now and then a key to the next fp8 number.
            largest = float(b.nan_to_num().abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=0.02 * largest, equal_nan=True)
    float_kv = pool.call(tp, loaded.logits, tmp_path / "split", "model")
    exact, _ = loaded.logits(SINGLE, tmp_path / "q", "model")
    for found, _ in float_kv:
        for a, b in zip(found, exact, strict=True):
            largest = float(b.nan_to_num().abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * largest, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("name", ["phi-3", "mixtral", "gemma-2"])
def test_ranks_load_their_parts(pool: Pool, name: str, tp: int, tmp_path: Path) -> None:
    families.make(name).save_pretrained(tmp_path / "whole")
    split(tmp_path / "whole", tmp_path / "split", tp)
    expected, nbytes = loaded.logits(SINGLE, tmp_path / "whole")
    whole = pool.call(tp, loaded.logits, tmp_path / "whole")
    ranks = pool.call(tp, loaded.logits, tmp_path / "split")
    for (found, part), (again, again_part) in zip(whole, ranks, strict=True):
        assert loaded.same(found, again)
        assert part == again_part < nbytes * (1.3 / tp + 0.2)
        for a, b in zip(found, expected, strict=True):
            largest = float(b.nan_to_num().abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * largest, equal_nan=True)
    said = pool.call(6 - tp, loaded.refusal, tmp_path / "split")
    assert all(f"split for tp = {tp} and cannot be loaded with tp = {6 - tp}" in s for s in said)
