"""The speed of a backup that another vbackup makes is changed, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fake_qemu import MIB, FakeDisk, FakeQemu, qcow2_header
from tests.unit.builders import FOREIGN, REPOSITORY, backup_id
from vbackup import names
from vbackup.errors import DiskError, MigratingError, NoBackupRunningError, Status
from vbackup.operations import speed
from vbackup.operations.speed import SpeedRequest
from vbackup.qemu import jobs

SIZE_BYTES = 16 * MIB
OURS = {dev: names.Naming(REPOSITORY).job(backup_id(1), dev) for dev in ("vda", "vdb")}
THEIRS = names.Naming(FOREIGN).job(backup_id(2), "vda")


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    """Two repositories' backups, and a job of somebody else."""
    disks = [FakeDisk("virtio-disk0", SIZE_BYTES), FakeDisk("virtio-disk1", SIZE_BYTES, path="/images/vdb.qcow2")]
    with FakeQemu(disks) as made:
        for job_id, alias in (
            (OURS["vda"], "virtio-disk0"),
            (OURS["vdb"], "virtio-disk1"),
            (THEIRS, "virtio-disk0"),
            ("backup-vda", "virtio-disk0"),
        ):
            start(made, tmp_path, job_id, alias)
        yield made


def start(qemu: FakeQemu, directory: Path, job_id: str, alias: str) -> None:
    path = directory / job_id
    path.write_bytes(qcow2_header(SIZE_BYTES))
    target = f"target-{len(qemu.sent)}"
    file = {"driver": "file", "filename": str(path)}
    qemu.execute("blockdev-add", {"driver": "qcow2", "node-name": target, "file": file})
    data = {"job-id": job_id, "device": qemu.top(alias), "target": target, "sync": "full", "speed": 1024}
    qemu.execute("transaction", {"actions": [{"type": "blockdev-backup", "data": data}]})


def change(qemu: FakeQemu, speed_bytes_s: int | None = MIB, **more: object) -> list[str]:
    request = SpeedRequest("web", speed_bytes_s, **more)  # type: ignore[arg-type]
    done = speed.change(qemu, request, domain_name="web")
    assert all(one.before_bytes_s == 1024 for one in done)
    return [f"{one.name.repository_id} {one.name.dev}" for one in done]


def test_backups_of_all_repositories_are_changed_and_no_other_job(qemu: FakeQemu) -> None:
    assert change(qemu) == [f"{REPOSITORY} vda", f"{REPOSITORY} vdb", f"{FOREIGN} vda"]
    assert jobs.speeds(qemu) == {OURS["vda"]: MIB, OURS["vdb"]: MIB, THEIRS: MIB, "backup-vda": 1024}


def test_only_the_repository_that_was_named(qemu: FakeQemu) -> None:
    assert change(qemu, repository_id=FOREIGN) == [f"{FOREIGN} vda"]
    assert jobs.speeds(qemu)[OURS["vda"]] == 1024


def test_only_the_disks_that_were_named(qemu: FakeQemu) -> None:
    assert change(qemu, disks=("vdb",)) == [f"{REPOSITORY} vdb"]
    assert jobs.speeds(qemu)[OURS["vda"]] == 1024


def test_limit_is_taken_away(qemu: FakeQemu) -> None:
    change(qemu, None)
    assert jobs.speeds(qemu)[OURS["vda"]] is None


def test_disk_that_is_not_being_copied_changes_nothing(qemu: FakeQemu) -> None:
    with pytest.raises(DiskError, match=r"vdc: no backup is copying it; disks being copied: vda, vdb"):
        change(qemu, disks=("vda", "vdc"))
    assert set(jobs.speeds(qemu).values()) == {1024}


def test_no_backup_is_told(qemu: FakeQemu) -> None:
    with pytest.raises(NoBackupRunningError, match="to repository 000000000000 is running") as caught:
        change(qemu, repository_id="0" * 12)
    assert caught.value.status == Status.NOT_FOUND


def test_backup_that_ends_meanwhile_is_none(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "set_speed", lambda *_: False)
    with pytest.raises(NoBackupRunningError):
        change(qemu)


def test_domain_that_arrives_by_migration_is_busy_and_no_command_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MigratingError("web", incoming=True)

    monkeypatch.setattr(speed, "Passthrough", lambda _handle: pytest.fail("the monitor was opened"))
    handle = SimpleNamespace(name="web", is_active=lambda: True, refuse_migration=refuse)
    host: Any = SimpleNamespace(domain=lambda _name: handle)
    with pytest.raises(MigratingError) as caught:
        speed.run(SpeedRequest("web", MIB), host=host)
    assert caught.value.status == Status.BUSY


def test_names_of_jobs_are_taken_apart() -> None:
    assert names.parse_job(OURS["vda"]) == names.JobName(REPOSITORY, backup_id(1), "vda")
    for other in ("backup-vda", OURS["vda"] + "-working", names.Naming(REPOSITORY).target_node("vda")):
        assert names.parse_job(other) is None
