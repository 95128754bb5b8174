"""Arithmetic of strided views: plain functions on shapes and strides, used by ``NkiTensor``."""

from __future__ import annotations

from collections.abc import Sequence


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a dense row-major array."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return tuple(strides)


def reshaped(
    shape: Sequence[int], strides: Sequence[int], new_shape: Sequence[int]
) -> tuple[int, ...] | None:
    """Strides of the same elements under ``new_shape``, or None where no view can give it."""
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result: list[int] = []
    i = 0  # next old dimension
    left, stride = old[0] if old else (1, 1)
    for size in new_shape:
        if size == 1:
            result.append(0)
            continue
        # gather old dimensions until they hold this new one, then peel it off from the outside
        while left % size:
            i += 1
            if i >= len(old) or stride != old[i][0] * old[i][1]:
                return None
            left *= old[i][0]
            stride = old[i][1]
        left //= size
        result.append(left * stride)
        if left == 1:
            i += 1
            if i < len(old):
                left, stride = old[i]
    # give size-1 dimensions the stride they would have in a dense array
    fill = 1
    for axis in range(len(new_shape) - 1, -1, -1):
        if new_shape[axis] == 1:
            result[axis] = fill
        else:
            fill = result[axis] * new_shape[axis]
    return tuple(result)


def merged_dims(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many dimensions are left after joining those that are contiguous with the next one."""
    dims = 0
    inner: tuple[int, int] | None = None
    for n, s in zip(reversed(shape), reversed(strides), strict=True):
        if n == 1:
            continue
        if inner is not None and s == inner[0] * inner[1]:
            inner = (inner[0] * n, inner[1])
            continue
        inner = (n, s)
        dims += 1
    return dims


def infer(shape: Sequence[int], size: int) -> tuple[int, ...]:
    """``shape`` with one -1 replaced so that the product is ``size``."""
    known, unknown = 1, 0
    for n in shape:
        if n == -1:
            unknown += 1
        else:
            known *= n
    if unknown == 0:
        return tuple(shape)
    if unknown > 1 or known == 0 or size % known:
        raise ValueError(f"shape = {tuple(shape)} cannot hold {size} elements")
    return tuple(size // known if n == -1 else n for n in shape)


def parse_rearrange(
    shape: Sequence[int],
    source: Sequence[str | Sequence[str]],
    target: Sequence[str | Sequence[str]],
    sizes: dict[str, int],
) -> tuple[list[int], list[int], list[int]]:
    """(shape split by ``source``, permutation, final shape) of an einops-style rearrangement."""
    if len(source) != len(shape):
        raise ValueError(
            f"src_pattern = {tuple(source)} has {len(source)} dims, the tensor {len(shape)}"
        )
    names: list[str] = []
    split: list[int] = []
    for group, n in zip(source, shape, strict=True):
        members = [group] if isinstance(group, str) else list(group)
        lengths = [sizes.get(m, -1) if len(members) > 1 else n for m in members]
        if len(members) == 1 and sizes.get(members[0], n) != n:
            raise ValueError(
                f"fixed_sizes[{members[0]!r}] = {sizes[members[0]]}, the dimension has {n}"
            )
        full = infer(lengths, n)
        product = 1
        for length in full:
            product *= length
        if product != n:
            raise ValueError(
                f"sizes of {tuple(members)} multiply to {product}, the dimension has {n}"
            )
        names.extend(members)
        split.extend(full)
    wanted = [m for group in target for m in ([group] if isinstance(group, str) else group)]
    if sorted(wanted) != sorted(names) or len(set(names)) != len(names):
        raise ValueError(f"dst_pattern = {tuple(target)} does not hold the names {names} once each")
    order = [names.index(m) for m in wanted]
    final: list[int] = []
    for group in target:
        members = [group] if isinstance(group, str) else list(group)
        product = 1
        for m in members:
            product *= split[names.index(m)]
        final.append(product)
    return split, order, final
