"""The record of standbys: read as it was written, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.builders import NOON, backup_id
from vbackup.errors import ChainError, StorageError
from vbackup.repository import standbys
from vbackup.repository.standbys import Record

ONE = Record("qemu+ssh://hv2/system", Path("/standby/web"), backup_id(1), NOON)
TWO = Record("qemu:///system", Path("/two"), failback=backup_id(2), taken_over=NOON, failed_back=backup_id(1))


def test_records_are_as_they_were_written(tmp_path: Path) -> None:
    assert standbys.read(tmp_path) == []
    standbys.put(tmp_path, ONE)
    standbys.put(tmp_path, TWO)
    assert standbys.read(tmp_path) == [ONE, TWO]
    newer = Record(ONE.uri, ONE.directory, backup_id(3), NOON)
    standbys.put(tmp_path, newer)
    assert standbys.read(tmp_path) == [newer, TWO]
    assert standbys.find(tmp_path, TWO.uri) == TWO
    standbys.remove(tmp_path, TWO.uri)
    assert standbys.find(tmp_path, TWO.uri) is None
    assert (tmp_path / standbys.NAME).stat().st_mode & 0o777 == 0o600


def test_record_of_an_earlier_version_says_nothing_of_a_failover(tmp_path: Path) -> None:
    text = '{"schema": "vbackup.standby/1", "standbys": [{"uri": "a", "directory": "/", "backup": null}]}'
    (tmp_path / standbys.NAME).write_text(text)
    assert standbys.read(tmp_path) == [Record("a", Path("/"))]


def test_backups_that_originals_got_by_a_failback(tmp_path: Path) -> None:
    assert standbys.failed_back(tmp_path) == frozenset()
    standbys.put(tmp_path, ONE)
    standbys.put(tmp_path, TWO)
    assert standbys.failed_back(tmp_path) == {backup_id(1)}
    (tmp_path / standbys.NAME).write_text("{")
    assert standbys.failed_back(tmp_path) == frozenset()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", ChainError, "is damaged"),
        ('{"schema": "vbackup.standby/2", "standbys": []}', StorageError, "newer vbackup"),
        ('{"schema": "vbackup.standby/1", "standbys": [{"uri": "a"}]}', ChainError, "directory"),
        (
            '{"schema": "vbackup.standby/1", "standbys": [{"uri": "a", "directory": "/", "backup": "../.."}]}',
            ChainError,
            "not an id",
        ),
        (
            '{"schema": "vbackup.standby/1", "standbys": [{"uri": "a", "directory": "/", "applied": "noon"}]}',
            ChainError,
            "not a time",
        ),
    ],
)
def test_what_cannot_be_read_is_an_error(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    (tmp_path / standbys.NAME).write_text(text)
    with pytest.raises(error, match=said):
        standbys.read(tmp_path)
