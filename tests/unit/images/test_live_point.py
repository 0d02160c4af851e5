"""A daemon that cannot be started again at once is started later, whatever the reason."""

from __future__ import annotations

import errno
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.builders import Recorder
from vbackup.domain.qemu_user import QemuUser
from vbackup.errors import StorageDaemonGoneError, StorageError
from vbackup.images import live_point
from vbackup.images.live_point import LivePoint
from vbackup.qemu.storage_daemon import StorageDaemon


def point(path: Path, reporter: Recorder) -> LivePoint:
    return LivePoint({}, path, user=cast("QemuUser", SimpleNamespace(uid=0, gid=0)), locks=(), reporter=reporter)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), StorageError("No memory.")])
def test_every_failed_start_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    reporter, attempts = Recorder(), list[int]()
    made: Any = point(tmp_path / "live.sock", reporter)

    def start() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise error

    monkeypatch.setattr(made, "_start", start)
    monkeypatch.setattr(made, "_stops_within", lambda _seconds: False)
    assert made._start_again(StorageDaemonGoneError("was killed", ""))
    assert len(attempts) == 3
    assert len(reporter.warnings) == 2
    assert all("goes on trying" in one for one in reporter.warnings)


def test_daemon_that_the_kernel_does_not_start_is_an_error_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_words: object, **_options: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(shutil, "which", str)
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(StorageError, match="Cannot start qemu-storage-daemon"), StorageDaemon(Recorder()):
        pass


def test_socket_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"live\.sock"):
        point(tmp_path / "live.sock", Recorder())._give_to_qemu()


def test_end_of_the_daemons_of_nobody(tmp_path: Path) -> None:
    live_point.end_earlier(tmp_path / "live.sock")
    assert list(tmp_path.iterdir()) == []
