"""A run that is read is the one that was written, and what is not a run is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests import documents as schema_check
from tests.unit.runs.examples import STARTED, run, running
from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.runs import documents
from vbackup.runs.record import Run


def read(document: dict[str, Any]) -> Run:
    return documents.read(Fields(document, "the run", StorageError))


@pytest.mark.parametrize(
    "one",
    [run(), running(), replace(run(), is_partial=True), replace(run(), trusted=STARTED)],
    ids=["ended", "running", "partial", "in doubt"],
)
def test_a_run_is_read_as_it_was_written(one: Run) -> None:
    document = documents.document(one)
    schema_check.check(document)
    assert read(document) == one


def test_without_details_the_documents_of_steps_are_left_out() -> None:
    document = documents.document(run(), with_details=False)
    schema_check.check(document)
    assert read(document) == replace(run(), steps=tuple(replace(step, document=None) for step in run().steps))


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("outcome", "lost", "'lost' is none of done, some_failed"),
        ("started", "yesterday", "'yesterday' is not a time"),
        ("started", "2026-11-30T01:00:00", "it has no time zone"),
        ("steps", [{"kind": "backup"}], r"steps\[0\].outcome should be a string, but is missing"),
        ("unusual", [1], r"unusual\[0\] should be a string"),
        ("status", -1, "status should be an integer"),
    ],
)
def test_what_is_not_a_run_is_refused(member: str, value: object, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        read({**documents.document(run()), member: value})
