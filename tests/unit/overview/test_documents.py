"""The document has all that is known, and is what its schema says."""

from __future__ import annotations

import json
from typing import Any

from tests.documents import check
from tests.unit.builders import UUID
from tests.unit.overview.examples import (
    FAULT,
    NIGHT,
    NOW,
    domain,
    facts,
    glance,
    job,
    live,
    made,
    repository,
    run,
)
from vbackup.overview import assess, documents
from vbackup.overview.facts import Facts
from vbackup.overview.state import Health
from vbackup.repository.verification import Verdict
from vbackup.runs.record import DomainResult, Outcome, Step, StepKind


def of(known: Facts) -> dict[str, Any]:
    found = {"schema": documents.SCHEMA, **documents.document(assess.overview(known))}
    check(found)
    parsed: dict[str, Any] = json.loads(json.dumps(found))
    return parsed


def test_all_that_is_known_is_in_it() -> None:
    steps = (Step(StepKind.COPY, Outcome.FAILED, NIGHT, 1.0, 7, target="offsite", faults=(FAULT,)),)
    failed = run(
        outcome=Outcome.SOME_FAILED,
        status=7,
        steps=steps,
        domains=(DomainResult("web", UUID, Outcome.FAILED, fault=FAULT, unusual=("Much changed.",)),),
    )
    newest = made()
    seen = glance(newest, verified=NIGHT, verdict=Verdict.DAMAGED, damaged=(newest.id,))
    place = repository(domain(seen, offsite=frozenset((newest.id,))), targets=frozenset(("offsite",)))
    found = of(
        facts(jobs=(job(live(), runs=(failed,), copy_to=("offsite",)),), repositories=(place,), warnings=("Silence.",))
    )
    assert (found["time"], found["host"], found["health"]) == ("2026-11-30T09:00:00.000000Z", "hypervisor", "critical")
    assert found["warnings"] == ["Silence."]
    (one,) = found["jobs"]
    assert (one["name"], one["last_good"], one["next_run"]) == ("nightly", None, "2026-12-01T01:00:00.000000Z")
    assert one["last_run"]["steps"] == [{"kind": "copy", "target": "offsite", "outcome": "failed"}]
    (of_domain,) = found["domains"]
    assert of_domain["last"]["id"] == newest.id
    assert of_domain["copies"] == [
        {"target": "offsite", "newest": newest.id, "time": "2026-11-30T01:00:00.000000Z", "behind": 0}
    ]
    assert (of_domain["verdict"], of_domain["damaged"]) == ("damaged", [newest.id])
    assert of_domain["fault"]["code"] == FAULT.code
    assert of_domain["changed"] == [{"time": "2026-11-30T01:00:00.000000Z", "changed_bytes": 1024}]
    assert found["repositories"][0]["backups_bytes"] == 4096


def test_what_is_not_known_is_null() -> None:
    unmounted = repository(name="other", fault=FAULT, free_bytes=None, size_bytes=None)
    found = of(facts(jobs=(job(domains=("mail",), runs=(), calendar=None),), repositories=(repository(), unmounted)))
    (domain_,) = found["domains"]
    assert [domain_[name] for name in ("uuid", "last", "age_s", "verified", "fault")] == [None] * 5
    assert [found["jobs"][0][name] for name in ("last_run", "last_good", "next_run")] == [None] * 3
    assert found["repositories"][1]["free_bytes"] is None
    assert found["repositories"][1]["fault"]["message"] == FAULT.message


def test_healths_have_words() -> None:
    assert [documents.word(one) for one in Health] == ["ok", "warning", "critical", "unknown"]
    assert of(facts(jobs=(), repositories=(), time=NOW))["health"] == "unknown"


def test_of_a_domain_whose_repository_cannot_be_read_it_is_not_known_whether_it_is_well() -> None:
    unmounted = repository(domain(), fault=FAULT, free_bytes=None, size_bytes=None, last_read=NIGHT)
    [one] = of(facts(repositories=(unmounted,)))["domains"]
    assert (one["health"], one["last_read"]) == ("unknown", "2026-11-30T01:00:00.000000Z")
    [one] = of(facts(repositories=(repository(domain()),)))["domains"]
    assert (one["health"], one["last_read"]) == ("ok", None)
