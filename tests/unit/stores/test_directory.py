"""A directory as a store: what a contract for all stores does not say."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

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
    def no_links(*_: object, **__: object) -> None:
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

    def removed_first(*names: str, **options: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        (tmp_path / "a/b").rmdir()
        (tmp_path / "a").rmdir()
        link(*names, **options)

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


#: What reaches a file by its name; between two of them anything can happen.
_CALLS = ("open", "stat", "mkdir", "link", "unlink", "rmdir", "scandir", "rename")


class Intruder:
    """Puts a symbolic link to a directory outside in the place of one of the target, before the call of a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path, outside: Path, number: int) -> None:
        self._place, self._outside, self._left = place, outside, number
        self.is_done = False
        for name in _CALLS:
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            if not self.is_done and not self._left:
                self.is_done = True
                self._swap()
            self._left -= 1
            return call(*args, **options)

        return watched

    def _swap(self) -> None:
        with suppress(FileNotFoundError):
            self._place.rename(self._place.with_name(".taken"))
        self._place.parent.mkdir(exist_ok=True)
        self._place.symlink_to(self._outside)


def _read(store: DirectoryStore, key: str) -> None:
    with suppress(FileNotFoundError):
        assert b"secret" not in b"".join(store.get(key))


#: What is done with a store in which there are a/b/object, and a/b/more.
_DEEDS: dict[str, Callable[[DirectoryStore], object]] = {
    "put": lambda store: put(store, "a/b/new"),
    "put again": lambda store: put(store, "a/b/object"),
    "get": lambda store: _read(store, "a/b/object"),
    "size": lambda store: store.size("a/b/object") in (1, None) or pytest.fail("the size of what is outside"),
    "list": lambda store: [each.key for each in store.list("")].count("a/b/outside") and pytest.fail("it is listed"),
    "list a part": lambda store: (
        [each.key for each in store.list("a/b/")].count("a/b/outside") and pytest.fail("it is listed")
    ),
    "delete": lambda store: store.delete("a/b/object"),
    "hold": lambda store: store.hold("a/b/object", datetime.fromtimestamp(0, tz=timezone.utc)),
}


@pytest.mark.parametrize("place", ["a", "a/b", ".incoming"])
@pytest.mark.parametrize("deed", _DEEDS)
def test_link_that_appears_at_any_moment_leads_nowhere(tmp_path: Path, deed: str, place: str) -> None:
    """Another user may write in the target: nothing outside is read, and nothing there is changed."""
    for number in range(200):
        outside, target = tmp_path / f"outside{number}", tmp_path / f"target{number}"
        for path in (outside, outside / "b"):
            path.mkdir()
            for name in ("object", "outside"):
                (path / name).write_bytes(b"secret")
                os.utime(path / name, (0, 0))
        target.mkdir()
        put(DirectoryStore(target), "a/b/object")
        put(DirectoryStore(target), "a/b/more")
        before = _state(outside)
        with pytest.MonkeyPatch.context() as patched, suppress(StorageError):
            intruder = Intruder(patched, target / place, outside, number)
            _DEEDS[deed](DirectoryStore(target))
        for path in target.rglob("object"):
            immutable.release(path)  # which "hold" may have made immutable
        assert _state(outside) == before
        if not intruder.is_done:
            assert number > 2
            return
    pytest.fail("it never ends")


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    found = [(each, each.lstat()) for each in sorted(path.rglob("*"))]
    return [(os.fspath(each), status.st_ino, status.st_mtime_ns, status.st_nlink) for each, status in found]


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

    monkeypatch.setattr(os, "unlink", immutable)
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
