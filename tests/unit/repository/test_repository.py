"""The record: what is in it is found or told to be broken, what is being made is seen by nobody."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.builders import UUID, backup, commit, incremental
from vbackup.errors import BusyError, DomainNotFoundError, NoSpaceError, StorageError
from vbackup.model import HostIdentity
from vbackup.repository import manifest, repository
from vbackup.repository.repository import Repository

OTHER = "f0000000-0000-4000-8000-000000000002"
ONE = backup(1)
TWO = incremental(2, ONE)


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


def test_scratch_file_is_private_and_gone_with_the_commit(repo: Repository) -> None:
    with repo.lock(UUID), repo.stage(UUID, ONE.id) as stage:
        path = stage.scratch("vda.data")
        assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 0)
        with pytest.raises(StorageError):
            stage.scratch("vda.data")
        (stage.path / "vda.qcow2").touch()
        stage.commit(ONE)
    assert sorted(entry.name for entry in repo.directory(UUID, ONE.id).iterdir()) == ["manifest.json", "vda.qcow2"]


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


def test_error_of_a_backup_is_not_hidden_by_the_removal_of_its_stage(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where a network filesystem had lost its server: everything failed, the removal of the stage too."""

    def lost(path: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error", str(path))

    def work() -> None:
        with repo.lock(UUID), repo.stage(UUID, TWO.id):
            monkeypatch.setattr(Path, "is_symlink", lost)
            raise StorageError("the first error")

    with pytest.raises(StorageError, match="the first error"):
        work()


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


def test_hosts_of_a_domain_are_recorded_beside_its_names(repo: Repository) -> None:
    commit(repo, ONE)
    first, second = HostIdentity("a", "1" * 32), HostIdentity("b", None)
    for host in (first, second, first):
        repo.remember_name(UUID, "new", host)
    document = json.loads((repo.path / UUID / "domain.json").read_text())
    assert document["names"] == ["web", "new"]
    assert document["hosts"] == [{"name": "b", "machine_id": None}, {"name": "a", "machine_id": "1" * 32}]
    repo.remember_name(UUID, "other")
    assert json.loads((repo.path / UUID / "domain.json").read_text())["hosts"] == document["hosts"]


def test_damaged_list_of_hosts_costs_only_the_hosts(repo: Repository) -> None:
    commit(repo, ONE)
    (repo.path / UUID / "domain.json").write_text('{"names": ["web"], "hosts": [7]}')
    repo.remember_name(UUID, "web", HostIdentity("a", None))
    assert json.loads((repo.path / UUID / "domain.json").read_text())["hosts"] == [{"name": "a", "machine_id": None}]


def test_reader_sees_the_old_or_the_new_names(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(repo, ONE)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError):
        repo.remember_name(UUID, "new")
    assert repo.catalogue(UUID).names == ("web",)
    assert [entry.name for entry in (repo.path / UUID).iterdir() if entry.name.startswith(".")] == []


def test_file_is_written_piece_by_piece_or_not_at_all(repo: Repository) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise ValueError

    with repo.lock(UUID), repo.stage(UUID, ONE.id) as stage:
        checks: list[int] = []
        written = stage.write_pieces("initrd", iter([b"ab", b"c"]), check=lambda: checks.append(1))
        assert written == ("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", 3)
        assert (stage.path / "initrd").read_bytes() == b"abc"
        assert len(checks) == 2
        with pytest.raises(ValueError):  # noqa: PT011
            stage.write_pieces("kernel", failing(), check=lambda: None)
        assert not (stage.path / "kernel").exists()
        with pytest.raises(StorageError):
            stage.write_pieces("initrd", iter([b"other"]), check=lambda: None)
        assert (stage.path / "initrd").read_bytes() == b"abc"


# what else is written is somewhere else


def test_path_in_the_repository_is_refused_whatever_leads_there(tmp_path: Path) -> None:
    made = Repository.create(tmp_path / "repo")
    (tmp_path / "link").symlink_to(made.path)
    made.refuse_inside(tmp_path / "repo2", tmp_path, tmp_path / "link" / ".." / "other")
    for path in (made.path, made.path / "new" / "x", tmp_path / "link", tmp_path / "a" / ".." / "repo" / "x"):
        with pytest.raises(StorageError, match="where only backups belong: nothing was written") as caught:
            made.refuse_inside(tmp_path / "good", path)
        assert caught.value.status == 7
