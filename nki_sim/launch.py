"""Running a kernel on the cores of one launch.

One core runs in the caller's thread. Two cores run in two threads that pass a baton: one executes
until it has to wait for the other (a barrier, a ``sendrecv``) or ends, so that a launch is
deterministic, and two cores that wait for each other for ever are found at once.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from nki_sim.errors import DeadlockError
from nki_sim.machine import Core


def run_cores(
    cores: list[Core], function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
) -> list[Any]:
    """The result of ``function`` on each core."""
    if len(cores) == 1:
        return [_run(cores[0], function, args, kwargs)]
    baton = Baton(len(cores))
    cores[0].launch.baton = baton
    results: list[Any] = [None] * len(cores)
    failures: list[BaseException | None] = [None] * len(cores)

    def body(core: Core) -> None:
        try:
            baton.start(core.id)
            results[core.id] = _run(core, function, args, kwargs)
        except BaseException as error:
            failures[core.id] = error
            baton.abort(core.id)
        finally:
            baton.finish(core.id)

    threads = []
    for core in cores:
        context = contextvars.copy_context()
        threads.append(threading.Thread(target=context.run, args=(body, core), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(
        (f for f in failures if f is not None), key=lambda f: isinstance(f, _AbortedError)
    ):
        raise error
    return results


def _run(core: Core, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    # NaN and infinities are data here. A tile is too small to share among threads: BLAS threads
    # only wait for each other, which on a busy machine made a launch ten times slower.
    quiet = np.errstate(all="ignore")
    with core.executing(), quiet, _blas().limit(limits=1, user_api="blas"):
        return function(*args, **kwargs)


@functools.cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries that are loaded; finding them takes milliseconds."""
    return ThreadpoolController()


class _AbortedError(Exception):
    """Raised in a waiting core when the other one failed."""


class Baton:
    """Lets one core run at a time and hands over when it waits.

    A core that waits states a condition and a description; whoever holds the baton next is the
    first core, in turn, whose condition holds.
    """

    def __init__(self, cores: int) -> None:
        self._changed = threading.Condition()
        self._holder = 0
        self._waiting: dict[int, tuple[Callable[[], bool], str]] = {}
        self._done: set[int] = set()
        self._cores = cores
        self._failed: BaseException | None = None
        self._aborted = False

    def start(self, core: int) -> None:
        """Block until the core holds the baton for the first time."""
        with self._changed:
            self._changed.wait_for(lambda: self._holder == core or self._aborted)
            self._check()

    def wait(self, core: int, ready: Callable[[], bool], what: str) -> None:
        """Hand the baton over until ``ready()`` holds and it comes back.

        Raises:
            DeadlockError: where no core can go on.
        """
        with self._changed:
            if ready():
                return
            self._waiting[core] = (ready, what)
            self._pass_on(core)
            self._changed.wait_for(lambda: self._holder == core or self._aborted)
            self._waiting.pop(core, None)
            self._check()

    def abort(self, core: int) -> None:
        """Release everybody after a failure."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def finish(self, core: int) -> None:
        """The core has ended."""
        with self._changed:
            self._done.add(core)
            if not self._aborted and len(self._done) < self._cores:
                try:
                    self._pass_on(core)
                except DeadlockError as error:
                    self._failed = error
                    self._aborted = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._aborted:
            raise _AbortedError("the other core failed")

    def _pass_on(self, core: int) -> None:
        for step in range(1, self._cores + 1):
            candidate = (core + step) % self._cores
            if candidate in self._done:
                continue
            waiting = self._waiting.get(candidate)
            if waiting is None or waiting[0]():
                self._holder = candidate
                self._changed.notify_all()
                return
        state = [f"core {c} waits at {what}" for c, (_, what) in sorted(self._waiting.items())]
        state += [f"core {c} has ended" for c in sorted(self._done)]
        raise DeadlockError("; ".join(state))
