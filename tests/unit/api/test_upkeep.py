"""Backups are looked after by name or UUID, and what is wrong with them is an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.recorded import Recorded
from tests.unit.builders import UUID, Recorder, backup_id, use_libvirt
from vbackup import api
from vbackup.api import Connection, ConsolidateRequest, NoteRequest, ProtectRequest, PruneRequest, Rules, Way
from vbackup.errors import BusyError, ChainError, HostUnreachableError, InterruptedBySignalError, NeededError, Status
from vbackup.operations import boot_test, consolidation, fsck, prune, recovery, repair
from vbackup.operations.prune_merges import Consolidation
from vbackup.operations.recovery import Recovered, Remedy
from vbackup.repository.repository import Repository
from vbackup.stop import Stop


@pytest.fixture
def vb(recorded: Recorded) -> Connection:
    return api.connect(repository=recorded.repository.path)


def name_of(recorded: Recorded) -> str:
    return recorded.backups[0].domain_name


def test_good_backups_are_verified(vb: Connection, recorded: Recorded) -> None:
    recorder = Recorder()
    done = vb.verify(name_of(recorded), reporter=recorder)
    assert (done.damaged, set(done.results)) == ([], {one.id for one in recorded.backups})
    assert recorder.told


def test_damage_is_an_answer_and_not_an_error(vb: Connection, recorded: Recorded) -> None:
    image = recorded.repository.directory(recorded.backups[0].domain_uuid, recorded.backups[0].id) / "vda.qcow2"
    data = bytearray(image.read_bytes())
    data[-4096:] = b"\xee" * 4096
    image.write_bytes(data)
    assert recorded.backups[0].id in vb.verify(name_of(recorded)).damaged


def test_stop_ends_a_verify(vb: Connection, recorded: Recorded) -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(InterruptedBySignalError):
        vb.verify(name_of(recorded), stop=stop)


def test_proofs_pass_the_domain_on(vb: Connection, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    use_libvirt(monkeypatch, "libvirt")
    monkeypatch.setattr(boot_test, "run", lambda request, uuid, **named: asked.append((request, uuid, named["host"])))
    monkeypatch.setattr(fsck, "run", lambda request, uuid, **_named: asked.append((request, uuid)))
    vb.boot_test(name_of(recorded))
    vb.fsck(name_of(recorded), api.FsckRequest(disks=("vda",)))
    uuid = recorded.backups[0].domain_uuid
    assert asked == [(api.BootRequest(), uuid, "libvirt"), (api.FsckRequest(disks=("vda",)), uuid)]


def test_rules_prune_a_domain_by_its_name(filled: Path) -> None:
    vb = api.connect(repository=filled)
    done = vb.prune(PruneRequest("web", Rules(last=1), dry_run=True), way="never")
    assert (done.uuid, len(done.lines)) == (UUID, 2)
    with pytest.raises(NeededError):
        vb.prune(PruneRequest("web", Rules(), remove=(backup_id(1),)), way=Way.NEVER)


def test_way_of_merges_is_passed_on(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(prune, "run", lambda _request, *, consolidator, **_named: seen.append(consolidator))
    monkeypatch.setattr(consolidation, "run", lambda request, **_named: seen.append(request))
    vb = api.connect(repository=filled)
    for way in ("auto", Way.COPY, "never"):
        vb.prune(PruneRequest("web", Rules(last=1)), way=way, max_chain=5)
    assert [isinstance(one, Consolidation) for one in seen] == [True, True, False]
    assert (seen[0].way, seen[1].way, seen[0].max_chain) == (Way.AUTO, Way.COPY, 5)
    vb.consolidate(ConsolidateRequest("web", max_chain=3))
    assert seen[-1] == ConsolidateRequest(UUID, max_chain=3)


def test_protection_and_note_are_of_a_backup(filled: Path) -> None:
    vb = api.connect(repository=filled)
    [changed] = vb.protect(ProtectRequest((backup_id(1),), "web", reason="audit"))
    assert changed.protection is not None
    assert changed.protection.reason == "audit"
    assert vb.note(NoteRequest(backup_id(1), "before the upgrade")).uuid == UUID
    known = vb.record("web", backup_id(1)).condition
    assert (known.note, known.protection) == ("before the upgrade", changed.protection)
    [changed] = vb.protect(ProtectRequest((backup_id(1),), is_protected=False))
    assert changed.protection is None
    with pytest.raises(ChainError):
        vb.note(NoteRequest(backup_id(9), "x", "web"))


# check and repair


def test_trouble_is_an_answer_and_is_repaired_from_a_copy(vb: Connection, recorded: Recorded, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(recorded.repository.path, tmp_path / "copy")
    uuid = recorded.backups[0].domain_uuid
    (recorded.repository.path / uuid / recorded.backups[0].id / "vda.blocks").unlink()
    assert vb.check().status is not Status.DONE
    assert vb.check([name_of(recorded)]).status is not Status.DONE
    tried = vb.repair(dry_run=True, copies=[tmp_path / "copy"])
    assert tried.repairs
    assert vb.check().status is not Status.DONE
    done = vb.repair([name_of(recorded)], copies=[Repository.open(tmp_path / "copy")])
    assert all(one.is_done for one in done.repairs)
    assert (done.failed, vb.check().status) == ({}, Status.DONE)


def test_domain_that_is_busy_does_not_keep_others_from_repair(
    vb: Connection, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = BusyError("Another vbackup is at work.")

    def busy(*_arguments: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(repair, "run", busy)
    recorder = Recorder()
    done = vb.repair(reporter=recorder)
    assert done.failed == {recorded.backups[0].domain_uuid: error}
    assert recorder.warnings == [f"{name_of(recorded)}: Another vbackup is at work."]


def test_interrupted_backups_are_recovered_first(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (filled / UUID / f"{backup_id(7)}.partial").mkdir()
    vb = api.connect(repository=filled)
    use_libvirt(monkeypatch, "libvirt")
    monkeypatch.setattr(repair, "run", lambda *_arguments, **_named: [])
    found = Recovered(backup_id(7), Remedy.UNDO, "it was killed")
    monkeypatch.setattr(recovery, "run", lambda *_arguments, **_named: [found])
    assert [one.what for one in vb.repair(["web"], dry_run=True).repairs] == [
        f"Backup {backup_id(7)} would be undone: it was killed."
    ]

    def unreachable(*_arguments: object, **_named: object) -> None:
        raise HostUnreachableError("qemu:///system", "it is not there")

    monkeypatch.setattr(recovery, "run", unreachable)
    [left] = vb.repair(["web"]).repairs
    assert (left.is_done, "were left" in left.what) == (False, True)


def test_adopted_copy_has_a_new_id(vb: Connection) -> None:
    before = vb.repository.id
    adopted = vb.adopt()
    assert (adopted.former_id, adopted.repository_id) == (before, vb.repository.id)
    assert vb.repository.id != before
