"""Backups are chosen by time, level, host and state, all of it together."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.unit.builders import NOON, backup, backup_id, incremental
from vbackup.model import HostIdentity, Level
from vbackup.repository.backup_filter import BackupFilter
from vbackup.repository.condition import Condition, State
from vbackup.repository.protection import Protection
from vbackup.repository.verification import Verdict, Verification

ONE = backup(1, host=HostIdentity("here", "1" * 32))
TWO = incremental(2, ONE)
THREE = backup(3, time=NOON + timedelta(hours=3, microseconds=700_000))
ALL = [ONE, TWO, THREE]
VERIFIED = Verification(NOON, Verdict.DAMAGED, 100.0, 1)
CONDITIONS = {
    ONE.id: Condition(None, Protection(), None, is_broken=False, chains={}),
    TWO.id: Condition(VERIFIED, None, None, is_broken=True, chains={}),
    THREE.id: Condition(VERIFIED, None, None, is_broken=False, chains={}),
}


def at(hours: int) -> datetime:
    return (NOON + timedelta(hours=hours)).astimezone(timezone(timedelta(hours=5)))


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, (1, 2, 3)),
        ({"since": at(2)}, (2, 3)),
        ({"until": at(2)}, (1, 2)),
        ({"until": at(3)}, (1, 2, 3)),  # to the second, as its id has it
        ({"since": at(2), "until": at(2)}, (2,)),
        ({"levels": [Level.INCREMENTAL]}, (2,)),
        ({"levels": [Level.INCREMENTAL, Level.FULL]}, (1, 2, 3)),
        ({"host": "here"}, (1,)),
        ({"states": [State.PROTECTED]}, (1,)),
        ({"states": [State.UNVERIFIED]}, (1,)),
        ({"states": [State.BROKEN]}, (2,)),
        ({"states": [State.DAMAGED]}, (3,)),  # one that is broken is worse than damaged
        ({"states": [State.DAMAGED, State.PROTECTED]}, (1, 3)),
        ({"states": [State.DAMAGED], "until": at(2)}, ()),
        ({"states": [State.RUNNING]}, ()),
    ],
)
def test_what_is_asked_for_is_chosen(wanted: dict[str, Any], numbers: tuple[int, ...]) -> None:
    one = BackupFilter(**wanted)
    assert one.is_narrow == bool(wanted)
    assert one.backups(ALL, CONDITIONS) == [ALL[number - 1] for number in numbers]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, (1, 2)),
        ({"host": "here"}, (1, 2)),
        ({"since": at(2)}, (2,)),
        ({"levels": [Level.FULL]}, (1,)),
        ({"states": [State.RUNNING]}, (2,)),
        ({"states": [State.UNFINISHED]}, (1,)),
        ({"states": [State.GOOD]}, ()),
    ],
)
def test_what_is_not_committed_is_chosen_by_its_id(wanted: dict[str, Any], numbers: tuple[int, ...]) -> None:
    ids = [backup_id(1), backup_id(2, Level.INCREMENTAL)]
    chosen = BackupFilter(**wanted).unfinished(ids, running=[ids[1]])
    assert chosen == [ids[number - 1] for number in numbers]
