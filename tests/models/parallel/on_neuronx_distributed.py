"""Run by torchrun: networks of neuronx-distributed's own layers, in its CPU mode, against one rank.

NXD_CPU_MODE=1 torchrun --nproc-per-node 4 -m tests.models.parallel.on_neuronx_distributed
"""

from __future__ import annotations

import os
from typing import Any

import torch

from models.causal_lm.sharding import legal_degrees
from models.parallel import SINGLE, TensorParallel, started
from tests.models import tiny
from tests.models.causal_lm.driver import Script
from tests.models.causal_lm.test_export import DECODES, DRAWN, EVERYTHING, PREFILLS, UNREAD
from tests.models.parallel import work

NETWORKS: dict[str, dict[str, Any]] = {
    "llama": {},
    "everything": EVERYTHING,
    "multi-query": {"g": 1, "o_bias": True, "mlp_bias": True, "vocab_size": 51},
    "tied": {"g": 4, "tie_word_embeddings": True},
}
INPUTS = [(*each, *UNREAD) for each in PREFILLS] + [(*each, *DRAWN) for each in DECODES]


def check(name: str, parallel: TensorParallel) -> None:
    """Fails unless logits, and tokens drawn inside, are those of one rank."""
    model = tiny.model(**NETWORKS[name])
    assert parallel.size in legal_degrees(model.config)
    weights = dict(model.state_dict())
    told = (model.config, weights)
    for kv_split in ("positions", "replicate"):
        *expected, _ = work.logits(SINGLE, *told, Script())
        *got, _ = work.logits(parallel, *told, Script(), kv_split)
        mine, theirs = (
            torch.stack([*first, *late.flatten(0, 2)]) for first, late in (got, expected)
        )
        assert torch.equal(mine.isnan(), theirs.isnan())
        worst = (mine - theirs).nan_to_num().abs().max() / theirs.nan_to_num().abs().max()
        assert worst < 1e-5, (name, kv_split, float(worst))
    drawn = zip(
        work.drawn(parallel, *told, INPUTS, 4), work.drawn(SINGLE, *told, INPUTS, 4), strict=True
    )
    for (tokens, _), (same, _) in drawn:
        assert torch.equal(tokens, same), name


def main() -> None:
    """All networks."""
    with started(int(os.environ["WORLD_SIZE"])) as parallel, torch.no_grad():
        assert parallel.library.name == "neuronx-distributed"
        for name in NETWORKS:
            check(name, parallel)
        if parallel.rank == 0:
            print(f"{len(NETWORKS)} networks over {parallel.size} ranks equal one rank")


if __name__ == "__main__":
    main()
