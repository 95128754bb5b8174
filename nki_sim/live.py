"""A set of accesses that answers "which of you meet this box", few or many thousands of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nki_sim.footprint import Footprint

_FEW = 24
"""Up to here a loop beats NumPy."""

_GROUP = 64
"""Accesses that are tested at once: neighbours in time are mostly neighbours in memory."""


class Touch:
    """One access of one instruction."""

    __slots__ = ("footprint", "index", "row")

    def __init__(self, index: int, footprint: Footprint) -> None:
        self.index = index
        self.footprint = footprint
        self.row = -1


class Live:
    """Accesses in the order they were added.

    Attributes:
        count: how many there are.
    """

    __slots__ = ("_boxes", "_groups", "_touches", "count")

    def __init__(self) -> None:
        self.count = 0
        self._touches: list[Touch | None] = []  # None: dropped
        # where they are many, their boxes and those of each group: [low or high, row or group]
        self._boxes: np.ndarray | None = None
        self._groups: np.ndarray | None = None

    def add(self, touch: Touch) -> None:
        """Add one access."""
        row = touch.row = len(self._touches)
        self._touches.append(touch)
        self.count += 1
        if self._boxes is not None and row < self._boxes.shape[1]:
            self._enter(row, touch.footprint.box)
        elif self.count > _FEW:
            self._rebuild()

    def drop(self, touches: Iterable[Touch]) -> None:
        """Forget accesses that are in the set."""
        for touch in touches:
            self._touches[touch.row] = None
            if self._boxes is not None:
                self._boxes[1::2, touch.row] = -1  # an empty box meets nothing
            self.count -= 1
        if len(self._touches) > 2 * self.count + _FEW:
            self._rebuild()

    def meeting(self, footprint: Footprint) -> list[Touch]:
        """Those whose boxes share a point with the footprint's."""
        box = footprint.box
        if self._boxes is None or self._groups is None:
            pairs = range(0, len(box), 2)
            return [
                t
                for t in self._touches
                if t is not None
                and (
                    t.footprint is footprint
                    or all(
                        t.footprint.box[k] < box[k + 1] and box[k] < t.footprint.box[k + 1]
                        for k in pairs
                    )
                )
            ]
        rows = len(self._touches)
        groups = _meet(self._groups[:, : -(-rows // _GROUP)], box)
        found: list[Touch] = []
        for group in groups:
            start = group * _GROUP
            for row in _meet(self._boxes[:, start : min(start + _GROUP, rows)], box):
                touch = self._touches[start + row]
                if touch is not None:
                    found.append(touch)
        return found

    def _enter(self, row: int, box: tuple[int, ...]) -> None:
        assert self._boxes is not None and self._groups is not None
        self._boxes[:, row] = box
        group = self._groups[:, row // _GROUP]
        np.minimum(group[0::2], box[0::2], out=group[0::2])
        np.maximum(group[1::2], box[1::2], out=group[1::2])

    def _rebuild(self) -> None:
        """Close the gaps, and keep the boxes as arrays where they are many."""
        kept = [t for t in self._touches if t is not None]
        self._touches = list(kept)
        self._boxes = self._groups = None
        for row, touch in enumerate(kept):
            touch.row = row
        if self.count <= _FEW:
            return
        size = -(-2 * self.count // _GROUP) * _GROUP
        coordinates = len(kept[0].footprint.box)
        self._boxes = np.empty((coordinates, size), np.int64)
        self._groups = np.empty((coordinates, size // _GROUP), np.int64)
        self._groups[0::2], self._groups[1::2] = _FAR, -1
        for row, touch in enumerate(kept):
            self._enter(row, touch.footprint.box)


_FAR = np.iinfo(np.int64).max


def _meet(boxes: np.ndarray, box: tuple[int, ...]) -> list[int]:
    """The columns of ``boxes`` that share a point with ``box``."""
    found = (boxes[0] < box[1]) & (boxes[1] > box[0])
    for k in range(2, len(box), 2):
        found &= boxes[k] < box[k + 1]
        found &= boxes[k + 1] > box[k]
    columns: list[int] = found.nonzero()[0].tolist()
    return columns
