"""Whether the writer of a journal lives: looked up on this host, told by its last touch elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import wait_for
from vbackup.errors import ChainError
from vbackup.fields import Fields
from vbackup.process import Process
from vbackup.repository import writer
from vbackup.repository.writer import DEAD_S, Pulse, Writer

OTHER_BOOT = "00000000-0000-4000-8000-000000000000"
#: No process of this host has that pid (PID_MAX_LIMIT).
NO_PID = 4194305


@pytest.fixture(scope="module")
def child() -> Iterator[Process]:
    """Another process that lives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        found = Process.of(process.pid)
        assert found is not None
        yield found
        process.communicate(b"\n")


def sign(one: Writer, silent_s: float = 0.0, *, has_lock: bool = False, presume_dead: bool = False) -> str:
    return one.sign_of_life(silent_s, has_lock=has_lock, presume_dead=presume_dead) or "dead"


@pytest.mark.parametrize("has_lock", [False, True], ids=["no lock", "lock"])
def test_process_of_this_host_is_looked_up(child: Process, has_lock: bool) -> None:
    here = Writer.this()
    for silent_s in (0.0, 10 * DEAD_S):  # a process that is stopped, or waits for storage, touches nothing
        found = sign(replace(here, process=child), silent_s, has_lock=has_lock, presume_dead=True)
        assert found == f"process {child.pid} of this host"
        assert sign(replace(here, process=replace(child, pid=NO_PID)), silent_s, has_lock=has_lock) == "dead"
    reused = replace(child, start_ticks=child.start_ticks + 1)
    assert sign(replace(here, process=reused), has_lock=has_lock) == "dead"


def test_earlier_attempt_of_this_process_is_over() -> None:
    assert sign(Writer.this()) == "dead"


def elsewhere(child: Process) -> Writer:
    return Writer(replace(child, boot_id=OTHER_BOOT), "other", "0123", 1)


def container(child: Process) -> Writer:
    return replace(Writer.this(), process=child, pid_namespace=1)


@pytest.mark.parametrize(
    ("make", "where"), [(elsewhere, "on host other"), (container, "in another container of this host")]
)
def test_writer_that_cannot_be_looked_up_lives_as_long_as_it_touches_its_journal(
    child: Process, make: Any, where: str
) -> None:
    one = make(child)
    for silent_s in (-5.0, 0.0, 12.3, DEAD_S - 1):
        found = sign(one, silent_s)
        assert f"process {child.pid} {where}, which was last seen at work {max(0, round(silent_s))} s ago" in found
        assert "'vbackup recover --force' recovers the backup now" in found
        assert "5 minutes after that" in found
    assert sign(one, DEAD_S) == "dead"
    assert sign(one, 0.0, presume_dead=True) == "dead"


def test_lock_of_this_kernel_proves_that_a_container_is_dead_but_not_another_host(child: Process) -> None:
    assert sign(container(child), has_lock=True) == "dead"
    assert sign(elsewhere(child), has_lock=True) != "dead"


def test_writer_ended_with_its_boot_of_this_host(child: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not if it was seen since: the machine id is that of a clone."""
    monkeypatch.setattr(writer, "_uptime_s", lambda: 60.0)
    here = replace(Writer.this(), machine_id="0123")
    monkeypatch.setattr(Writer, "this", lambda: here)
    before = replace(here, process=replace(child, boot_id=OTHER_BOOT))
    assert before.is_of_this_host
    assert sign(before, 61.0) == "dead"
    assert sign(before, 59.0) != "dead"
    nameless = replace(before, machine_id=None)
    assert not nameless.is_of_this_host
    assert sign(nameless, 61.0) != "dead"


def test_writer_of_an_older_version_touches_nothing(child: Process) -> None:
    old = Writer.read(Fields({**replace(child, boot_id=OTHER_BOOT).document()}, "x", ChainError))
    assert old == Writer(replace(child, boot_id=OTHER_BOOT))
    assert sign(old) == "dead"
    assert sign(Writer(child)) == f"process {child.pid} of this host"


def test_document_is_read_back() -> None:
    this = Writer.this()
    for one in (this, replace(this, machine_id=None)):
        assert Writer.read(Fields(one.document(), "x", ChainError)) == one
    assert this.host == os.uname().nodename


def test_pulse_touches_until_it_is_stopped_and_leaves_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BEAT_S", 0.01)
    path = tmp_path / "file"
    with path.open("w") as file:
        pulse = Pulse(file.fileno())
        for _ in range(2):
            os.utime(path, (0, 0))
            wait_for(lambda: path.stat().st_mtime > 0, "a beat")
        pulse.stop()
        os.utime(path, (0, 0))
        file.write("still open")
        file.flush()
        os.utime(path, (0, 0))
    assert (path.stat().st_mtime, path.read_text()) == (0, "still open")


def test_only_another_process_of_this_host_and_namespace_is_asked_to_end() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        process = Process.of(sleeping.pid)
        assert process is not None
        one = replace(Writer.this(), process=process)
        assert not writer.terminate(replace(one, process=replace(process, boot_id=OTHER_BOOT)))
        assert not writer.terminate(replace(one, pid_namespace=1))
        assert not writer.terminate(Writer.this())
        assert sleeping.poll() is None
        assert writer.terminate(one)
        sleeping.wait(timeout=10)
