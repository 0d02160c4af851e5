"""The result of an audit is kept in the domain's directory; what it distrusts is no base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import NOON, backup, backup_id, image
from vbackup.repository import audited
from vbackup.repository.audited import Audited
from vbackup.repository.history import History

GOOD = Audited("vda", NOON, backup_id(1), is_good=True, clean_bytes=1 << 30, read_bytes=1 << 24, wrong_bytes=0)
MISSED = replace(GOOD, dev="vdb", is_good=False, wrong_bytes=65536, distrusted=frozenset((backup_id(0), backup_id(1))))


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    assert audited.read(tmp_path) == {}
    audited.add(tmp_path, [GOOD, MISSED])
    assert audited.read(tmp_path) == {"vda": replace(GOOD, distrusted=frozenset()), "vdb": MISSED}
    assert (tmp_path / audited.NAME).stat().st_mode & 0o777 == 0o600


def test_later_result_takes_the_place_of_that_disk_only(tmp_path: Path) -> None:
    audited.add(tmp_path, [GOOD, MISSED])
    audited.add(tmp_path, [replace(GOOD, dev="vdb")])
    assert [one.is_good for one in audited.read(tmp_path).values()] == [True, True]
    assert audited.distrusted(tmp_path) == {}


def test_distrust_says_when_it_was_found(tmp_path: Path) -> None:
    audited.add(tmp_path, [MISSED])
    history = History([backup(0, image("vdb"))], (), audited.distrusted(tmp_path))
    reason = history.distrust(backup_id(0), "vdb")
    assert reason == "an audit at 2026-11-23 12:00:00Z found changes that its bitmap had missed"
    assert history.distrust(backup_id(0), "vda") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "vbackup.audited/1", "disks": [{"dev": 1}]}', '{"schema": "x"}']
)
def test_file_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / audited.NAME).write_text(text)
    assert audited.read(tmp_path) == {}
    audited.add(tmp_path, [GOOD])
    assert list(audited.read(tmp_path)) == ["vda"]
