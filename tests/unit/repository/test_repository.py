"""The record: what is in it is found or told to be broken, what is being made is seen by nobody."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.builders import NOON, UUID, Recorder, backup, backup_id, commit, incremental
from vbackup import files
from vbackup.errors import (
    BusyError,
    ChainError,
    DomainNotFoundError,
    InterruptedBySignalError,
    NoSpaceError,
    StorageError,
    VbackupError,
)
from vbackup.model import Backup, DiskImage, Level
from vbackup.repository import manifest, repository
from vbackup.repository.lock import LockWait
from vbackup.repository.repository import Repository
from vbackup.stop import Stop, on_signals

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE = backup(1)
TWO = incremental(2, ONE)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "repo")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


# init


def test_new_repository_has_its_marker_and_nothing_else(tmp_path: Path) -> None:
    made = Repository.create(tmp_path / "a" / "b")
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["vbackup.json"]
    marker = json.loads((made.path / "vbackup.json").read_text())
    assert marker == {"schema": "vbackup.repository/1", "version": 1, "id": made.id}


def test_empty_directory_becomes_a_repository_of_the_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    made = Repository.create(tmp_path)
    assert mode(made.path) == 0o700


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (Repository.create, "is already a vbackup repository; nothing was changed"),
        (lambda path: (path.mkdir(), (path / "file").touch()), "is not empty"),
        (lambda path: path.touch(), "File exists"),
    ],
    ids=["a repository", "not empty", "a file"],
)
def test_init_changes_nothing_that_is_there(tmp_path: Path, prepare: Callable[[Path], object], said: str) -> None:
    prepare(tmp_path / "repo")
    before = snapshot(tmp_path)
    with pytest.raises(StorageError, match=said):
        Repository.create(tmp_path / "repo")
    assert snapshot(tmp_path) == before


def test_init_below_a_file_is_an_error_of_the_target(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Not a directory"):
        Repository.create(tmp_path / "file" / "repo")


def snapshot(path: Path) -> dict[str, bytes | None]:
    return {str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() else None for entry in path.rglob("*")}


# open


def test_opened_repository_is_the_one_that_was_made(repo: Repository) -> None:
    opened = Repository.open(repo.path)
    assert (opened.id, opened.path) == (repo.id, repo.path)


def test_path_is_made_absolute(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo.path.parent)
    assert Repository.open(Path("repo")).path == repo.path


@pytest.mark.parametrize("where", ["", "no-such-directory", "file", "file/below"])
def test_what_is_no_repository_is_told_with_the_way_out(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"is not a vbackup repository; is the disk mounted\?"):
        Repository.open(tmp_path / where)


def test_newer_format_is_refused(repo: Repository) -> None:
    (repo.path / "vbackup.json").write_text(json.dumps({"version": 2, "id": repo.id, "new": True}))
    with pytest.raises(StorageError, match="has repository format 2, but this vbackup only knows 1"):
        Repository.open(repo.path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"version": 1}',
        b'{"version": "1", "id": "0123456789ab"}',
        b'{"version": 1, "id": "../0123456789"}',
        b'{"version": 1, "id": "0123456789AB"}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b" " * (manifest.MAX_SIZE_BYTES + 1),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_damaged_marker_is_told_as_an_error_of_the_target(repo: Repository, content: bytes) -> None:
    (repo.path / "vbackup.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"vbackup\.json"):
        Repository.open(repo.path)


def test_marker_that_is_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "vbackup.json").mkdir()
    with pytest.raises(StorageError):
        Repository.open(tmp_path)


# modes


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o027])
def test_everything_is_the_owners_alone(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        repo = Repository.create(tmp_path / "repo")
        with repo.lock(UUID), repo.stage(UUID, ONE.id) as stage:
            stage.write("domain.xml", b"<domain/>")
            repo.remember_name(UUID, "web")
            staged = mode(stage.path)
            stage.commit(replace(ONE, disks=()))
    assert staged == 0o700
    assert {mode(path) for path in (repo.path, *repo.path.rglob("*")) if path.is_dir()} == {0o700}
    assert {mode(path) for path in repo.path.rglob("*") if path.is_file()} == {0o600}


# lock


def test_lock_keeps_others_out(repo: Repository) -> None:
    with repo.lock(UUID):
        with pytest.raises(BusyError, match=f"Another vbackup is working on domain {UUID}"), repo.lock(UUID):
            pass
        with repo.lock(OTHER):
            pass


def test_lock_is_free_again_after_its_block(repo: Repository) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"):
            fail_inside(repo)


def fail_inside(repo: Repository) -> None:
    with repo.lock(UUID):
        raise ValueError("inside")


HOLDER = """
import sys
from pathlib import Path
from vbackup.repository.repository import Repository
with Repository.open(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_of_another_process_is_respected_and_ends_with_its_death(repo: Repository) -> None:
    argv = [sys.executable, "-c", HOLDER, os.fspath(repo.path), UUID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError):
            fail_inside(repo)
        holder.kill()
        holder.wait()
        with pytest.raises(ValueError, match="inside"):
            fail_inside(repo)


def test_lock_ends_in_no_child(repo: Repository) -> None:
    """qemu-img and the like must not hold it on."""
    with repo.lock(UUID):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(ValueError, match="inside"):
        fail_inside(repo)
    child.communicate(b"\n")


def test_first_backup_that_failed_leaves_no_directory(repo: Repository) -> None:
    with pytest.raises(ValueError, match="inside"), repo.lock(UUID), repo.stage(UUID, ONE.id):
        raise ValueError("inside")
    assert repo.uuids() == []


def test_first_backup_that_failed_at_its_commit_leaves_no_directory(repo: Repository) -> None:
    """The name is noted before the commit."""

    def work() -> None:
        with repo.lock(UUID), repo.stage(UUID, ONE.id):
            repo.remember_name(UUID, "web")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        work()
    assert repo.uuids() == []


def test_later_backup_that_failed_leaves_the_earlier(repo: Repository) -> None:
    commit(repo, ONE)
    before = snapshot(repo.path)
    with pytest.raises(ValueError, match="inside"), repo.lock(UUID), repo.stage(UUID, TWO.id):
        raise ValueError("inside")
    assert snapshot(repo.path) == before


def test_directory_that_vanished_meanwhile_hides_no_error(repo: Repository) -> None:
    """The disk was unmounted, say."""

    def work() -> None:
        with repo.lock(UUID):
            shutil.rmtree(repo.path / UUID)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        work()


# stage and commit


def test_backup_that_is_being_made_is_seen_by_nobody(repo: Repository) -> None:
    with repo.lock(UUID), repo.stage(UUID, ONE.id) as stage:
        stage.write("manifest.json", manifest.dump(ONE).encode())
        assert stage.path.name == f"{ONE.id}.partial"
        catalogue = Repository.open(repo.path).catalogue(UUID)
        assert (catalogue.history.backups, catalogue.broken) == ((), ())


def test_committed_backup_is_read_back(repo: Repository) -> None:
    path = commit(repo, ONE)
    assert path.name == ONE.id
    catalogue = repo.catalogue(UUID)
    assert (catalogue.history.backups, catalogue.broken, catalogue.names) == ((ONE,), (), ("web",))
    assert repo.taken_ids(UUID) >= {ONE.id}


def test_everything_is_on_the_disk_before_the_backup_has_its_name(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, str]] = []
    rename = Path.rename

    def noting_fsync(path: Path) -> None:
        steps.append(("fsync", path.name))

    def noting_rename(path: Path, target: Path) -> Path:
        steps.append(("rename", target.name))
        return rename(path, target)

    with repo.lock(UUID), repo.stage(UUID, ONE.id) as stage:
        stage.write("vda.qcow2", bytes(ONE.disks[0].file_size_bytes))
        monkeypatch.setattr(repository, "fsync", noting_fsync)
        monkeypatch.setattr(Path, "rename", noting_rename)
        stage.commit(ONE)
    assert sorted(steps[:2]) == [("fsync", "manifest.json"), ("fsync", "vda.qcow2")]
    assert steps[2:] == [("fsync", f"{ONE.id}.partial"), ("rename", ONE.id), ("fsync", UUID)]


def test_backup_that_may_not_have_its_name_is_none(repo: Repository) -> None:
    """It is asked for when all the rest is on the disk."""

    def refuse() -> None:
        assert (repo.stage_path(UUID, TWO.id) / "manifest.json").exists()
        raise BusyError("another member of its group has failed")

    def work() -> None:
        with repo.lock(UUID), repo.stage(UUID, TWO.id) as stage:
            stage.commit(TWO, ready=refuse)

    commit(repo, ONE)
    with pytest.raises(BusyError):
        work()
    assert repo.unfinished(UUID) == []
    assert repo.catalogue(UUID).history.backups == (ONE,)


def test_stage_is_removed_when_the_commit_fails(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work() -> None:
        with repo.lock(UUID), repo.stage(UUID, TWO.id) as stage:
            monkeypatch.setattr(repository, "fsync", full)
            stage.commit(TWO)

    commit(repo, ONE)
    with pytest.raises(NoSpaceError, match="no space left"):
        work()
    assert [entry.name for entry in (repo.path / UUID).iterdir() if "partial" in entry.name] == []
    assert repo.catalogue(UUID).history.backups == (ONE,)


def test_stage_of_an_id_that_is_being_made_is_refused(repo: Repository) -> None:
    with repo.lock(UUID), repo.stage(UUID, ONE.id), pytest.raises(StorageError), repo.stage(UUID, ONE.id):
        pass


def test_further_file_is_written_once_with_its_digest(repo: Repository) -> None:
    with repo.lock(UUID), repo.stage(UUID, ONE.id) as stage:
        assert stage.write("domain.xml", b"abc") == (
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        )
        with pytest.raises(StorageError):
            stage.write("domain.xml", b"other")


def test_what_a_killed_run_left_is_unfinished_and_can_be_taken_up(repo: Repository) -> None:
    commit(repo, ONE)
    partial = repo.path / UUID / f"{TWO.id}.partial"
    partial.mkdir()
    (partial / "vda.qcow2").write_bytes(b"half")
    with repo.lock(UUID):
        assert repo.unfinished(UUID) == [TWO.id]
        with repo.stage(UUID, TWO.id, existing=True) as stage:
            assert stage.path == partial
        assert repo.unfinished(UUID) == []
    assert not partial.exists()
    assert repo.catalogue(UUID).history.backups == (ONE,)


@pytest.mark.parametrize("kind", ["file", "link to a directory", "dangling link"])
def test_what_only_looks_like_a_stage_is_removed_alone(repo: Repository, tmp_path: Path, kind: str) -> None:
    commit(repo, ONE)
    partial = repo.path / UUID / f"{TWO.id}.partial"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    if kind == "file":
        partial.touch()
    else:
        partial.symlink_to(tmp_path / ("precious" if kind == "link to a directory" else "nothing"))
    with repo.lock(UUID), repo.stage(UUID, TWO.id, existing=True):
        pass
    assert not os.path.lexists(partial)
    assert (tmp_path / "precious" / "file").exists()


# reading what is there


def test_domains_are_found_by_their_directories(repo: Repository) -> None:
    commit(repo, ONE)
    (repo.path / "lost+found").mkdir()
    (repo.path / OTHER.upper()).mkdir()
    (repo.path / f"{OTHER}x").mkdir()
    (repo.path / OTHER).touch()
    assert repo.uuids() == [UUID]


def test_backups_are_in_the_order_of_their_commits(repo: Repository) -> None:
    early = replace(TWO, id=backup_id(0, Level.INCREMENTAL), sequence=2)
    commit(repo, ONE)
    commit(repo, early)
    assert [one.id for one in repo.catalogue(UUID).history.backups] == [ONE.id, early.id]


def test_order_does_not_come_from_mtimes(repo: Repository) -> None:
    for one in (ONE, TWO):
        path = commit(repo, one)
        os.utime(path, (0, 1_000_000 - one.sequence))
        os.utime(path / "manifest.json", (0, 1_000_000 - one.sequence))
    assert [one.id for one in repo.catalogue(UUID).history.backups] == [ONE.id, TWO.id]


def test_domain_without_backups_has_an_empty_catalogue(repo: Repository) -> None:
    catalogue = repo.catalogue(UUID)
    assert (catalogue.history.backups, catalogue.broken, catalogue.names) == ((), (), (UUID,))


def broken(repo: Repository) -> dict[str, str]:
    return {one.id: one.reason for one in repo.catalogue(UUID).broken}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "manifest.json").unlink(), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text("{"), "not JSON"),
        (lambda path: os.truncate(path / "manifest.json", 0), "is it truncated"),
        (lambda path: os.truncate(path / "manifest.json", 4096), "is it truncated"),
        (lambda path: [entry.unlink() for entry in path.iterdir()], "No such file"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff"), "cannot be read"),
        (lambda path: ((path / "manifest.json").unlink(), (path / "manifest.json").mkdir()), "cannot be read"),
        (lambda path: (path / "manifest.json").write_text(manifest.dump(TWO)), "it belongs to backup"),
        (lambda path: (path / "manifest.json").write_text(manifest.dump(replace(ONE, domain_uuid=OTHER))), OTHER),
        (lambda path: (path / "manifest.json").write_bytes(b" " * (manifest.MAX_SIZE_BYTES + 1)), "larger"),
    ],
    ids=[
        "missing",
        "torn",
        "empty",
        "filled up with zeros",
        "gone with all else",
        "binary",
        "a directory",
        "another backup's",
        "another domain's",
        "huge",
    ],
)
def test_manifest_that_cannot_be_read_makes_the_backup_broken(
    repo: Repository, damage: Callable[[Path], object], said: str
) -> None:
    damage(commit(repo, ONE))
    assert list(broken(repo)) == [ONE.id]
    assert said in broken(repo)[ONE.id]


def unlink_and_link(path: Path) -> None:
    (path / "vda.qcow2").rename(path / "elsewhere")
    (path / "vda.qcow2").symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "vda.qcow2").unlink(),
        lambda path: (path / "vda.qcow2").write_bytes(b"short"),
        unlink_and_link,
    ],
    ids=["missing", "another size", "a link"],
)
def test_damaged_image_makes_all_that_stand_on_it_broken(repo: Repository, damage: Callable[[Path], object]) -> None:
    path = commit(repo, ONE)
    commit(repo, TWO)
    damage(path)
    assert set(broken(repo)) == {ONE.id, TWO.id}
    assert all(ONE.id in reason for reason in broken(repo).values())


def test_missing_link_makes_those_above_it_broken(repo: Repository) -> None:
    commit(repo, TWO)
    full = replace(backup(3), sequence=3)
    commit(repo, full)
    assert list(broken(repo)) == [TWO.id]
    assert f"backup {ONE.id} is missing" in broken(repo)[TWO.id]


def test_no_link_of_a_long_chain_is_followed_twice(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time to list a chain would grow with the square of its length."""
    newest, length = ONE, 50
    commit(repo, newest)
    for number in range(2, length + 1):
        newest = incremental(number, newest)
        commit(repo, newest)
    looked_at: list[str] = []
    original = Backup.image

    def image(self: Backup, dev: str) -> DiskImage | None:
        looked_at.append(self.id)
        return original(self, dev)

    monkeypatch.setattr(Backup, "image", image)
    assert broken(repo) == {}
    assert len(looked_at) < 4 * length


@pytest.mark.parametrize("name", ["20261123T130000Z-full.partial", "20261123T130000Z-other", "lost+found", "x"])
def test_other_directories_are_no_backups(repo: Repository, name: str) -> None:
    commit(repo, ONE)
    (repo.path / UUID / name).mkdir()
    assert (repo.catalogue(UUID).history.backups, broken(repo)) == ((ONE,), {})


def test_directory_that_is_a_link_is_no_backup(repo: Repository) -> None:
    """It could lead to another repository's."""
    commit(repo, ONE).rename(repo.path / "elsewhere")
    (repo.path / UUID / ONE.id).symlink_to(repo.path / "elsewhere")
    assert repo.catalogue(UUID).history.backups == ()


# which one


def test_newest_backup_is_found_unless_told_otherwise(repo: Repository) -> None:
    commit(repo, ONE)
    commit(repo, TWO)
    catalogue = repo.catalogue(UUID)
    assert catalogue.find() == TWO
    assert catalogue.find(ONE.id) == ONE
    assert catalogue.find(at=ONE.time) == ONE
    assert catalogue.find(at=TWO.time) == TWO


def test_unknown_backup_is_an_error(repo: Repository) -> None:
    commit(repo, ONE)
    catalogue = repo.catalogue(UUID)
    with pytest.raises(ChainError, match="No backup 'x'"):
        catalogue.find("x")
    with pytest.raises(ChainError, match="No backup of this domain was made at"):
        catalogue.find(at=backup(0).time)
    with pytest.raises(ChainError, match="No backup of this domain; "):
        repo.catalogue(OTHER).find()


def test_older_backup_is_never_given_out_for_one_that_cannot_be_read(repo: Repository) -> None:
    commit(repo, ONE)
    (commit(repo, TWO) / "manifest.json").write_text("{")
    catalogue = repo.catalogue(UUID)
    with pytest.raises(ChainError, match=rf"{TWO.id}.*is broken.*{ONE.id}"):
        catalogue.find()
    with pytest.raises(ChainError, match="broken"):
        catalogue.find(TWO.id)
    assert catalogue.find(ONE.id) == ONE
    assert catalogue.find(at=ONE.time) == ONE


def test_newest_of_several_that_cannot_be_read_is_named(repo: Repository) -> None:
    commit(repo, ONE)
    three = incremental(3, TWO)
    for one in (TWO, three):
        (commit(repo, one) / "manifest.json").write_text("{")
    with pytest.raises(ChainError, match=rf"Backup {three.id}, the newest .*is broken.*one before it is {ONE.id}"):
        repo.catalogue(UUID).find()
    with pytest.raises(ChainError, match=rf"Backup {TWO.id}, the newest"):
        repo.catalogue(UUID).find(at=TWO.time)


# domains


def named(repo: Repository, uuid: str, *domain_names: str) -> None:
    commit(repo, replace(ONE, domain_uuid=uuid), name=domain_names[0])
    for name in domain_names[1:]:
        repo.remember_name(uuid, name)


def test_domain_is_found_by_name_and_by_uuid(repo: Repository) -> None:
    named(repo, UUID, "käse & brot")
    assert repo.find("käse & brot") == UUID
    assert repo.find(UUID) == UUID
    assert repo.find(UUID.upper()) == UUID


def test_renamed_domain_is_found_by_all_its_names(repo: Repository) -> None:
    named(repo, UUID, "old", "older", "new")
    assert [repo.find(name) for name in ("old", "older", "new")] == [UUID] * 3
    assert repo.catalogue(UUID).names[-1] == "new"


def test_name_a_domain_has_again_is_the_newest(repo: Repository) -> None:
    named(repo, UUID, "a", "b", "a")
    assert repo.catalogue(UUID).names == ("b", "a")


def test_present_name_beats_a_former_one(repo: Repository) -> None:
    named(repo, UUID, "web", "web-old")
    named(repo, OTHER, "web")
    assert repo.find("web") == OTHER
    assert repo.find("web-old") == UUID


@pytest.mark.parametrize("later", [(), ("x",)], ids=["both have it now", "both had it"])
def test_name_of_several_domains_is_an_error_with_their_uuids(repo: Repository, later: tuple[str, ...]) -> None:
    named(repo, UUID, "web", *later)
    named(repo, OTHER, "web", *later)
    with pytest.raises(DomainNotFoundError, match=f"give the UUID: {UUID}, {OTHER}"):
        repo.find("web")


@pytest.mark.parametrize("name", ["other", "", "..", ".", f"{UUID}/..", "lock"])
def test_unknown_domain_is_an_error(repo: Repository, name: str) -> None:
    named(repo, UUID, "web")
    with pytest.raises(DomainNotFoundError):
        repo.find(name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"names": 7}',
        b'{"names": [7, null]}',
        b"\xff",
        b"[" * 100_000,
        b" " * (manifest.MAX_SIZE_BYTES + 1),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_damaged_list_of_names_costs_only_the_name(repo: Repository, content: bytes) -> None:
    commit(repo, ONE)
    (repo.path / UUID / "domain.json").write_bytes(content)
    assert repo.catalogue(UUID).names == (UUID,)
    assert repo.find(UUID) == UUID
    with pytest.raises(DomainNotFoundError):
        repo.find("web")
    repo.remember_name(UUID, "web")
    assert repo.find("web") == UUID


def test_reader_sees_the_old_or_the_new_names(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(repo, ONE)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError):
        repo.remember_name(UUID, "new")
    assert repo.catalogue(UUID).names == ("web",)
    assert [entry.name for entry in (repo.path / UUID).iterdir() if entry.name.startswith(".")] == []


# helpers


def test_digest_is_sha256_and_tells_its_progress(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    told: list[int] = []
    assert files.digest(tmp_path / "f", check=lambda: None, progress=told.append) == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert told == [3]


def test_digest_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")

    def stop() -> None:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        files.digest(tmp_path / "f", check=stop)


def test_digest_of_a_missing_file_is_an_error_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        files.digest(tmp_path / "f", check=lambda: None)


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, NoSpaceError, "no space left"),
        (errno.EDQUOT, NoSpaceError, "no space left"),
        (errno.EACCES, StorageError, "as a user with permission to do this"),
        (errno.EROFS, StorageError, "mounted read-only"),
        (errno.EIO, StorageError, "Input/output error"),
    ],
)
def test_error_of_the_system_becomes_one_of_the_target(number: int, kind: type[VbackupError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught, files.storage_errors("write /r"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith("Cannot write /r: ")
    assert caught.value.status == 7


# waiting for the lock


def take(repo: Repository, wait: LockWait) -> None:
    with repo.lock(UUID, wait=wait):
        pass


@contextmanager
def holder(repo: Repository) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the domain's lock."""
    argv = [sys.executable, "-c", HOLDER, os.fspath(repo.path), UUID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


class Acting(Recorder):
    """A reporter that does something when it is told of the wait."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act = act

    def step(self, message: str) -> None:
        super().step(message)
        self._act()


def test_free_lock_is_taken_without_a_word(repo: Repository) -> None:
    recorder = Recorder()
    take(repo, LockWait(60.0, recorder, Stop()))
    assert recorder.steps == []


@pytest.mark.parametrize("limit_s", [0.0, 0.1])
def test_wait_that_is_over_is_busy(repo: Repository, limit_s: float) -> None:
    recorder = Recorder()
    with repo.lock(UUID), pytest.raises(BusyError, match="Another vbackup is working"):
        take(repo, LockWait(limit_s, recorder, Stop()))
    told = f"waiting up to {limit_s:g} s for it to end"
    assert [told in step for step in recorder.steps] == ([True] if limit_s else [])


def test_wait_ends_when_the_holder_dies(repo: Repository) -> None:
    """However it dies, its lock goes with it."""
    with holder(repo) as process:
        reporter = Acting(process.kill)
        take(repo, LockWait(60.0, reporter, Stop()))
        assert process.wait() < 0
    assert len(reporter.steps) == 1


def test_wait_ends_when_a_first_backup_failed_and_took_the_directory_along(repo: Repository) -> None:
    with holder(repo) as process:
        assert process.stdin is not None
        take(repo, LockWait(60.0, Acting(process.stdin.close), Stop()))
        assert process.wait() == 0
    assert repo.uuids() == []


def test_signal_ends_the_wait_within_a_second(repo: Repository) -> None:
    with repo.lock(UUID), on_signals(Stop()) as stop:
        begun = time.monotonic()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(InterruptedBySignalError):
            take(repo, LockWait(60.0, Recorder(), stop))
        timer.join()
        assert time.monotonic() - begun < 1.1


# the clock


def test_clock_that_stepped_back_changes_no_order(repo: Repository) -> None:
    """What was made later by a clock that shows an earlier time is still the later one."""
    late = backup(1, id="20261201T120000Z-full", time=NOON + timedelta(days=8))
    early = incremental(2, late)
    early = replace(early, id="20261101T120000Z-incremental", time=NOON - timedelta(days=22))
    for one in (late, early):
        commit(repo, one)
    catalogue = repo.catalogue(UUID)
    assert [one.id for one in catalogue.history.backups] == [late.id, early.id]
    assert catalogue.broken == ()
    assert catalogue.find().id == early.id
    assert [link.backup.id for link in catalogue.history.links(early.id, "vda")] == [early.id, late.id]
    assert catalogue.history.next_sequence == 3
    # The times are those that were recorded: nobody can tell which of them are right.
    assert catalogue.find(at=early.time).id == early.id
    assert catalogue.find(at=late.time).id == early.id
