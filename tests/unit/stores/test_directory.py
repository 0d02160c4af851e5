"""A directory as a store: what a contract for all stores does not say."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from vbackup import immutable
from vbackup.errors import NoSpaceError, StorageError
from vbackup.stores.directory import DirectoryStore
from vbackup.stores.store import Deletion


def put(store: DirectoryStore, key: str, data: bytes = b"x") -> bool:
    return store.put_new(key, io.BytesIO(data), len(data))


def test_modes_and_no_remains(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    put(store, "a/b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a" / "b").stat().st_nlink == 1
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_without_hard_links_a_rename_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    store = DirectoryStore(tmp_path)
    assert put(store, "a/b", b"first")
    assert not put(store, "a/b", b"second")
    (tmp_path / "a" / "b").unlink()
    assert put(store, "a/b", b"third")


def test_remains_of_dead_runs_are_removed_after_a_day(tmp_path: Path) -> None:
    incoming = tmp_path / ".incoming"
    incoming.mkdir()
    for name, age_s in (("old", 25 * 3600), ("new", 60)):
        (incoming / name).write_bytes(b"x")
        os.utime(incoming / name, (time.time() - age_s,) * 2)
    put(DirectoryStore(tmp_path), "a/b")
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_incoming_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """A disk that somebody has prepared must not let old files of this machine be removed."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "old").write_bytes(b"x")
    os.utime(outside / "old", (0, 0))
    (target / ".incoming").symlink_to(outside)
    with pytest.raises(StorageError, match="symbolic link"):
        put(DirectoryStore(target), "a/b")
    assert [path.name for path in outside.iterdir()] == ["old"]


def test_directories_that_a_delete_has_removed_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def removed_first(source: Path, name: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        name.parent.rmdir()
        name.parent.parent.rmdir()
        link(source, name)

    monkeypatch.setattr(os, "link", removed_first)
    old = os.umask(0o022)
    try:
        assert put(DirectoryStore(tmp_path), "a/b/c")
    finally:
        os.umask(old)
    assert {(tmp_path / "a").stat().st_mode & 0o777, (tmp_path / "a/b").stat().st_mode & 0o777} == {0o700}


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_bytes(b"secret")
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").symlink_to(outside)
    (target / "c").symlink_to(outside / "b")
    store = DirectoryStore(target)
    with pytest.raises(StorageError, match="symbolic link"):
        put(store, "a/c")
    with pytest.raises(StorageError, match="symbolic link"):
        next(store.get("a/b"))
    with pytest.raises(StorageError):
        next(store.get("c"))
    assert list(store.list("")) == []
    assert store.size("c") is None


def test_full_disk_is_no_space_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError):
        put(store, "a/b")
    assert list((tmp_path / ".incoming").iterdir()) == []
    assert list(store.list("")) == []


def test_forbidden_deletion_is_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    put(store, "a/b")

    def immutable(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "unlink", immutable)
    assert store.delete("a/b") is Deletion.KEPT


def test_deletion_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    put(store, "a/b")
    put(store, "a/c")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()))
    assert store.delete("a/b") is Deletion.DELETED
    assert synced == [tmp_path / "a"]


def test_directories_without_end_are_not_walked(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    put(store, "a/b/c")
    deep = tmp_path / "a" / "/".join("d" * 40)
    deep.mkdir(parents=True)
    (deep / "e").write_bytes(b"x")
    assert [each.key for each in store.list("")] == ["a/b/c"]


def test_directories_that_become_empty_go(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    put(store, "a/b/c")
    put(store, "a/d")
    store.delete("a/b/c")
    assert not (tmp_path / "a" / "b").exists()
    store.delete("a/d")
    assert not (tmp_path / "a").exists()
    assert tmp_path.exists()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A directory on a filesystem with the immutable flag, for a process that may set it."""
    try:
        immutable.refuse_impossible(tmp_path)
    except StorageError as err:
        pytest.skip(str(err))
    yield tmp_path
    subprocess.run(["chattr", "-R", "-i", tmp_path], check=True)


def test_object_that_is_held_stays_until_its_time_is_over(target: Path) -> None:
    store = DirectoryStore(target)
    store.refuse_unholdable()
    now = datetime.now(timezone.utc)
    put(store, "a/b")
    assert store.hold("a/b", now + timedelta(days=3))
    assert not store.hold("a/b", now + timedelta(days=3))
    assert not store.hold("a/b", now)
    assert not store.hold("a/missing", now)
    with pytest.raises(PermissionError):
        (target / "a" / "b").unlink()
    assert store.delete("a/b") is Deletion.KEPT
    assert (target / "a" / "b").read_bytes() == b"x"
    put(store, "a/c")
    assert store.hold("a/c", now - timedelta(seconds=5))
    with pytest.raises(PermissionError):
        (target / "a" / "c").unlink()
    assert store.delete("a/c") is Deletion.DELETED
