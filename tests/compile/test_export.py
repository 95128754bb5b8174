"""Artefacts of a CPU: the tokens of eager code, weights and states once, nothing unpickled."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from compile.artifact import CHECKPOINT, GRAPHS, MANIFEST, Artifact
from compile.buckets import check_sampling, route
from compile.export import SUFFIX, Cpu, refuse_pickles
from models.causal_lm import load_config
from models.parallel import SINGLE
from nki_kernels.errors import InputError
from tests.compile import making
from tests.compile.making import GREEDY, NEW, OPEN, SAMPLED, asked

pytestmark = [pytest.mark.null, pytest.mark.slow]

BUCKETS = ["--context", "8,16", "--samples", "2,4", "--kernels", "torch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export")
    making.checkpoint(made / "model")
    return made


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    return making.compiled(
        folder / "model", folder / "out", folder / "cache", *BUCKETS, "--top-k", "5"
    )


def test_every_bucket_gives_the_tokens_of_eager_code(folder: Path, artifact: Artifact) -> None:
    """One request after the other in one session, so that a stale state would be read."""
    sizes = [(16, 4), (5, 2), (8, 3), (12, 1), (3, 4), (16, 2)]
    requests = [asked(*size, way) for size in sizes for way in (GREEDY, SAMPLED)]
    answers, held = making.served(SINGLE, artifact.folder, requests)
    assert answers == making.eager(folder / "model", requests)
    planned = artifact.manifest["planned"]
    assert all(abs(held[name] - planned[name]) <= 0.05 * planned[name] for name in held)
    assert len(set(map(str, answers))) > len(sizes), "requests must differ, or nothing is shown"


def test_a_request_goes_to_the_smallest_bucket_that_holds_it(artifact: Artifact) -> None:
    def name(prompt: int, samples: int) -> str:
        return route(artifact, prompt, samples, NEW).name

    assert name(8, 2) == f"decode_1x2_8_{NEW - 1}"
    assert name(8, 3) == f"decode_1x4_8_{NEW - 1}"
    assert name(9, 1) == f"decode_1x2_16_{NEW - 1}"
    for request in ((17, 1, NEW), (1, 5, NEW), (1, 1, NEW + 1)):
        with pytest.raises(InputError, match="the artefact's buckets hold up to 16, 4 and 5"):
            route(artifact, *request)


def test_a_draw_that_no_graph_does_is_refused(artifact: Artifact) -> None:
    check_sampling(artifact, GREEDY)
    for way in (OPEN, making.Sampling(top_k=6)):
        with pytest.raises(InputError, match="draw among at most 5 tokens: ask for --top-k 5"):
            check_sampling(artifact, way)


def test_the_host_draws_where_no_graph_does(folder: Path) -> None:
    artifact = making.compiled(
        folder / "model", folder / "host", folder / "cache", "--context", "8", "--samples", "3",
        "--kernels", "torch", "--top-k", "0",
    )  # fmt: skip
    requests = [asked(7, 3, way) for way in (GREEDY, SAMPLED, OPEN)]
    check_sampling(artifact, OPEN)
    answers, _ = making.served(SINGLE, artifact.folder, requests)
    assert answers == making.eager(folder / "model", requests)


def test_weights_are_stored_once_and_states_are_shared(artifact: Artifact) -> None:
    for path in (artifact.folder / GRAPHS).iterdir():
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                tensor = "/data/weights/weight_" in entry.filename
                tensor |= "/data/constants/tensor_" in entry.filename
                assert not tensor or entry.file_size <= 16, (path.name, entry.filename)
    session = Cpu().load(artifact, SINGLE)
    for graph in session.graphs.values():
        kept = [*graph.module.buffers(), *graph.module.parameters()]
        assert sum(value.untyped_storage().nbytes() for value in kept) < 1024


def test_a_second_compilation_takes_the_graphs_from_the_cache(
    folder: Path, artifact: Artifact
) -> None:
    again = making.compiled(
        folder / "model", folder / "again", folder / "cache", *BUCKETS, "--top-k", "5",
        "--json", str(folder / "made.json"),
    )  # fmt: skip
    told = json.loads((folder / "made.json").read_text())["graphs"]
    assert [each["name"] for each in told] == artifact.graphs
    assert all(each["cached"] for each in told)
    assert again.manifest["files"] == artifact.manifest["files"]


def test_a_flipped_byte_in_any_file_is_caught(artifact: Artifact) -> None:
    for path in sorted(artifact.folder.rglob("*")):
        if path.is_file():
            before = path.read_bytes()
            for at in {0, len(before) // 2, len(before) - 1}:
                path.write_bytes(before[:at] + bytes([before[at] ^ 4]) + before[at + 1 :])
                with pytest.raises(InputError):
                    making.opened(artifact.folder).check_weights(0)
            path.write_bytes(before)
    making.opened(artifact.folder)


def test_what_the_manifest_says(folder: Path, artifact: Artifact) -> None:
    what = artifact.manifest
    assert (what["tp"], what["lnc"], what["target"], what["kernels"]) == (1, 1, "trn1", "torch")
    assert set(what["versions"]) == {"python", "torch", "numpy"}
    files = {f"{GRAPHS}/{name}{SUFFIX}" for name in artifact.graphs}
    files |= {f"{CHECKPOINT}/config.json", f"{CHECKPOINT}/rank-00000-of-00001.safetensors"}
    assert files <= set(what["files"])
    assert load_config(artifact.folder / CHECKPOINT) == load_config(folder / "model")
    assert not list(artifact.folder.glob(".*"))


def test_a_pickle_in_a_graph_is_not_read(artifact: Artifact, tmp_path: Path) -> None:
    good = next((artifact.folder / GRAPHS).iterdir())
    refuse_pickles(good)
    with zipfile.ZipFile(good) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    weights = next(name for name in content if name.endswith("model_weights_config.json"))
    changes = {
        "sample inputs": ("archive/data/sample_inputs/model.pt", b"\x80\x04."),
        "a weight": (
            weights,
            content[weights].replace(b'"use_pickle": false', b'"use_pickle": true', 1),
        ),
    }
    for what, (name, replaced) in changes.items():
        bad = tmp_path / f"{what}{SUFFIX}"
        with zipfile.ZipFile(bad, "w") as archive:
            for each, old in content.items():
                archive.writestr(each, replaced if each == name else old)
        with pytest.raises(InputError, match="pickled objects, which are not read"):
            refuse_pickles(bad)
    no_zip = tmp_path / "none.pt2"
    no_zip.write_bytes(b"x")
    with pytest.raises(InputError, match="no graph that was saved here"):
        refuse_pickles(no_zip)


def test_ordinary_attention_has_its_graphs(folder: Path) -> None:
    artifact = making.compiled(
        folder / "model", folder / "ordinary", folder / "cache", "--context", "8", "--samples",
        "1,3", "--attention", "ordinary", "--kernels", "torch", "--top-k", "5",
    )  # fmt: skip
    requests = [asked(7, 3, SAMPLED), asked(4, 1, GREEDY), asked(5, 2, SAMPLED)]
    answers, _ = making.served(SINGLE, artifact.folder, requests)
    assert answers == making.eager(folder / "model", requests)


def test_nothing_half_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when a graph, and when an artefact's file is written."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for where in ("pathlib.Path.write_bytes", "shutil.copyfile"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(where, full)
            making.compiled(
                folder / "model", tmp_path / "out", tmp_path / "cache", "--context", "8",
                "--samples", "2", "--kernels", "torch", "--top-k", "5",
            )  # fmt: skip
        assert not (tmp_path / "out").exists()
        left = [p.name for p in tmp_path.iterdir() if p.name != "cache"]
        assert left == []
        assert not any((tmp_path / "cache").glob(".*"))
        assert not (tmp_path / MANIFEST).exists()
