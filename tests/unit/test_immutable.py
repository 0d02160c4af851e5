"""Files that stay until a time: whatever removes or changes them is refused, and vbackup only after that time."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from vbackup import immutable
from vbackup.errors import StorageError

NOW = datetime.now(timezone.utc)
LATER, BEFORE = NOW + timedelta(days=3), NOW - timedelta(seconds=5)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    try:
        immutable.refuse_impossible(tmp_path)
    except StorageError as err:
        pytest.skip(str(err))
    path = tmp_path / "vda.qcow2"
    path.write_bytes(b"data")
    yield path
    for each in tmp_path.iterdir():
        end_of(each)


def end_of(path: Path) -> None:
    subprocess.run(["chattr", "-i", path], check=True)


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_bytes(b"x"),
        lambda path: path.rename(path.with_name("x")),
        lambda path: os.truncate(path, 1),
    ],
    ids=["remove", "write", "rename", "truncate"],
)
def test_nothing_changes_it(path: Path, change: Callable[..., object]) -> None:
    immutable.make(path, LATER)
    with pytest.raises(PermissionError):
        change(path)
    assert path.read_bytes() == b"data"
    assert immutable.until(path) == LATER.replace(microsecond=0)
    assert not immutable.release(path)
    with pytest.raises(PermissionError):
        os.setxattr(path, "user.vbackup.immutable-until", b"2001-01-01T00:00:00+00:00")


def test_is_released_when_its_time_is_over(path: Path) -> None:
    immutable.make(path, BEFORE)
    with pytest.raises(PermissionError):
        path.unlink()
    assert immutable.release(path)
    assert immutable.until(path) is None
    path.unlink()


def test_flag_of_somebody_else_stays(path: Path) -> None:
    subprocess.run(["chattr", "+i", path], check=True)
    assert immutable.until(path) == immutable.FOR_EVER
    assert not immutable.release(path)


def test_what_is_not_immutable_can_be_removed(path: Path) -> None:
    assert immutable.until(path) is None
    assert immutable.release(path)


@pytest.mark.parametrize(
    ("number", "why"), [(errno.EPERM, "CAP_LINUX_IMMUTABLE"), (errno.ENOTTY, "XFS"), (errno.EIO, "error")]
)
def test_refusal_names_the_reason_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def failing(_fd: int, request: int, _flags: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", failing)
    with pytest.raises(StorageError, match=why):
        immutable.refuse_impossible(tmp_path)
    assert list(tmp_path.iterdir()) == []
