"""The session document is read as it was written; the client's has nothing of what vbackup keeps for itself."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.builders import pull_session
from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.sessions import record
from vbackup.sessions.record import Note, Session, SessionState


def reread(document: object) -> Session:
    return record.read(Fields(json.loads(json.dumps(document)), "the record", StorageError))


def test_what_is_written_is_read() -> None:
    made = replace(pull_session("vda", "vdb"), warnings=(Note("DISK_IS_FULL", "Disk vda is full.", "vda"),))
    assert reread(made.record()) == made


def test_what_a_domain_that_is_off_elsewhere_has_is_read_as_it_was_written() -> None:
    made = pull_session("vda")
    assert made.internals is not None
    made = replace(made, internals=replace(made.internals, stamps={"/images/a b.qcow2": (2**60, 65536)}))
    assert reread(made.record()) == made
    for wrong in ([1], [1, "2"], "x", [True, 1]):
        document = made.record()
        document["internal"]["stamps"]["/images/a b.qcow2"] = wrong
        with pytest.raises(StorageError, match="is not the modification time and the size of"):
            reread(document)


def test_client_gets_the_document_without_the_internals() -> None:
    made = pull_session("vda")
    document = made.document()
    assert "internal" not in document
    assert document["schema"] == "vbackup.session/1"
    assert reread(document) == replace(made, internals=None)
    assert document["disks"][0]["base_context"] == "qemu:dirty-bitmap:20261123T120001Z-full"


def test_disk_is_found_by_its_name() -> None:
    made = pull_session("vda", "vdb")
    assert made.disk("vdb") is made.disks[1]
    assert made.disk("vdc") is None


def test_time_is_up_at_the_moment_that_the_document_says() -> None:
    made = pull_session("vda")
    assert made.has_expired(made.expires)
    assert not made.has_expired(made.expires - timedelta(seconds=1))


def test_only_a_session_that_is_served_or_begun_goes_on() -> None:
    assert {state for state in SessionState if not state.has_ended} == {SessionState.BEGINNING, SessionState.OPEN}


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("schema", "vbackup.session/2", "knows only"),
        ("id", "../x", "not the id of a session"),
        ("tracker", "../x", "not a tracker"),
        ("domain", {"name": "web", "uuid": ".."}, "not a tracker"),
        ("state", "lost", "not one of beginning, open"),
        ("expires", 3, "should be a string"),
        ("disks", [{"dev": "../a"}], "not the name of a disk"),
    ],
)
def test_what_vbackup_does_not_write_is_refused(member: str, value: Any, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        reread({**pull_session("vda").record(), member: value})
