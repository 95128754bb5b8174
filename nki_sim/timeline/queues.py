"""The state of a schedule in the making: queues of instructions, DMA engines, room for tiles."""

from __future__ import annotations

from collections import deque


class Lane:
    """A queue: a compute engine's, of which ``window`` instructions compete, or a DMA queue."""

    __slots__ = ("core", "free", "items", "last", "name", "position", "table", "window")

    def __init__(self, name: str, core: int, window: int) -> None:
        self.name = name
        self.core = core
        self.window = window
        self.items: list[int] = []
        self.position = 0
        self.free = 0.0
        self.last = -1
        self.table = ""


class Engines:
    """DMA engines of one core that always have the same work, and the queues they serve in turn."""

    __slots__ = ("busy", "current", "last", "queues", "turn")

    def __init__(self) -> None:
        self.queues: dict[str, deque[list[float]]] = {}  # [instruction, ns left, ns]
        self.turn = 0
        self.busy = False
        self.current = ""
        self.last = -1


class Room:
    """Free bytes a partition of one memory, handed to tiles in the order of their first use."""

    __slots__ = ("free", "granted", "order", "releaser", "sizes")

    def __init__(self, capacity: int) -> None:
        self.free = capacity
        self.order: list[int] = []  # instruction of first use
        self.sizes: list[int] = []
        self.granted = 0
        self.releaser = -1
