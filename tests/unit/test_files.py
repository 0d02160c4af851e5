"""Only regular files are opened; files are digested in pieces, and errors of the storage say what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.unit.builders import patience
from vbackup import files
from vbackup.errors import NoSpaceError, StorageError, VbackupError
from vbackup.files import open_regular


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


def test_file_replaced_after_the_look_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    seen = path.lstat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "lstat", lambda _path: seen)
    with patience(), pytest.raises(OSError, match="a FIFO"):
        open_regular(path)
