"""The NKI versions that the check knows, and spans of them."""

from __future__ import annotations

VERSIONS: tuple[str, ...] = ("0.2", "0.3", "0.4", "0.5", "0.6", "0.7")
"""Oldest first. 0.2 ships with Neuron SDK 2.28, each next one with the SDK after it. Up to 0.6 a
dedicated frontend specializes the kernel's source, from 0.7 on Python runs it (AWS: NKI release
notes, 0.7.0)."""


class LanguageCheckError(ValueError):
    """The check cannot be made: unknown version, missing function, source that does not parse."""


def span(since: str | None = None, until: str | None = None) -> tuple[str, ...]:
    """The versions from `since` to `until`, both included; None leaves that side open."""
    low = VERSIONS.index(since) if since else 0
    high = VERSIONS.index(until) if until else len(VERSIONS) - 1
    return VERSIONS[low : high + 1]


def normalise(versions: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """`versions` in order and without repeats; "0.6.0" is read as "0.6".

    Raises:
        LanguageCheckError: when a version is not one of `VERSIONS`.
    """
    wanted = set()
    for version in versions:
        short = version[:-2] if version.count(".") == 2 and version.endswith(".0") else version
        if short not in VERSIONS:
            raise LanguageCheckError(f"NKI version {version!r} is not one of {', '.join(VERSIONS)}")
        wanted.add(short)
    return tuple(version for version in VERSIONS if version in wanted)
