"""Safetensors files, read and written a block at a time.

A 70B checkpoint is larger than most hosts' memory. Its tensors are read through a memory map of at
most `BLOCK` bytes, which is given back before the next one is made: pages of a longer map would
stay, and count, until the whole file is in memory. Writing streams the same way. The format is
described at https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.files import replacing
from nki_kernels.errors import InputError

BLOCK = 32 << 20
"""Bytes that are mapped, hashed or written at a time."""

Advance = Callable[[int], object]
"""Told how many bytes of a file were dealt with since the last call."""

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
}
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, or a part of it, not read yet.

    Attributes:
        path: the file.
        name: of the tensor.
        dtype: as safetensors calls it.
        whole: shape of the tensor.
        offset: bytes before it in the file.
        part: which slice of each dimension is meant.
        padding: zeros behind it in each dimension.
    """

    path: Path
    name: str
    dtype: str
    whole: tuple[int, ...]
    offset: int
    part: tuple[slice, ...]
    padding: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part, its padding included."""
        padding = self.padding or (0,) * len(self.part)
        return tuple(
            each.stop - each.start + more for each, more in zip(self.part, padding, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the part, as stored."""
        return math.prod(self.shape) * TORCH_DTYPES[self.dtype].itemsize

    def narrow(self, part: Sequence[slice], shape: Sequence[int] | None = None) -> Stored:
        """A part of this part, counted from its start; with zeros behind it up to `shape`."""
        sizes = [each.stop - each.start for each in part]
        return replace(
            self,
            part=tuple(
                slice(mine.start + each.start, mine.start + each.stop)
                for mine, each in zip(self.part, part, strict=True)
            ),
            padding=tuple(n - size for n, size in zip(shape or sizes, sizes, strict=True)),
        )

    def blocks(self) -> Iterator[Tensor]:
        """Its rows, in order, some at a time: views of a map that ends when they are let go of."""
        if not self.part:  # a scalar
            yield self._rows(0, 1).reshape(())
            return
        rows, *columns = self.part
        sides = [n for more in reversed(self.padding[1:]) for n in (0, more)]
        row_bytes = TORCH_DTYPES[self.dtype].itemsize * math.prod(self.whole[1:])
        step = max(1, BLOCK // max(1, row_bytes))
        for first in range(rows.start, rows.stop, step):
            block = self._rows(first, min(first + step, rows.stop))[(slice(None), *columns)]
            yield F.pad(block, sides) if any(sides) else block
        if any(self.padding[:1]):
            yield torch.zeros(self.padding[0], *self.shape[1:], dtype=TORCH_DTYPES[self.dtype])

    def _rows(self, first: int, last: int) -> Tensor:
        dtype = TORCH_DTYPES[self.dtype]
        inner = self.whole[1:]
        start = self.offset + first * math.prod(inner) * dtype.itemsize
        count = (last - first) * math.prod(inner)
        if not count:
            return torch.empty((last - first, *inner), dtype=dtype)
        page = start - start % mmap.ALLOCATIONGRANULARITY
        length = start + count * dtype.itemsize - page
        try:
            with self.path.open("rb") as file:
                # Private, not read-only, for torch's sake; nothing is written.
                mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=page)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: tensor {self.name} cannot be read: {error}") from error
        flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=start - page)
        return flat.view(last - first, *inner)

    def read(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        advance: Advance | None = None,
    ) -> Tensor:
        """The part in memory of its own, cast to `dtype`."""
        out = torch.empty(self.shape, dtype=dtype or TORCH_DTYPES[self.dtype], device=device)
        copy_blocks(self.blocks(), out, advance)
        return out


def copy_blocks(blocks: Iterator[Tensor], out: Tensor, advance: Advance | None = None) -> None:
    """Fills the rows of `out` with those of `blocks`, cast to its dtype."""
    first = 0
    for block in blocks:
        rows = out if not block.dim() else out[first : first + block.shape[0]]
        rows.copy_(block)
        first += block.shape[0] if block.dim() else 0
        if advance is not None:
            advance(block.nbytes)


def open_files(files: Iterable[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files, by name; only the files' headers are read.

    Raises:
        InputError: a file is cut off or no safetensors file, or two hold one tensor.
    """
    stored: dict[str, Stored] = {}
    for path in files:
        for tensor in _open(path):
            if tensor.name in stored:
                first = stored[tensor.name].path.name
                raise InputError(f"{tensor.name} is stored twice, in {first} and {path.name}")
            stored[tensor.name] = tensor
    return stored


def _open(path: Path) -> Iterator[Stored]:
    try:
        with safe_open(path, framework="pt"):  # checks every offset against the file's size
            pass
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    for name, entry in header.items():
        if name != "__metadata__":
            shape = tuple(entry["shape"])
            offset = 8 + header_bytes + entry["data_offsets"][0]
            part = tuple(slice(0, size) for size in shape)
            yield Stored(path, name, entry["dtype"], shape, offset, part)


@dataclass(frozen=True)
class Source:
    """A tensor to be written: its shape and dtype, and its rows in order when asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: Callable[[], Iterator[Tensor]]

    @classmethod
    def of(cls, tensor: Tensor) -> Source:
        """A tensor that is in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: iter([tensor]))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(
    path: Path,
    tensors: Mapping[str, Source],
    metadata: Mapping[str, str] | None = None,
    advance: Advance | None = None,
) -> str:
    """Writes a safetensors file, whole or not at all; returns its SHA-256."""
    # The widest first, so that every tensor lies at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name in order:
        each = tensors[name]
        end = offset + each.nbytes
        header[name] = {
            "dtype": NAMES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with replacing(path) as file:

        def put(data: bytes | memoryview) -> None:
            digest.update(data)
            file.write(data)

        put(len(text).to_bytes(8, "little") + text)
        for name in order:
            written = 0
            for block in tensors[name].blocks():
                data = block.to(device="cpu", dtype=tensors[name].dtype).contiguous()
                put(data.reshape(-1).view(torch.uint8).numpy().data)
                written += data.nbytes
                if advance is not None:
                    advance(data.nbytes)
            if written != tensors[name].nbytes:
                raise RuntimeError(f"{name}: {written} bytes instead of {tensors[name].nbytes}")
    return digest.hexdigest()


def sha256(path: Path, advance: Advance | None = None) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
                if advance is not None:
                    advance(len(data))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
