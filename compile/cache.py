"""Graphs that were compiled, kept by what determines them, so that none is compiled twice.

    python -m compile.cache list                    what there is, newest first
    python -m compile.cache prune --days 30         remove what was not used for so long

An entry's name is a SHA-256 over everything that decides the result: this project's own code, the
software it is compiled with, the network and the graph. An entry is written beside its place and
renamed, so it is whole or not there, and its files are checked whenever it is used. Processes that
want the same entry wait for the one that makes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from compile.artifact import exclusive
from compile.backend import Backend
from compile.graphs import GraphSpec
from compile.plan import Plan
from models.causal_lm.directory import read_json
from models.causal_lm.storage import sha256
from models.files import TEMPORARY, write_json
from nki_kernels.errors import InputError

ENTRY = "entry.json"
ROOT = Path(__file__).resolve().parents[1]
CODE = ("compile", "models", "nki_kernels", "nki_sim")
"""Packages whose code may change a graph, or what it gives."""


def default_cache() -> Path:
    """The user's cache folder, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bifork" / "graphs"


@lru_cache
def code_version() -> str:
    """SHA-256 over this project's own code and data."""
    total = hashlib.sha256()
    for package in CODE:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".json") and "pretrained" not in path.parts:
                total.update(path.relative_to(ROOT).as_posix().encode())
                total.update(path.read_bytes())
    return total.hexdigest()


def determines(plan: Plan, spec: GraphSpec, candidates: int, backend: Backend) -> dict[str, Any]:
    """Everything that decides what a graph is compiled to, as JSON has it."""
    request = asdict(plan.request)
    for bucket in ("contexts", "samples", "largest", "instance"):  # the graph and cache say it
        request.pop(bucket)
    return {
        "graph": spec.name,
        "phase": spec.phase,
        "shape": asdict(spec.shape),
        "inputs": {
            name: [str(value.dtype), list(value.shape)] for name, value in spec.inputs.items()
        },
        "cache": asdict(plan.cache),
        "candidates": candidates,
        "config": repr(plan.config),
        "request": {name: str(value) for name, value in request.items()},
        "kernels": plan.network.kernels,
        "target": plan.instance.target,
        "lnc": plan.instance.lnc,
        "device": backend.name,
        "settings": backend.settings(spec),
        "versions": backend.versions(),
        "code": code_version(),
    }


def key_of(what: Mapping[str, Any]) -> str:
    """The name of the entry that `what` determines."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A graph in the cache.

    Attributes:
        files: of it.
        made: whether they were made just now.
    """

    files: list[Path]
    made: bool


class Cache:
    """A folder of entries.

    Raises:
        InputError: it cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMPORARY):
                pass
        except OSError as error:
            raise InputError(f"cache {folder} cannot be written: {error.strerror}") from error

    def has(self, what: Mapping[str, Any]) -> bool:
        """Whether there is an entry and it is whole."""
        return self._whole(self.folder / key_of(what))

    @contextmanager
    def entry(self, what: Mapping[str, Any], make: Callable[[Path], None]) -> Iterator[Entry]:
        """The entry that `what` determines; nobody removes it within the `with` block.

        `make` is given an empty folder to fill where there is no such entry yet, or its files are
        not what they were.
        """
        key = key_of(what)
        place = self.folder / key
        with exclusive(self._lock(key), None):
            made = not self._whole(place)
            if made:
                self._fill(place, what, make)
            else:
                os.utime(place / ENTRY)
            yield Entry([place / name for name in read_json(place / ENTRY)["files"]], made)

    def _fill(self, place: Path, what: Mapping[str, Any], make: Callable[[Path], None]) -> None:
        shutil.rmtree(place, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{TEMPORARY}{place.name}-"))
        try:
            make(temporary)
            files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            write_json(temporary / ENTRY, {"what": what, "files": files})
            temporary.rename(place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _lock(self, key: str) -> Path:
        return self.folder / f"{TEMPORARY}{key}.lock"

    def entries(self) -> list[tuple[Path, dict[str, Any]]]:
        """All whole entries and what determined them, last used first."""
        found = []
        for marker in self.folder.glob(f"*/{ENTRY}"):
            if not marker.parent.name.startswith(TEMPORARY):
                with suppress(OSError, InputError):  # pruned just now
                    found.append((marker.stat().st_mtime, marker.parent, read_json(marker)["what"]))
        found.sort(key=lambda each: each[0], reverse=True)
        return [(place, what) for _, place, what in found]

    def prune(self, days: float) -> int:
        """Removes what was long not used, and what killed runs left; gives the bytes freed.

        An entry that another process is at work on stays.
        """
        freed = 0
        oldest = time.time() - days * 86400
        for path in list(self.folder.iterdir()):
            key = path.name.removeprefix(TEMPORARY).partition("-")[0]
            marker = path / ENTRY if (path / ENTRY).is_file() else path
            with suppress(InputError, FileNotFoundError):
                if not path.is_dir() or marker.stat().st_mtime > oldest:
                    continue
                with exclusive(self._lock(key), str(path)):
                    freed += size_of(path)
                    shutil.rmtree(path)
        return freed

    @staticmethod
    def _whole(place: Path) -> bool:
        try:
            files = read_json(place / ENTRY)["files"]
            return all(sha256(place / name) == told for name, told in files.items())
        except (InputError, OSError, KeyError, TypeError, AttributeError):
            return False


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str] | None = None) -> None:
    """Lists or prunes.

    Raises:
        InputError: the folder is none, or the days are not a length of time.
    """
    parser = argparse.ArgumentParser(
        prog="python -m compile.cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("list", "prune"))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="(%(default)s)")
    parser.add_argument("--days", type=float, default=30.0, help="for prune (%(default)s)")
    args = parser.parse_args(argv)
    if not args.days >= 0:
        raise InputError(f"--days is {args.days}; it must be 0 or more")
    cache = Cache(args.cache)
    if args.action == "prune":
        print(f"freed     {cache.prune(args.days):,} bytes in {args.cache}")
        return
    entries = cache.entries()
    for path, what in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime((path / ENTRY).stat().st_mtime))
        print(
            f"{path.name[:12]}  {used}  {size_of(path):>12,}  {what['device']:<6}  {what['graph']}"
        )
    print(f"{len(entries)} graphs in {args.cache}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        print(f"python -m compile.cache: error: {error}", file=sys.stderr)
        sys.exit(2)
