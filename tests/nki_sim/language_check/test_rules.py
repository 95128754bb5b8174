"""Every rule finds its breach, at its line and in its versions, and leaves a near miss alone."""

from __future__ import annotations

import pytest

from nki_sim.language_check import RULES, check_source
from nki_sim.language_check.versions import span
from tests.nki_sim.language_check.cases import CASES, Case, module

pytestmark = pytest.mark.null

_IDS = [f"{case.rule}-{place}" for place, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=_IDS)
def test_breach_is_found(case: Case) -> None:
    source = module(case.breach)
    line = next(n for n, text in enumerate(source.splitlines(), 1) if text.endswith("#!"))
    found = [finding for finding in check_source(source, "f.py") if finding.rule == case.rule]
    assert [(finding.file, finding.line) for finding in found] == [("f.py", line)]
    assert found[0].versions == span(case.since, case.until)
    assert found[0].source and found[0].message


@pytest.mark.parametrize("case", CASES, ids=_IDS)
def test_near_miss_is_left_alone(case: Case) -> None:
    found = check_source(module(case.near_miss), "f.py")
    assert [finding for finding in found if finding.rule == case.rule] == []


@pytest.mark.parametrize("case", CASES, ids=_IDS)
def test_other_versions_do_not_report_it(case: Case) -> None:
    refused = span(case.since, case.until)
    for version in span():
        found = check_source(module(case.breach), "f.py", versions=[version])
        hits = [finding for finding in found if finding.rule == case.rule]
        assert [finding.versions for finding in hits] == (
            [(version,)] if version in refused else []
        )


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == {rule.id for rule in RULES}


def test_rules_are_well_formed() -> None:
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))
    for rule in RULES:
        assert rule.versions
        assert rule.source
        assert rule.evidence in ("stated", "published", "inferred")
