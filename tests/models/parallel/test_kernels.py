"""The NKI kernels, simulated, over a context split over positions: their states, merged."""

from __future__ import annotations

import pytest
import torch

from tests.models import tiny
from tests.models.causal_lm.driver import Script, run
from tests.models.parallel import work
from tests.models.parallel.ranks import Pool

pytestmark = [pytest.mark.sim, pytest.mark.slow]

SCRIPT = Script(steps=(1, 1, 2))


@pytest.mark.parametrize("kv_split", ["positions", "replicate"])
@pytest.mark.parametrize("window", [None, 5])
def test_kernels_on_four_ranks_equal_the_reference_on_one(
    pool: Pool, kv_split: str, window: int | None
) -> None:
    windows = () if window is None else (window, window)
    model = tiny.model(windows=windows)  # two ranks read the same head
    first, late = run(model, SCRIPT)
    expected = torch.stack([*first, *late.flatten(0, 2)])
    told = (model.config, dict(model.state_dict()), SCRIPT, kv_split, None, "nki")
    for first, late, _ in pool.call(4, work.logits, *told):
        got = torch.stack([*first, *late.flatten(0, 2)])
        assert torch.equal(got.isnan(), expected.isnan())
        largest = expected.nan_to_num().abs().max()
        assert (got - expected).nan_to_num().abs().max() < 1e-5 * largest
