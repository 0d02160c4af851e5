"""Whose a directory is is what the kernel says: a process that lives, and nobody after its end, however it ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vbackup.errors import BusyError, StorageError
from vbackup.images import mount_lock

HOLD = """\
import sys
from pathlib import Path
from vbackup.images import mount_lock
with mount_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the directory until it gets a line."""
    argv = [sys.executable, "-c", HOLD, os.fspath(directory)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_holder_is_the_process_that_has_it(tmp_path: Path) -> None:
    assert mount_lock.holder(tmp_path) is None
    with other(tmp_path) as process:
        assert mount_lock.holder(tmp_path) == process.pid
        with pytest.raises(BusyError, match=rf"process {process.pid}\)\. To end that: vbackup umount {tmp_path}\.$"):
            mount_lock.held(tmp_path).__enter__()
        process.communicate("\n", timeout=10)
        assert mount_lock.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_command_in_a_message_is_one_for_a_shell(tmp_path: Path) -> None:
    directory = tmp_path / "it's a mount"
    directory.mkdir()
    with other(directory), pytest.raises(BusyError) as caught:
        mount_lock.held(directory).__enter__()
    *_, path = shlex.split(str(caught.value).rpartition("end that: ")[2].removesuffix("."))
    assert path == str(directory)


def test_directory_inside_of_a_mount_is_refused(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        for directory in (tmp_path / "sub", tmp_path / "sub" / "m"):
            with pytest.raises(BusyError, match=rf"is inside of {tmp_path}, where .*process {process.pid}"):
                mount_lock.refuse_inside(directory)
        mount_lock.refuse_inside(tmp_path)
    (tmp_path / mount_lock.NAME).touch()  # of a mount that was killed
    mount_lock.refuse_inside(tmp_path / "sub")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_else_cannot_refuse_a_place_in_a_shared_directory(tmp_path: Path) -> None:
    with other(tmp_path):
        os.chown(tmp_path / mount_lock.NAME, 65534, 65534)
        mount_lock.refuse_inside(tmp_path / "sub")


def test_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with other(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert (tmp_path / mount_lock.NAME).exists()
    assert mount_lock.holder(tmp_path) is None
    with mount_lock.held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_number_in_the_file_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / mount_lock.NAME).write_text("1\n")
    assert mount_lock.holder(tmp_path) is None


def test_fifo_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / mount_lock.NAME)
    with pytest.raises(StorageError, match="a FIFO"):
        mount_lock.holder(tmp_path)
    with pytest.raises(StorageError, match="a FIFO"):
        mount_lock.held(tmp_path).__enter__()
