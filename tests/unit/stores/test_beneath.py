"""Directories below one that is open; tests/unit/stores/test_directory.py swaps them meanwhile."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

from vbackup.errors import StorageError
from vbackup.stores.beneath import Beneath, exists


def test_directories_are_opened_and_made(tmp_path: Path) -> None:
    beneath = Beneath(tmp_path)
    with pytest.raises(FileNotFoundError) as missing, beneath.opened(("a", "b")):
        pass
    assert missing.value.filename == os.fspath(tmp_path / "a" / "b")
    with beneath.opened(("a", "b"), make=True) as fd:
        assert Path(f"/proc/self/fd/{fd}").readlink() == tmp_path / "a" / "b"
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")} == {0o700}
    with beneath.opened(()) as fd:
        assert exists("a", fd)
        assert not exists("c", fd)
    beneath.close()


def test_directory_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    (outside / "a").mkdir(parents=True)
    beneath = Beneath(target)
    with beneath.opened(()):
        pass
    target.rename(tmp_path / "moved")
    target.symlink_to(outside)
    with pytest.raises(FileNotFoundError), beneath.opened(("a",)):
        pass
    beneath.close()
    with pytest.raises(NotADirectoryError), beneath.opened(("a",)):
        pass


def test_links_and_files_are_no_directories(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").touch()
    beneath = Beneath(tmp_path)
    with pytest.raises(StorageError, match="link is a symbolic link, which could lead out"), beneath.opened(("link",)):
        pass
    with pytest.raises(NotADirectoryError), beneath.opened(("file", "x")):
        pass
    beneath.close()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    beneath = Beneath(tmp_path)
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for parts in (("a", "b"), ("a", "c"), ()):
        try:
            with beneath.opened(parts):
                pass
        except FileNotFoundError:
            pass
    beneath.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_close_by_another_thread_waits_for_who_opens_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a descriptor that is closed may be another file by the time that it is used."""
    made, really = Beneath(tmp_path), os.dup
    closing = threading.Thread(target=made.close)

    def dup(fd: int) -> int:
        closing.start()
        closing.join(0.1)
        return really(fd)

    monkeypatch.setattr(os, "dup", dup)
    with made.opened([]) as fd:
        assert os.path.samestat(os.fstat(fd), tmp_path.stat())
    closing.join()
