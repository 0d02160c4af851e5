"""The result of an audit is kept in the domain's directory; what it distrusts is no base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import NOON, backup, backup_id, image
from vbackup.errors import ChainError
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
    assert audited.distrusted(tmp_path, []) == {}


def test_distrust_says_when_it_was_found(tmp_path: Path) -> None:
    audited.add(tmp_path, [MISSED])
    history = History([backup(0, image("vdb"))], (), audited.distrusted(tmp_path, []))
    reason = history.distrust(backup_id(0), "vdb")
    assert reason == "an audit at 2026-11-23 12:00:00Z found changes that its bitmap had missed"
    assert history.distrust(backup_id(0), "vda") is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "vbackup.audited/1", "disks": [{"dev": 1}]}', '{"schema": "x"}']
)
def test_file_that_cannot_be_read_may_have_distrusted_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / audited.NAME).write_text(text)
    with pytest.raises(ChainError, match=r"audit.json cannot be read: "):
        audited.read(tmp_path)
    assert audited.flaw(tmp_path) is not None
    with pytest.raises(ChainError):
        audited.add(tmp_path, [GOOD])
    assert (tmp_path / audited.NAME).read_text() == text
    backups = [backup(0, image("vdb")), backup(1)]
    before = audited.distrusted(tmp_path, backups)
    assert set(before) == {(backups[0].id, "vdb"), (backups[1].id, "vda")}
    assert "audit.json is damaged" in before[backups[1].id, "vda"]
    # What is written in its place says the same of these, and nothing of later ones.
    (tmp_path / audited.NAME).write_text(audited.renewed(backups, now=NOON))
    assert audited.flaw(tmp_path) is None
    assert audited.distrusted(tmp_path, [*backups, backup(2)]) == before
    audited.add(tmp_path, [replace(GOOD, backup=backup_id(2))])
    assert set(audited.distrusted(tmp_path, [])) == {(backups[0].id, "vdb")}


def test_file_that_is_no_file_or_unreadable_is_damaged(tmp_path: Path) -> None:
    (tmp_path / audited.NAME).symlink_to(tmp_path / "nothing")
    assert audited.flaw(tmp_path) is not None
    (tmp_path / audited.NAME).unlink()
    (tmp_path / audited.NAME).mkdir()
    assert audited.flaw(tmp_path) is not None
    assert audited.flaw(tmp_path / "missing") is None
