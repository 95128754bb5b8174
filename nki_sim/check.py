"""``python -m nki_sim check``: run a kernel from a file on made-up arrays and tell what was found.

Static findings (what the compilers of the named NKI versions refuse) come from ``language_check``;
running the kernel adds broken rules, reads of unwritten memory, advice, and how full SBUF and PSUM
get.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from nki_sim import binding
from nki_sim.advice import carried_dependencies
from nki_sim.dtypes import as_dtype
from nki_sim.errors import BindingError, DeadlockError, NkiValidationError, SimulatorError
from nki_sim.kernel import Kernel, Simulation
from nki_sim.language_check import LanguageCheckError, check_file
from nki_sim.rebind import rebound
from nki_sim.targets import get_target
from nki_sim.trace import Trace
from nki_sim.usage import memory_usage


class CheckError(ValueError):
    """The command line names something that is not there or cannot be read."""


def parse_argument(text: str) -> Any:
    """One kernel argument: ``128x512:float32`` is an array, else a Python number or string.

    Raises:
        CheckError: for a malformed array.
    """
    if ":" in text and text[0].isdigit():
        sizes, _, dtype = text.partition(":")
        try:
            shape = tuple(int(n) for n in sizes.split("x"))
            element = as_dtype(dtype)
        except (ValueError, TypeError) as error:
            raise CheckError(f"argument {text!r} is not SIZExSIZE:DTYPE: {error}") from None
        rng = np.random.default_rng(0)
        if element.is_float:
            return rng.standard_normal(shape).astype(element.numpy)
        return rng.integers(0, 2, shape).astype(element.numpy)
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def load_kernel(spec: str) -> tuple[Path, str, Any]:
    """(file, function name, kernel) of ``file.py:function``, with ``nki`` bound as ``bind`` says.

    Raises:
        CheckError: where file or function do not exist.
    """
    name, _, function = spec.rpartition(":")
    path = Path(name)
    if not name or not path.is_file():
        raise CheckError(f"{spec!r} is not FILE.py:FUNCTION of an existing file")
    try:
        binding.bind()
    except BindingError as error:
        raise CheckError(str(error)) from None
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    module_spec.loader.exec_module(module)
    kernel = getattr(module, function, None)
    if kernel is None:
        raise CheckError(f"{path} has no function {function!r}")
    return path, function, kernel


def check(
    spec: str, arguments: list[str], target: str | None, lnc: int, versions: tuple[str, ...]
) -> int:
    """Check one kernel and print what was found; 0 = nothing, 1 = findings.

    Raises:
        CheckError: for bad input.
    """
    values = [parse_argument(a) for a in arguments]
    try:
        chosen = get_target(target)
    except ValueError as error:
        raise CheckError(str(error)) from None
    path, function, kernel = load_kernel(spec)
    found = 0
    if versions:
        try:
            for finding in check_file(path, function, versions):
                print(finding)
                found += 1
        except LanguageCheckError as error:
            raise CheckError(str(error)) from None
    trace = Trace()
    bound: Kernel = rebound(kernel)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the findings are printed below, each once
            Simulation(bound[lnc], chosen, trace)(*values)
    except (NkiValidationError, SimulatorError, DeadlockError, NotImplementedError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    findings = [*trace.findings, *carried_dependencies(trace)]
    for text in dict.fromkeys(str(f) for f in findings):
        print(text)
        found += 1
    print(
        f"{function} on {chosen.generation}: {len(trace)} instructions, {trace.dma_bytes} DMA bytes"
    )
    for usage in memory_usage(trace, chosen):
        print(f"  {str(usage).splitlines()[0]}")
    return 1 if found else 0
