"""The check itself: source text in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nki_sim.language_check.calls import check_names_and_calls
from nki_sim.language_check.findings import Finding, Report
from nki_sim.language_check.kernels import (
    check_calls_of_kernels,
    check_host_calls,
    check_imports,
    check_kernel,
)
from nki_sim.language_check.language import check_class, check_function
from nki_sim.language_check.loops import check_loops
from nki_sim.language_check.reach import reach
from nki_sim.language_check.scopes import Module
from nki_sim.language_check.versions import VERSIONS, LanguageCheckError, normalise


def check_source(
    source: str,
    filename: str = "<kernel>",
    function: str | None = None,
    versions: Sequence[str] = VERSIONS,
    sources: Mapping[str, str | Path] | None = None,
) -> list[Finding]:
    """What the NKI compiler of each version refuses in the kernels of a source file.

    Nothing is imported or run. The check follows a kernel into the functions and classes that it
    mentions, those of the same file and those of modules whose source is given. It reports what is
    certain from the text: a name that is bound in two ways, a value computed elsewhere, an unknown
    receiver of a method are left alone.

    Args:
        source: the text of the file.
        filename: its name in the findings.
        function: the one kernel to check, "Class.method" and "outer.inner" included; by default
            every function that nki.jit decorates or wraps.
        versions: the NKI versions to check for. "0.7" means its default frontend, which runs the
            kernel as Python; NKI_COMPILER_FRONTEND=custom brings the one of 0.6 back.
        sources: other modules that may be followed: dotted name as imported -> text, or the path of
            a file. A relative import matches the end of a name.

    Returns:
        The findings, ordered by file, line and column.

    Raises:
        LanguageCheckError: when a file does not parse or cannot be read, `function` is not in it,
            no function is a kernel and none was named, or a version is unknown.
    """
    asked = normalise(tuple(versions))
    others: dict[str, Module] = {}
    for name, other in (sources or {}).items():
        if isinstance(other, Path):
            others[name] = Module.parse(_read(other), name, str(other), others)
        else:
            others[name] = Module.parse(other, name, f"<{name}>", others)
    module = Module.parse(source, "", filename, others)
    reached = reach(module, function)
    report = Report(asked)
    for unit in reached.units:
        check_function(unit, report)
        check_loops(unit, report)
        check_names_and_calls(unit, report)
        check_calls_of_kernels(unit, report)
        if unit.kernel:
            check_kernel(unit, report)
    for owner, node in reached.classes:
        check_class(owner, node, report)
    for owner in dict.fromkeys([module, *reached.modules]):
        check_imports(owner, reached, report)
    check_host_calls(module, reached, report)
    return report.findings()


def check_file(
    path: str | Path,
    function: str | None = None,
    versions: Sequence[str] = VERSIONS,
    sources: Mapping[str, str | Path] | None = None,
) -> list[Finding]:
    """`check_source` on a file.

    Raises:
        LanguageCheckError: as `check_source`, and when the file cannot be read.
    """
    return check_source(_read(Path(path)), str(path), function, versions, sources)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else "it is not UTF-8 text"
        )
        raise LanguageCheckError(f"cannot read {path}: {reason}") from error
