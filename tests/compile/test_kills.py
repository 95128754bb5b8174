"""Compilations that are killed at random moments: the artefact is valid or absent, never wrong."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from compile.artifact import MANIFEST
from compile.cache import Cache
from models.files import TEMPORARY
from models.parallel import SINGLE
from tests.compile import making
from tests.compile.making import GREEDY, SAMPLED, asked

pytestmark = [pytest.mark.null, pytest.mark.long]

KILLS = 60
OPTIONS = ["--context", "8", "--samples", "2,3", "--kernels", "torch", "--top-k", "5"]


def work(model: Path, out: Path, cache: Path) -> None:
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        making.compiled(model, out, cache, *OPTIONS)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.compile.making", "compile.make", "compile.export"])
    model = making.checkpoint(tmp_path / "model")
    out, cache = tmp_path / "out", tmp_path / "cache"
    requests = [asked(8, 2, GREEDY), asked(5, 3, SAMPLED)]
    expected = making.eager(model, requests)

    def begin() -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work, args=(model, out, cache))
        process.start()
        return process

    began = time.perf_counter()
    process = begin()
    process.join()
    assert process.exitcode == 0
    whole = time.perf_counter() - began
    began = time.perf_counter()
    begin().join()
    short = time.perf_counter() - began
    pick = random.Random(0)
    killed = valid = absent = resumed = 0
    while killed < KILLS:
        # What a former run finished is taken away, or not: a kill then meets another stage.
        if pick.random() < 0.5:
            shutil.rmtree(out, ignore_errors=True)
        entries = Cache(cache).entries()
        if entries and pick.random() < 0.4:
            shutil.rmtree(pick.choice(entries)[0])
        missing = 3 - len(Cache(cache).entries())
        process = begin()
        process.join(pick.uniform(0.0, short + missing * (whole - short) / 3))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0
        if out.exists():
            making.opened(out).check_weights(0)  # every byte
            valid += 1
            if killed % 10 == 0:
                assert making.served(SINGLE, out, requests)[0] == expected
        else:
            absent += 1
        resumed += len(Cache(cache).entries()) > 0
    print(
        f"{killed} kills: {valid} times valid, {absent} absent, {resumed} with graphs in the cache"
    )
    assert valid and absent and resumed
    process = begin()
    process.join()
    assert process.exitcode == 0
    assert making.served(SINGLE, out, requests)[0] == expected
    assert not [p for p in out.rglob("*") if p.name.startswith(TEMPORARY)]
    assert (out / MANIFEST).is_file()
    assert Cache(cache).prune(0) > 0
    assert not [p for p in cache.iterdir() if p.is_dir()]
