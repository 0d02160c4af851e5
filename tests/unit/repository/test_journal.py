"""The journal of a backup: what it records at each step, and what can be read back after its process has died."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import UUID
from tests.unit.builders import backup as a_backup
from tests.unit.fake_domain import FakeDomain, run
from vbackup.errors import NoSpaceError
from vbackup.model import Group, GroupMember
from vbackup.repository import journal
from vbackup.repository.journal import Journal
from vbackup.repository.repository import Repository


def test_journal_of_a_full_disk_stops_the_backup_before_anything_is_begun(
    domain: FakeDomain,
    repo: Repository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = domain.qemu.state()

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(NoSpaceError):
        run(domain, repo)
    monkeypatch.undo()
    assert domain.qemu.state() == before


def test_spread_of_a_group_is_known_from_the_start_of_its_jobs(tmp_path: Path) -> None:
    group = Group("0123456789ab", (GroupMember("web", UUID, "x"), GroupMember("db", "other", "y")))
    draft = a_backup(1, group=group)
    with Journal(tmp_path) as written:
        written.begin(draft)
        written.moment(draft.time, guest_was_stopped=False)
        before = journal.read(tmp_path, backup_id=draft.id, domain_uuid=UUID)
        written.started(replace(draft, frozen_ms=7, group=replace(group, spread_ms=12.5)))
    after = journal.read(tmp_path, backup_id=draft.id, domain_uuid=UUID)
    assert before is not None
    assert after is not None
    assert (before.draft.group, after.draft.group) == (group, replace(group, spread_ms=12.5))
