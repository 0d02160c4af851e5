"""A checkpoint is read as it was written, and nothing that vbackup does not write is taken for one."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from tests.unit.builders import session_checkpoint
from vbackup.errors import StorageError
from vbackup.fields import Fields
from vbackup.sessions import checkpoint
from vbackup.sessions.checkpoint import Checkpoint


def fields(document: object) -> Fields:
    return Fields(json.loads(json.dumps(document)), "the record", StorageError)


def test_what_is_written_is_read() -> None:
    made = session_checkpoint(3, "vda", "vdb")
    assert Checkpoint.read(fields(made.document())) == made


def test_time_is_read_as_it_was_written() -> None:
    time = datetime(2026, 11, 29, 20, 15, 0, 250000, tzinfo=timezone.utc)
    assert checkpoint.iso(time) == "2026-11-29T20:15:00.250000Z"
    assert checkpoint.moment(checkpoint.iso(time)) == time


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("id", "../x", "not a checkpoint"),
        ("session", "../x", "not the id of a session"),
        ("time", "yesterday", "not a time"),
        ("level", "some", "not one of auto, full"),
        ("sequence", -1, "integer"),
    ],
)
def test_what_vbackup_does_not_write_is_refused(member: str, value: Any, message: str) -> None:
    document = {**session_checkpoint(1, "vda").document(), member: value}
    with pytest.raises(StorageError, match=message):
        Checkpoint.read(fields(document))


@pytest.mark.parametrize(("member", "value"), [("dev", "../a"), ("bitmap", "libvirt-1"), ("level", 3)])
def test_disk_that_vbackup_does_not_write_is_refused(member: str, value: Any) -> None:
    document = session_checkpoint(1, "vda").document()
    document["disks"][0][member] = value
    with pytest.raises(StorageError):
        Checkpoint.read(fields(document))
