"""Stand-in of torch_neuronx.proto.metaneff_pb2, as neuronx_distributed/trace uses it."""

from __future__ import annotations

import json

import torch


class MetaNeff:
    """Names, kinds, shapes and dtypes of a graph's inputs."""

    def __init__(self) -> None:
        self.inputs: list[list] = []

    def of(self, kind: str) -> dict[str, tuple[list[int], torch.dtype]]:
        """Shapes and dtypes of the inputs of a kind: USER_INPUT, INPUT_STATE or INPUT_WEIGHT."""
        return {
            name: (shape, getattr(torch, dtype))
            for name, is_a, shape, dtype in self.inputs
            if is_a == kind
        }

    def SerializeToString(self) -> bytes:
        return json.dumps(self.inputs).encode()

    def ParseFromString(self, content: bytes) -> int:
        self.inputs = json.loads(content)
        return len(content)
