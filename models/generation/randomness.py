"""Uniform numbers that depend on (seed, sample, step) and on nothing else.

Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011): any position of any stream can be computed alone. The stream of a sample has the key
(seed, sample) and a step is a position in it, so the order of evaluation, the batch, the device and
the tensor-parallel degree never change an answer, and n samples are the first n of any larger
number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nki_kernels.errors import InputError

# A stream is a pair of unsigned 64-bit integers: (seed, sample).
Stream = tuple[int, int]

_WORDS = 4  # 64-bit words that Philox4x64 makes of one counter value
_MANTISSA_BITS = 24  # of an fp32: every value is exact, and times any fp32 total stays below it


def streams(seed: int | Sequence[int], samples: int) -> list[Stream]:
    """The stream of each sample.

    Args:
        seed: one seed, whose sample i draws from (seed, i); or a seed for each sample, which draws
            from (seed, 0): the same as running that sample alone with that seed.
        samples: how many.

    Raises:
        InputError: a seed outside 0 to 2**64 - 1, or a list of another length than `samples`.
    """
    if isinstance(seed, int):
        pairs = [(seed, sample) for sample in range(samples)]
    else:
        pairs = [(each, 0) for each in seed]
    if len(pairs) != samples:
        raise InputError(
            f"{len(pairs)} seeds for {samples} samples; give one seed, or one a sample"
        )
    for each, _ in pairs:
        if not 0 <= each < 2**64:
            raise InputError(f"seed is {each}; it must be in 0 to 2**64 - 1")
    return pairs


def uniforms(stream: Stream, first: int, steps: int) -> npt.NDArray[np.float32]:
    """`steps` numbers of a stream, from step `first`: fp32 [steps], k * 2**-24 in [0, 1)."""
    block, skipped = divmod(first, _WORDS)
    generator = np.random.Philox(key=np.array(stream, dtype=np.uint64), counter=block)
    words = generator.random_raw(skipped + steps)[skipped:]
    return (words >> np.uint64(64 - _MANTISSA_BITS)).astype(np.float32) * np.float32(
        2.0**-_MANTISSA_BITS
    )
