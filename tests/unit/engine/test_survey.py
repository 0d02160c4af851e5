"""What the plan of a backup is made from: in an order that a job cannot spoil, looked at twice, with its reasons."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.builders import NOON, UUID, Recorder
from tests.unit.fake_domain import FakeDomain, partial, run
from vbackup import machine
from vbackup.engine import foreign_jobs, leftovers, underlay
from vbackup.errors import BusyError, DiskBusyError
from vbackup.model import Backup, HostIdentity, Level
from vbackup.repository import manifest, standbys
from vbackup.repository.repository import Repository
from vbackup.repository.standbys import Record


def test_user_reads_what_each_disk_starts_from_and_why(domain: FakeDomain, repo: Repository) -> None:
    one, recorder = run(domain, repo), Recorder()
    domain.qemu.bitmaps(domain.qemu.top("virtio-disk1")).clear()
    run(domain, repo, recorder)
    steps = [step for step in recorder.steps if step.startswith("Disk ")]
    assert steps[0] == f"Disk vda: incremental, changes since {one.id}."
    assert steps[1].startswith(f"Disk vdb: full, checkpoint {one.id} is gone: ")


def test_nodes_are_asked_for_after_it_is_known_that_no_job_changes_them(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        domain.qemu.sent.clear()
        raise DiskBusyError("vda", "commit", "job", by_libvirt=False)

    monkeypatch.setattr(foreign_jobs, "refuse_busy", refuse)
    monkeypatch.setattr(leftovers, "remove_uncommitted", lambda *_: pytest.fail("the bitmaps were looked at before"))
    with pytest.raises(DiskBusyError):
        run(domain, repo)
    assert domain.qemu.sent == []


def test_damaged_results_of_audits_cost_one_full_of_each_disk(domain: FakeDomain, repo: Repository) -> None:
    one, recorder = run(domain, repo), Recorder()
    path = repo.path / one.domain_uuid / "audit.json"
    path.write_text('{"schema": "vbackup.audited/1", "disks": [{"dev": "vda", "ti')
    two = run(domain, repo, recorder)
    assert [image.level for image in two.disks] == [Level.FULL] * len(two.disks)
    assert all("audit.json is damaged" in image.reason for image in two.disks)
    assert any("audit.json cannot be read" in warning for warning in recorder.warnings)
    again = run(domain, repo, recorder)
    assert {image.base for image in again.disks} == {two.id}
    assert len([warning for warning in recorder.warnings if "audit.json" in warning]) == 1


def test_file_below_that_is_changed_at_the_moment_costs_the_backup(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = domain.qemu.state()
    monkeypatch.setattr(underlay, "changed", lambda *_: "/images/base.qcow2")
    with pytest.raises(BusyError, match=r"Disk vda: /images/base\.qcow2 was changed while the backup began"):
        run(domain, repo)
    assert (domain.qemu.state(), partial(repo)) == (before, [])


def test_backup_that_does_not_start_from_the_newest_of_another_host_is_told(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(host: HostIdentity, **request: Any) -> list[str]:
        monkeypatch.setattr(machine, "this_host", lambda: host)
        recorder = Recorder()
        run(domain, repo, recorder, **request)
        return [warning for warning in recorder.warnings if "was made on host" in warning]

    here, there = HostIdentity("a", "1" * 32), HostIdentity("b", "2" * 32)
    assert warnings(here) == []
    assert warnings(there) == []  # it migrated: an incremental
    assert len(warnings(here, level=Level.FULL)) == 1
    assert warnings(HostIdentity("a.example.com", None), level=Level.FULL) == []  # reached from elsewhere


def test_standby_is_not_taken_for_a_copy_that_needs_a_new_uuid(
    domain: FakeDomain, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(domain, repo)
    standbys.put(repo.path / UUID, Record("qemu+ssh://hv2/system", Path("/standby"), taken_over=NOON))
    monkeypatch.setattr(machine, "this_host", lambda: HostIdentity("b", "2" * 32))
    recorder = Recorder()
    run(domain, repo, recorder, level=Level.FULL)
    assert "UUID" not in " ".join(recorder.warnings)


# --full-every

DAY_S = 86400.0
MONTH_S = 30 * DAY_S


def age(repo: Repository, one: Backup, days: float) -> None:
    """Let the backup have been made so many days earlier."""
    path = repo.directory(one.domain_uuid, one.id) / "manifest.json"
    path.write_text(manifest.dump(replace(one, time=one.time - timedelta(days=days))))


def test_full_is_made_when_the_newest_one_is_too_old(domain: FakeDomain, repo: Repository) -> None:
    one = run(domain, repo, full_every_s=MONTH_S)
    age(repo, one, 29.9)
    two = run(domain, repo, full_every_s=MONTH_S)
    assert {image.base for image in two.disks} == {one.id}
    assert {image.reason for image in two.disks} == {f"changes since {one.id}"}
    recorder = Recorder()
    due = run(domain, repo, recorder, full_every_s=29 * DAY_S)
    assert due.level is Level.FULL
    assert {image.level for image in due.disks} == {Level.FULL}
    assert {image.reason for image in due.disks} == {f"the newest full, {one.id}, is older than 29 d"}
    assert f"Disk vda: full, the newest full, {one.id}, is older than 29 d." in recorder.steps
    after = run(domain, repo, full_every_s=29 * DAY_S)
    assert {image.base for image in after.disks} == {due.id}


def test_full_that_is_late_for_one_disk_is_one_of_all(domain: FakeDomain, repo: Repository) -> None:
    age(repo, run(domain, repo), 31)
    only = run(domain, repo, level=Level.FULL, disks=("vda",))
    assert [image.dev for image in only.disks] == ["vda"]
    assert run(domain, repo, full_every_s=MONTH_S, disks=("vda",)).level is Level.INCREMENTAL
    both = run(domain, repo, full_every_s=MONTH_S)
    assert [image.level for image in both.disks] == [Level.FULL, Level.FULL]


def test_full_of_the_future_is_not_too_old(domain: FakeDomain, repo: Repository) -> None:
    age(repo, run(domain, repo), -400)
    assert run(domain, repo, full_every_s=DAY_S).level is Level.INCREMENTAL


def test_other_levels_are_as_they_were_asked_for(domain: FakeDomain, repo: Repository) -> None:
    age(repo, run(domain, repo), 31)
    assert run(domain, repo, level=Level.DIFFERENTIAL, full_every_s=MONTH_S).level is Level.DIFFERENTIAL
