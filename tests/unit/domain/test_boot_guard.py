"""The guard ends a copy's QEMU and removes its directory if vbackup dies, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import wait_for
from vbackup.domain import boot_guard
from vbackup.domain.boot_guard import BootGuard
from vbackup.domain.boot_guard.__main__ import kill
from vbackup.errors import UnsuitableError

COPY, OTHER = "f1234567-0000-4000-8000-000000000001", "f1234567-0000-4000-8000-000000000002"
#: Waits for the end of its standard input while a guard is there.
VBACKUP = """
import sys
from pathlib import Path
from vbackup.domain.boot_guard import BootGuard
with BootGuard(uuid=sys.argv[1], directories=[Path(sys.argv[2])]) as guard:
    print(guard.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "copy"
    made.mkdir()
    (made / "nvram").touch()
    return made


@pytest.fixture
def qemus() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes whose arguments are those of two QEMUs."""
    started = {
        uuid: subprocess.Popen([sys.executable, "-c", "input()", "-uuid", uuid], stdin=subprocess.PIPE)
        for uuid in (COPY, OTHER)
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def test_nothing_is_done_at_the_usual_end(directory: Path, qemus: dict[str, subprocess.Popen[bytes]]) -> None:
    with BootGuard(uuid=COPY, directories=[directory]) as guard:
        pid = guard.pid
    assert not Path(f"/proc/{pid}").exists()
    assert (directory / "nvram").exists()
    assert qemus[COPY].poll() is None


def test_copy_of_a_killed_vbackup_is_ended(directory: Path, qemus: dict[str, subprocess.Popen[bytes]]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", VBACKUP, COPY, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        guard = int(process.stdout.readline())
        os.kill(guard, signal.SIGTERM)  # which it ignores
        assert (directory / "nvram").exists()
        process.kill()
        assert qemus[COPY].wait(30) == -signal.SIGKILL
        wait_for(lambda: not directory.exists(), "the removal of the directory")
        assert qemus[OTHER].poll() is None


def test_copy_that_libvirt_did_not_end_is_ended(directory: Path, qemus: dict[str, subprocess.Popen[bytes]]) -> None:
    other = directory.with_name("tpm")
    (other / "tpm2").mkdir(parents=True)
    with BootGuard(uuid=COPY, directories=[directory, other, directory / "never made"]) as guard:
        guard.act()
    assert qemus[COPY].wait(30) == -signal.SIGKILL
    assert not directory.exists()
    assert not other.exists()


def test_guard_that_was_killed_is_no_trouble(directory: Path) -> None:
    with BootGuard(uuid=COPY, directories=[directory]) as guard:
        os.kill(guard.pid, signal.SIGKILL)
        wait_for(lambda: Path(f"/proc/{guard.pid}/cmdline").read_bytes() == b"", "its end")
    assert directory.exists()


def test_process_that_is_no_qemu_of_the_copy_is_left_alone(qemus: dict[str, subprocess.Popen[bytes]]) -> None:
    assert not kill(qemus[OTHER].pid, COPY)
    assert not kill(2**22 + 1, COPY)
    assert qemus[OTHER].poll() is None


def test_without_a_guard_there_is_no_test(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_guard.sys, "executable", "/nowhere/python")
    with (
        pytest.raises(UnsuitableError, match="/nowhere/python cannot be started"),
        BootGuard(uuid="", directories=[directory]),
    ):
        pass
