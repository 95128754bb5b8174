"""Shared by all scripts: a mistake of the caller is one sentence on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from compile.failures import NeuronFailure
from nki_kernels.errors import InputError

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a mistake with one sentence; `--help` has the rest."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        if _speaks():
            print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(USER_ERROR)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main`; what the caller got wrong ends in one sentence and exit code 2."""
    program = Path(sys.argv[0]).name
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        if _speaks():
            print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except NeuronFailure as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt as stopped:  # what it carries, if anything, says what there is
        print(f"{program}: interrupted; {stopped or 'nothing was written'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        _discard_output()
    except OSError as error:  # a full disk, a file that vanished
        print(f"{program}: error: {error}", file=sys.stderr)
        _discard_output()
        sys.exit(USER_ERROR)
    sys.exit(0)


def _speaks() -> bool:
    """Whether this process says what is wrong.

    Until torchrun's processes have joined they do the same, and the first of them speaks.
    """
    if os.environ.get("RANK", "0") == "0":
        return True
    import torch.distributed

    return torch.distributed.is_initialized()


def _discard_output() -> None:
    """Let the interpreter's last flush of stdout go nowhere instead of failing once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
