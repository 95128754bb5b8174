"""The cache of graphs: made once, whole, checked when used, safe with several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compile import cache as caching
from compile.cache import ENTRY, Cache, determines, key_of
from compile.export import Cpu
from compile.graphs import graph_specs
from compile.plan import Plan, Request, make_plan
from nki_kernels.errors import InputError
from tests.models import tiny

pytestmark = pytest.mark.null

ROOT = Path(__file__).parents[2]
WHAT = {"graph": "decode_1x2_8_4", "device": "cpu"}


def writes(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "graph").write_text(text)

    return make


def never(folder: Path) -> None:
    raise AssertionError("it was there")


def test_made_once_and_again_when_damaged(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    with cache.entry(WHAT, writes("one")) as entry:
        assert entry.made and [path.read_text() for path in entry.files] == ["one"]
    with cache.entry(WHAT, never) as entry:
        assert not entry.made
    entry.files[0].write_text("two")
    with cache.entry(WHAT, writes("three")) as entry:
        assert entry.made and entry.files[0].read_text() == "three"
    assert [what for _, what in cache.entries()] == [WHAT]
    assert not list((tmp_path / "c").glob(".*"))


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fails(folder: Path) -> None:
        (folder / "graph").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), cache.entry(WHAT, fails):
        pass
    assert list(tmp_path.iterdir()) == []


def test_prune_leaves_what_is_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.entry(WHAT, writes("one")) as entry:
        assert cache.prune(0) == 0 and entry.files[0].is_file()
    (tmp_path / f"{caching.TEMPORARY}{key_of(WHAT)}-x").mkdir()  # a killed run's
    assert cache.prune(1) == 0
    assert cache.prune(0) > 3
    assert list(tmp_path.iterdir()) == []


def test_list_and_prune_as_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cache(tmp_path).entry(WHAT, writes("one")):
        pass
    caching.main(["list", "--cache", str(tmp_path)])
    told = capsys.readouterr().out
    assert "decode_1x2_8_4" in told and "1 graphs" in told
    caching.main(["prune", "--days", "0", "--cache", str(tmp_path)])
    assert "freed" in capsys.readouterr().out
    with pytest.raises(InputError, match="cannot be written"):
        Cache(Path(os.devnull) / "c")


@pytest.mark.slow
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "compile.cache", "list", "--cache", "/dev/null/x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    told = "python -m compile.cache: error: cache /dev/null/x cannot be written: Not a directory\n"
    assert done.stderr == told


@pytest.mark.parametrize("days", ["-1", "nan"])
def test_days_are_a_length_of_time(days: str, tmp_path: Path) -> None:
    with Cache(tmp_path).entry(WHAT, writes("one")) as entry:
        pass
    with pytest.raises(InputError, match=f"--days is {float(days)}; it must be 0 or more"):
        caching.main(["prune", "--cache", str(tmp_path), "--days", days])
    assert entry.files[0].is_file()


def keys(plan: Plan, candidates: int = 5) -> set[str]:
    specs = graph_specs(plan, candidates)
    return {key_of(determines(plan, spec, candidates, Cpu())) for spec in specs}


def test_the_key_holds_all_that_decides_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Request("trn1.32xlarge", 1, torch.float32, (8,), (2,), 4, kernels="torch")
    base = make_plan(tiny.CONFIG, asked)
    seen = [keys(base), keys(base, 4)]
    changes = [
        {"tp": 2}, {"dtype": torch.bfloat16}, {"contexts": (9,)}, {"samples": (3,)},
        {"max_new_tokens": 5}, {"attention": "ordinary"}, {"kernels": "nki"},
        {"instance": "trn2.48xlarge"}, {"instance": "inf2.48xlarge"}, {"kv_split": "replicate"},
    ]  # fmt: skip
    seen += [keys(make_plan(tiny.CONFIG, replace(asked, **each))) for each in changes]
    seen.append(keys(make_plan(replace(tiny.CONFIG, rms_norm_eps=1e-4), asked)))
    monkeypatch.setattr(caching, "code_version", lambda: "another")
    seen.append(keys(base))
    monkeypatch.setattr(Cpu, "versions", lambda self: {"torch": "another"})
    seen.append(keys(base))
    assert len(set.union(*seen)) == sum(map(len, seen)) == 2 * len(seen)


def test_a_larger_bucket_beside_it_changes_the_buffers_and_so_the_key() -> None:
    asked = Request("trn1.32xlarge", 1, torch.float32, (8,), (2,), 4, kernels="torch")
    one = keys(make_plan(tiny.CONFIG, asked))
    assert not one & keys(make_plan(tiny.CONFIG, replace(asked, contexts=(8, 16))))
    assert one == keys(make_plan(tiny.CONFIG, replace(asked, largest=(8, 2))))


@pytest.mark.slow
def test_two_processes_share_an_entry(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from compile.cache import Cache\n"
        "def make(folder):\n"
        "    time.sleep(1); (folder / 'graph').write_text('made')\n"
        "with Cache(Path(sys.argv[1])).entry({'graph': 'g'}, make) as entry:\n"
        "    print(entry.made, entry.files[0].read_text())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(3)]
    told = sorted(process.communicate()[0].split() for process in started)
    assert told == [[b"False", b"made"], [b"False", b"made"], [b"True", b"made"]]
    assert len([path for path in tmp_path.iterdir() if (path / ENTRY).is_file()]) == 1
