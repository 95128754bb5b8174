"""Stand-in of torch_neuronx.pyhlo.hlo_pb2, as neuronx_distributed/trace reads and writes it."""

from __future__ import annotations

import hashlib
import json


class HloModuleProto:
    """A graph: the lines that were written down while it was traced."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.frontend_attributes: dict[str, str] = {}

    @property
    def identity(self) -> str:
        """By which the module behind it is found."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def SerializeToString(self) -> bytes:
        content = {"lines": self.lines, "attributes": self.frontend_attributes}
        return json.dumps(content, sort_keys=True).encode()

    def ParseFromString(self, content: bytes) -> int:
        read = json.loads(content)
        self.lines, self.frontend_attributes = read["lines"], read["attributes"]
        return len(content)
