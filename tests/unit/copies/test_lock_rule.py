"""The lock of a place has to last as long as backups are kept and their chains besides."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.unit import builders
from vbackup import names
from vbackup.copies import lock_rule
from vbackup.model import Backup, Level
from vbackup.repository.history import History


def chain(*days: int) -> list[Backup]:
    """A full, and increments, each on the one before, made on these days."""
    made: list[Backup] = []
    for number, day in enumerate(days):
        level = Level.INCREMENTAL if made else Level.FULL
        base = made[-1].id if made else None
        time = builders.NOON + timedelta(days=day)
        image = builders.image("vda", level=level, base=base)
        one = builders.backup(number + 1, image, level=level, id=names.backup_id(time, level), time=time)
        made.append(replace(one, parent=base))
    return made


def test_lock_that_lasts() -> None:
    backups = chain(0, 3, 7)
    assert lock_rule.span(History(backups), backups) == timedelta(days=7)
    assert lock_rule.broken(14, History(backups), backups, name="x") is None


def test_lock_that_is_too_short() -> None:
    backups = chain(0, 3, 7)
    told = lock_rule.broken(13, History(backups), backups, name="s3://b")
    assert told is not None
    assert "s3://b locks objects for 13 days" in told
    assert "at least 14 days" in told


def test_only_what_is_kept_counts() -> None:
    backups = chain(0, 3, 7)
    assert lock_rule.broken(7, History(backups), backups[-1:], name="x") is None
    assert lock_rule.broken(6, History(backups), backups[-1:], name="x") is not None


@pytest.mark.parametrize("days", [1, 0])
def test_fulls_need_no_more_than_they_are_kept(days: int) -> None:
    backups = chain(0)
    assert lock_rule.broken(days, History(backups), backups, name="x") is None
    assert lock_rule.broken(days, History([]), [], name="x") is None
