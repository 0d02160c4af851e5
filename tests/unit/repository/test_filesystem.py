"""What is asked of a filesystem, and the copies that are made in it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vbackup.repository import filesystem


def test_nothing_is_left_of_the_question(tmp_path: Path) -> None:
    found = filesystem.abilities(tmp_path)
    assert found.free_bytes > 0
    assert found.links
    assert list(tmp_path.iterdir()) == []


def test_full_filesystem_can_still_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backups are removed from it because it is full."""

    def mkdir(self: Path, mode: int = 0o777) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert not filesystem.abilities(tmp_path).exchanges


def test_exchange_of_directories(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "file").touch()
    if not filesystem.abilities(tmp_path).exchanges:
        pytest.skip("this filesystem does not exchange names")
    filesystem.exchange(one, other)
    assert (other / "file").exists()
    assert list(one.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        filesystem.exchange(one, tmp_path / "missing")


def test_copy_keeps_holes_and_is_private(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 5000)
    seen: list[int] = []
    filesystem.copy(source, target, check=lambda: None, progress=seen.append)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 1 << 20
    assert target.stat().st_mode & 0o777 == 0o600
    assert seen
    with pytest.raises(FileExistsError):
        filesystem.copy(source, target, check=lambda: None, progress=seen.append)


def test_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 5000)

    def check() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        filesystem.copy(source, tmp_path / "target", check=check, progress=lambda _bytes: None)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("is_able", [True, False])
def test_move_to_a_name_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_able: bool) -> None:
    if not is_able:
        monkeypatch.setattr(filesystem, "_renameat2", lambda: None)
    (tmp_path / "one").write_text("one")
    (tmp_path / "taken").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        filesystem.move(tmp_path / "one", tmp_path / "taken")
    filesystem.move(tmp_path / "one", tmp_path / "free")
    assert (tmp_path / "free").read_text() == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "taken"]
    with pytest.raises(FileNotFoundError):
        filesystem.move(tmp_path / "one", tmp_path / "other")
