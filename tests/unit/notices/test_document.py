"""What a webhook gets has the report of the run, and is as its schema says."""

from __future__ import annotations

import json
from typing import Any

from tests import documents
from tests.unit.notices.runs import STARTED, USUAL, domain, overview, run
from vbackup.notices.document import document
from vbackup.notices.occasion import Occasion, decide
from vbackup.notices.told import Told
from vbackup.runs import documents as run_documents


def made(occasion: Occasion | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        json.dumps(document(occasion, message="id", host="hv1", time=STARTED, title="title", text="text\n"))
    )
    documents.check(found)
    return found


def test_failure_has_the_report_of_the_run_and_what_is_overdue() -> None:
    one = run("web", unusual=("The clock jumped.",))
    found = made(decide(USUAL, Told(), run=one, overview=overview(domain("web", is_overdue=True)), jobs=None))
    assert found["reasons"] == ["failure", "overdue", "unusual"]
    assert found["run"] == json.loads(json.dumps(run_documents.document(one)))
    assert [(each["domain"], each["job"], each["age_s"]) for each in found["overdue"]] == [("web", "nightly", 259200.0)]
    assert found["unusual"] == ["The clock jumped."]
    assert (found["id"], found["time"], found["host"]) == ("id", "2026-11-30T01:00:00Z", "hv1")


def test_recovery_says_since_when_it_failed() -> None:
    told = decide(USUAL, Told(), run=run("web"), overview=None, jobs=None).if_sent
    found = made(decide(USUAL, told, run=run(number=1), overview=None, jobs=None))
    assert found["reasons"] == ["recovery"]
    assert found["failed_since"] == "2026-11-30T01:00:00Z"


def test_message_without_a_run() -> None:
    late = overview(domain("web", is_overdue=True))
    assert made(decide(USUAL, Told(), run=None, overview=late, jobs=None))["run"] is None


def test_test() -> None:
    found = made(None)
    assert (found["reasons"], found["run"], found["title"]) == (["test"], None, "title")
