"""What compiling leaves: a directory that serves, whole or not there, checked when it is loaded.

    manifest.json   what it is for, what it was made with, and a SHA-256 of every other file
    graphs/         the graphs, without weights; the same for all ranks
    checkpoint/     config, tokenizer, generation defaults, and the weights, one file a rank

The hashes say that nothing changed since it was made. They do not say who made it: to load an
artefact is to run its maker's graphs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.causal_lm.directory import listed, read_json
from models.causal_lm.shards import file_name
from models.causal_lm.storage import sha256
from models.files import TEMPORARY, write_json
from nki_kernels.errors import InputError

FORMAT = 1
MANIFEST = "manifest.json"
GRAPHS = "graphs"
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Artifact:
    """A directory that was verified.

    Attributes:
        folder: where it is.
        manifest: its manifest.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The split checkpoint, with config and tokenizer."""
        return self.folder / CHECKPOINT

    @property
    def graphs(self) -> list[str]:
        """Names of its graphs."""
        return [graph["name"] for graph in self.manifest["graphs"]]

    def check_weights(self, rank: int) -> None:
        """Verifies the weights of one rank, which are all that it reads of them.

        Raises:
            InputError: they changed since the artefact was made.
        """
        self.check_files([f"{CHECKPOINT}/{file_name(self.manifest['tp'], rank)}"])

    def check_files(self, names: Iterable[str]) -> None:
        """Verifies files by their names in the manifest; see `check_weights`."""
        told = self.manifest["files"]
        damaged = [name for name in names if sha256(self.folder / name) != told[name]]
        if damaged:
            raise InputError(
                f"{self.folder} is damaged; changed since it was made: {listed(damaged)}"
            )


def check_out(out: Path) -> None:
    """Refuses a place that no artefact can be written to; see `writing`.

    Raises:
        InputError: it holds something else than an artefact, or its folder is not there.
    """
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; an artefact is a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(f"--out {out} holds something else than an artefact; name a new folder")


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A folder to fill; at the end it takes the place of `out`, with all its files on disk.

    Whatever ends the work before, `out` is what it was. A run that was interrupted or killed leaves
    the folder beside `out`, and the next one is given it as it is; any other end removes it.

    Raises:
        InputError: see `check_out`; or another process is writing to `out`.
    """
    check_out(out)
    staged = out.parent / f"{TEMPORARY}{out.name}"
    with exclusive(out.parent / f"{TEMPORARY}{out.name}.lock", f"--out {out}"):
        try:
            staged.mkdir(exist_ok=True)
            yield staged
            for path in [*staged.rglob("*"), staged]:
                _sync(path)
            former = out.parent / f"{TEMPORARY}{out.name}.former"
            shutil.rmtree(former, ignore_errors=True)  # a killed run's
            if out.exists():
                out.rename(former)
            staged.rename(out)
            _sync(out.parent)
            shutil.rmtree(former, ignore_errors=True)
        except KeyboardInterrupt:
            raise
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise


@contextmanager
def exclusive(lock: Path, what: str | None) -> Iterator[None]:
    """Holds a lock file, which the end of this process frees, however it ends.

    Args:
        lock: the file.
        what: is being written, in words; None waits until it is free.

    Raises:
        InputError: another process has it.
    """
    while True:
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if what else 0))
            except BlockingIOError:
                raise InputError(f"{what}: another process is writing it") from None
            try:  # the one before may have removed the name while this one waited
                if lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    continue
            except FileNotFoundError:
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` except the manifest, by relative name."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }


def seal(folder: Path, what: Mapping[str, Any]) -> None:
    """Writes the manifest of a folder whose other files are all there."""
    content = {"format": FORMAT, **what, "files": hashes(folder)}
    content["sha256"] = _digest(content)
    write_json(folder / MANIFEST, content)


def _digest(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of an artefact, as it was written.

    Raises:
        InputError: it is none, is of another format, or the manifest was changed.
    """
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} is no artefact: it has no {MANIFEST}; scripts/compile.py makes one"
        )
    content = read_json(folder / MANIFEST)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{folder} has format {content.get('format')!r}; this version reads {FORMAT}: compile "
            "it again"
        )
    if content.get("sha256") != _digest(content):
        raise InputError(f"{folder / MANIFEST} is damaged: its checksum is another")
    return content


def open_artifact(folder: Path, device: str, versions: Mapping[str, str]) -> Artifact:
    """Verifies an artefact: what it was made for and with, and every byte but the weights.

    Those a rank verifies when it loads them: `Artifact.check_weights`.

    Args:
        folder: where it is.
        device: of the backend that will load it.
        versions: of that backend's software.

    Raises:
        InputError: see `read_manifest`; it is for another device or of other versions, or it is
            damaged.
    """
    content = read_manifest(folder)
    if content["device"] != device:
        raise InputError(f"{folder} was made for {content['device']}, not for {device}")
    other = [
        f"{name} {made} (here {versions.get(name)})"
        for name, made in content["versions"].items()
        if versions.get(name) != made
    ]
    if other:
        raise InputError(f"{folder} was made with {', '.join(other)}: compile it again here")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    wrong = sorted((there - {MANIFEST}) ^ set(content["files"]))
    if wrong:
        raise InputError(f"{folder} misses files or has others than its own: {listed(wrong)}")
    artifact = Artifact(folder, content)
    weights = {f"{CHECKPOINT}/{file_name(content['tp'], rank)}" for rank in range(content["tp"])}
    artifact.check_files(name for name in content["files"] if name not in weights)
    return artifact
