"""What the processes of test_checkpoints do: load, run, refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from models.causal_lm import load
from models.causal_lm.config import KV
from models.parallel import TensorParallel
from nki_kernels.errors import InputError
from tests.models.causal_lm.driver import run


def logits(
    parallel: TensorParallel, directory: Path, kv_dtype: KV | None = None
) -> tuple[Any, int]:
    """`driver.run` of a loaded checkpoint, and the bytes of its weights here."""
    model = load(directory, parallel=parallel, kv_dtype=kv_dtype)
    nbytes = sum({w.data_ptr(): w.nbytes for w in model.parameters()}.values())
    first, decoded = run(model)
    return [*first, decoded], nbytes


def refusal(parallel: TensorParallel, directory: Path) -> str:
    """What is said where a checkpoint is not loaded."""
    try:
        load(directory, parallel=parallel)
    except InputError as error:
        return str(error)
    return ""


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all bits are equal; places without a logit are NaN in both."""
    pairs = zip(a, b, strict=True)
    return all(bool((x.nan_to_num() == y.nan_to_num()).all()) for x, y in pairs)
