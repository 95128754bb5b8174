"""Writing a checkpoint folder: file by file, each whole, resumed where it was interrupted.

A folder under way holds the files that are whole, each with a record beside it of what it is and of
its checksum. The file that makes the folder a checkpoint, its index, is written last; then the
records go. The same command, given again after an interruption, keeps what is whole and writes the
rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.causal_lm.directory import UNFINISHED
from models.causal_lm.storage import Advance, Source, sha256, write_file
from models.files import TEMPORARY, replacing, write_json
from nki_kernels.errors import InputError

# Beside weights and config: the tokenizer, the chat template, generation defaults.
_ACCOMPANY = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


class Save:
    """A checkpoint being written.

    Args:
        folder: where to; missing, empty, or left unfinished by the same work.
        what: says what is written, all that decides the bytes included.

    Raises:
        InputError: the folder holds something else.
    """

    def __init__(self, folder: Path, what: Mapping[str, Any]) -> None:
        self.folder, self.what = folder, dict(what)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; a checkpoint is written to a folder")
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in found if not path.name.startswith(TEMPORARY)]
        records = [path for path in found if path.name.endswith(UNFINISHED)]
        if found and not records:
            raise InputError(f"{folder} is not empty; name a new folder")
        for path in records:
            if self._record(path).get("what") != self.what:
                raise InputError(
                    f"{folder} holds another checkpoint that was not finished; name a new folder "
                    "or remove it"
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}") from error
        self._remember("save", {})

    def file(self, name: str, tensors: Mapping[str, Source], advance: Advance) -> dict[str, Any]:
        """Writes a safetensors file unless it is there already; returns its name, size and hash."""
        path = self.folder / name
        kept = self._record(self.folder / f"{name}{UNFINISHED}")
        if path.is_file() and kept.get("sha256") == sha256(path):
            advance(sum(source.nbytes for source in tensors.values()))
        else:
            kept = {"sha256": write_file(path, tensors, advance=advance)}
            self._remember(name, kept)
        return {"name": name, "bytes": path.stat().st_size, "sha256": kept["sha256"]}

    def accompany(self, source: Path, config: Mapping[str, Any]) -> None:
        """Copies what stands beside the weights in `source`, with `config` as its config.json."""
        for pattern in _ACCOMPANY:
            for path in source.glob(pattern):
                if path.name != "config.json" and not path.name.endswith(".safetensors.index.json"):
                    shutil.copyfile(path, self.folder / path.name)
        write_json(self.folder / "config.json", config)

    def finish(self, index: str, content: str) -> None:
        """Writes the index, which makes the folder a checkpoint."""
        with replacing(self.folder / index) as file:
            file.write(content.encode())
        # Records, and what a process that was killed could not remove.
        for path in [*self.folder.glob(f"*{UNFINISHED}"), *self.folder.glob(f"{TEMPORARY}*")]:
            path.unlink()

    def _remember(self, name: str, content: Mapping[str, Any]) -> None:
        write_json(self.folder / f"{name}{UNFINISHED}", {"what": self.what, **content})

    @staticmethod
    def _record(path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def fingerprint(files: list[Path]) -> dict[str, list[int]]:
    """Sizes and times of files, by name: equal for the same files, without reading them."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
