"""High-precision mode (``NKI_PRECISE_FP=0``): low-precision tensors are held as float32.

AWS documents that all low-precision tensors are then stored as float32 (NKI CPU Simulator guide,
"Precise Floating-Point Mode"). What such a tensor looks like through a view of another dtype
follows: the bits that its own dtype would hold. An instruction gets those bits as an ``Overlay``,
and what it changes in them goes back; elements it leaves alone keep their full precision.
"""

from __future__ import annotations

import numpy as np

from nki_sim.memory import Storage


class Overlay:
    """A wide storage as the bits of its own dtype.

    Attributes:
        bits: uint8, without gaps, partition after partition.
    """

    __slots__ = ("_seen", "_storage", "bits")

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        narrow = elements(storage).astype(storage.info.dtype.numpy)
        self.bits = np.ascontiguousarray(narrow).reshape(-1).view(np.uint8)
        self._seen = self.bits.copy()

    def commit(self) -> None:
        """Bring what was changed in the bits into the storage."""
        info = self._storage.info
        whole = elements(self._storage)
        unit = f"u{info.dtype.itemsize}"
        changed = (self.bits.view(unit) != self._seen.view(unit)).reshape(whole.shape)
        if changed.any():
            new = self.bits.view(info.dtype.numpy).reshape(whole.shape)
            whole[changed] = new[changed].astype(np.float32)
            self._seen = self.bits.copy()


def elements(storage: Storage) -> np.ndarray:
    """All elements of a wide storage as float32: [partition, element], or [element] in HBM."""
    info = storage.info
    n = info.partition_bytes // info.dtype.itemsize
    if not info.partitions:
        return storage.data.view(np.float32)
    pitch = storage.pitch if storage.placed is not None else 4 * n
    return np.ndarray(
        (info.partitions, n), np.float32, storage.data, storage.base, strides=(pitch, 4)
    )


def settle(overlays: list[Overlay]) -> None:
    """Bring all changes into their storages and forget the overlays: an instruction has ended."""
    for overlay in overlays:
        overlay.commit()
    overlays.clear()
