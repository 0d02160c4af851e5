"""A process is identified by its pid, its start and the boot, so a reused pid is no match."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vbackup.errors import ChainError, VbackupError
from vbackup.fields import Fields
from vbackup.hooks.marks import Process
from vbackup.model import BlockDriver
from vbackup.process import open_files, other_users_of, users_of
from vbackup.qemu import qemu_img


def test_process_with_an_odd_name_is_known(tmp_path: Path) -> None:
    path = tmp_path / "a) R (b"
    path.symlink_to("/bin/cat")
    with subprocess.Popen([str(path)], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        assert found is not None
        # The test process started first, perhaps in the same tick.
        this = Process.of(os.getpid())
        assert this is not None
        assert found.start_ticks >= this.start_ticks
        assert found.boot_id == this.boot_id
        assert found.lives


def test_process_that_has_ended_lives_no_more() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        assert found is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not found.lives  # nobody has waited for it yet
    assert not found.lives


def test_identity_is_read_as_it_was_written() -> None:
    this = Process.this()
    document = json.loads(json.dumps(this.document()))
    assert Process.read(Fields(document, "test", ChainError)) == this
    assert (this.pid, this.lives, this.is_of_this_boot) == (os.getpid(), True, True)


@pytest.mark.parametrize("member", ["pid", "start_ticks", "boot_id"])
def test_damaged_identity_is_refused(member: str) -> None:
    document = {**Process.this().document(), member: None}
    with pytest.raises(ChainError, match=member):
        Process.read(Fields(document, "test", ChainError))


def test_reused_pid_is_another_process() -> None:
    this = Process.this()
    earlier = replace(this, start_ticks=this.start_ticks - 1)
    assert not earlier.lives
    assert earlier.is_of_this_boot


def test_process_of_another_boot_does_not_live() -> None:
    other = replace(Process.this(), boot_id="00000000-0000-4000-8000-000000000000")
    assert not other.lives
    assert not other.is_of_this_boot


def test_pid_without_a_process_has_no_identity() -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    assert Process.of(process.pid) is None


def test_users_of_a_file_are_named_by_program_and_pid(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.touch()
    assert users_of(str(path)) == []
    (tmp_path / "link").symlink_to(path)
    with path.open():
        (user,) = users_of(str(tmp_path / "link"))
        assert other_users_of(str(path)) == []
        assert other_users_of(str(path), 1) == [user]
    assert user.endswith(f" (pid {os.getpid()})")


def test_open_files_of_a_process(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for path in (here, elsewhere):
        path.touch()
    identities = [(path.stat().st_dev, path.stat().st_ino) for path in (here, elsewhere)]
    with here.open():
        found = open_files(os.getpid())
    assert found is not None
    assert [one in found for one in identities] == [True, False]
    assert open_files(2**22 + 1) is None


def test_process_is_asked_to_end_only_if_it_is_the_one() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = Process.of(child.pid)
        assert process is not None
        assert not replace(process, start_ticks=process.start_ticks + 1).terminate()
        assert child.poll() is None
        assert process.terminate()
        assert child.wait(timeout=10) == -signal.SIGTERM
    assert not process.terminate()


def test_program_whose_end_would_not_be_seen_is_not_run(tmp_path: Path) -> None:
    """In the process of somebody who uses vbackup.api: with SIGCHLD ignored, each program would end with 0."""
    path = tmp_path / "no image"
    path.write_bytes(b"QFI\xfb")
    earlier = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(VbackupError, match="ignores SIGCHLD"):
            qemu_img.header(path, image_format=BlockDriver.QCOW2)
    finally:
        signal.signal(signal.SIGCHLD, earlier)
