"""The hook script as a libvirtd calls it: events of every start and end, refusals, and no harm from a sick host."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import libvirt
import pytest

from tests.daemon import Daemon, wait_for
from tests.end_to_end.test_offline import write
from tests.lab import DiskSpec, Machine, compare, domain_xml
from tests.unit.builders import Recorder
from vbackup.cli import main
from vbackup.hooks import daemons, events, half_restored, marks
from vbackup.hooks.events import Operation
from vbackup.hooks.install import Place, State

if TYPE_CHECKING:
    from tests.conftest import Command

UUID = "f0000000-0000-4000-8000-00000000ab01"
OTHER_UUID = "f0000000-0000-4000-8000-00000000ab02"

START = [Operation.PREPARE, Operation.START, Operation.STARTED]
END = [Operation.STOPPED, Operation.RELEASE]


def start(daemon: Daemon, uuid: str = UUID) -> Machine:
    return daemon.start(domain_xml(f"hook-{uuid[-2:]}", [], top=f"<uuid>{uuid}</uuid>"))


def operations(uuid: str = UUID) -> list[Operation]:
    return [event.operation for event in events.events(uuid)]


def forget() -> None:
    for uuid in (UUID, OTHER_UUID):
        (events.DIRECTORY / f"{uuid}.log").unlink(missing_ok=True)


def remove_if_empty(*directories: Path) -> None:
    for directory in directories:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


@pytest.fixture(scope="module")
def _alone(_daemon: Daemon) -> Iterator[None]:
    """The libvirtds of the other processes with tests, in separate mount namespaces, are left alone.

    SIGHUP would also end what they fork at that moment, and with it the start of a domain.
    """
    find, this = daemons._find, Path("/proc/self/ns/mnt").readlink()

    def find_here() -> Iterator[tuple[str, int]]:
        for name, pid in find():
            with contextlib.suppress(FileNotFoundError):  # it has ended
                if Path(f"/proc/{pid}/ns/mnt").readlink() == this:
                    yield name, pid

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemons, "_find", find_here)
        yield


@pytest.fixture(scope="module")
def _installed(_daemon: Daemon, _alone: None) -> Iterator[None]:
    """A libvirtd that ran without hooks before has seen the script."""
    place = Place()
    if place.state() is not State.ABSENT:
        pytest.skip(f"{place.path} is there and must not be disturbed")
    try:
        assert main(["hooks", "install"]) == 0

        def is_seen() -> bool:
            start(_daemon).destroy()
            return operations()[-1:] == [Operation.RELEASE]

        # Nothing tells when libvirtd has looked.
        wait_for(is_seen, "libvirtd's look for the script")
        yield
    finally:
        _daemon.clear()
        assert main(["hooks", "remove"]) == 0
        forget()
        remove_if_empty(
            half_restored.DIRECTORY, events.DIRECTORY, events.DIRECTORY.parent, marks.DIRECTORY, marks.DIRECTORY.parent
        )


@pytest.fixture(autouse=True)
def _nothing_has_happened(_installed: None, daemon: Daemon) -> Iterator[None]:
    forget()
    yield
    daemon.clear()


# what happened to a domain


def test_start_and_destroy(daemon: Daemon) -> None:
    machine = start(daemon)
    assert operations() == START
    machine.destroy()
    assert operations() == START + END
    assert {event.domain_name for event in events.events(UUID)} == {machine.name}


def test_killed_qemu(daemon: Daemon) -> None:
    machine = start(daemon)
    pid = int(Path(f"/run/libvirt/qemu/{machine.name}.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: operations() == START + END, "the end of the domain")


def test_save_and_restore(daemon: Daemon, tmp_path: Path) -> None:
    machine = start(daemon)
    saved = str(tmp_path / "saved")
    machine.handle.domain.save(saved)
    assert operations() == START + END
    daemon.host.connection.restore(saved)
    # What restore says on stdout would have become the domain's XML.
    assert operations() == [*START, *END, Operation.RESTORE, *START]
    restored = daemon.host.domain(machine.name)
    assert restored.is_active()
    assert restored.uuid == UUID


def test_restart_of_libvirtd(daemon: Daemon) -> None:
    start(daemon)
    daemon.kill()
    daemon.restart()
    daemon.host.reopen()
    wait_for(lambda: operations()[-1] is Operation.RECONNECT, "libvirtd finding the domain again")
    assert operations() == [*START, Operation.RECONNECT]
    assert daemon.host.domain("hook-01").is_active()


def test_two_domains_at_once(daemon: Daemon) -> None:
    started: list[Machine] = []
    threads = [
        threading.Thread(target=lambda uuid=uuid: started.append(start(daemon, uuid)))  # type: ignore[misc]
        for uuid in (UUID, OTHER_UUID)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 2
    assert operations(UUID) == operations(OTHER_UUID) == START


# a sick host


def test_log_that_cannot_be_written(daemon: Daemon) -> None:
    log = events.DIRECTORY / f"{UUID}.log"
    log.mkdir(parents=True)
    try:
        start(daemon).destroy()
        start(daemon, OTHER_UUID)
    finally:
        log.rmdir()
    assert operations(OTHER_UUID) == START


@pytest.fixture
def small_disk(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A filesystem of 256 KiB in the place of the events, where libvirtd sees it: it may have other mounts."""
    pid = (daemon.directory / "libvirtd.pid").read_text().strip()
    within = ["nsenter", f"--mount=/proc/{pid}/ns/mnt"]
    events.DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounted = subprocess.run(
        [*within, "mount", "-t", "tmpfs", "-o", "size=256k", "none", str(events.DIRECTORY)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    path = Path(f"/proc/{pid}/root{events.DIRECTORY}")
    with monkeypatch.context() as patch:
        patch.setattr(events, "DIRECTORY", path)
        yield path
    subprocess.run([*within, "umount", str(events.DIRECTORY)], check=True)


def test_full_disk(daemon: Daemon, small_disk: Path) -> None:
    machine = start(daemon)
    assert operations() == START
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        ballast.write_bytes(bytes(1 << 20))
    other = start(daemon, OTHER_UUID)
    assert other.handle.is_active()
    assert operations(OTHER_UUID) == []
    ballast.unlink()
    for one in (machine, other):
        one.destroy()
    assert operations(OTHER_UUID) == END
    assert operations() == START + END


def test_read_only_disk(daemon: Daemon, small_disk: Path) -> None:
    machine = start(daemon)
    log = small_disk / f"{UUID}.log"
    before = log.read_bytes()
    pid = small_disk.parts[2]
    argv = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "mount", "-o", "remount,ro", "/var/lib/vbackup/events"]
    subprocess.run(argv, check=True)
    machine.destroy()
    assert start(daemon).handle.is_active()
    assert log.read_bytes() == before != b""


# offline backups


def test_start_during_an_offline_backup_is_refused(daemon: Daemon) -> None:
    with marks.offline_mark(UUID):
        with pytest.raises(libvirt.libvirtError) as refusal:
            start(daemon)
        start(daemon, OTHER_UUID)
    assert "vbackup has the disks of domain 'hook-01' open in an offline backup" in str(refusal.value)
    assert f"(process {os.getpid()}, since 20" in str(refusal.value)
    assert "start the domain when the backup has ended." in str(refusal.value)
    assert operations() == [Operation.PREPARE, *END]
    assert events.events(UUID)[0].refused
    start(daemon)
    assert operations() == [Operation.PREPARE, *END, *START]


def test_restore_during_an_offline_backup_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    saved = str(tmp_path / "saved")
    start(daemon).handle.domain.save(saved)
    with (
        marks.offline_mark(UUID),
        pytest.raises(libvirt.libvirtError, match="open in an offline backup"),
    ):
        daemon.host.connection.restore(saved)
    daemon.host.connection.restore(saved)
    assert daemon.host.domain("hook-01").is_active()


def test_mark_of_a_killed_backup_stops_nobody(daemon: Daemon) -> None:
    code = f"from vbackup.hooks.marks import *\nwith offline_mark({UUID!r}): print('marked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "marked\n"
        with pytest.raises(libvirt.libvirtError, match=f"process {process.pid}"):
            start(daemon)
        process.kill()
    mark = marks.DIRECTORY / UUID
    assert mark.exists()
    try:
        assert start(daemon).handle.is_active()
    finally:
        mark.unlink()


# restores in place


#: vbackup that dies while the disks of a domain are written.
DYING = """
import os, signal, sys
from vbackup.cli import main
from vbackup.engine import rollback

copy = rollback._copy
rollback._copy = lambda *given: (copy(*given), os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main())
"""


def test_start_of_a_domain_that_is_half_restored_is_refused_until_the_restore_ends(
    daemon: Daemon, command: Command, repository: Path, images: Path
) -> None:
    spec = DiskSpec(images / "vda.qcow2", size="8M")
    spec.create()
    machine = daemon.define(domain_xml("hook-01", [spec.xml()], top=f"<uuid>{UUID}</uuid>"))
    write(spec.path, "write -P 1 0 2M")
    backup = ("-c", daemon.uri, "-q", "backup", "hook-01", "-r", repository, "--json")
    first = command(*backup).document["id"]
    before = images / "before.qcow2"
    before.write_bytes(spec.path.read_bytes())
    write(spec.path, "write -P 2 1M 1M")
    restore = ["restore", "hook-01", f"--backup={first}", "--in-place", "-r", str(repository)]
    argv = [sys.executable, "-c", DYING, "-c", daemon.uri, *restore]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == -signal.SIGKILL
    with pytest.raises(libvirt.libvirtError) as refusal:
        machine.handle.domain.create()
    said = str(refusal.value)
    assert "A restore in place of domain 'hook-01' was interrupted: its disks (vda) are partly as in the backup" in said
    assert f"Run 'vbackup {' '.join(restore)} -c {shlex.quote(daemon.uri)}', which ends the restore" in said
    command("-c", daemon.uri, "-q", *restore)
    compare(spec.path, before)
    machine.handle.domain.create()
    assert machine.handle.is_active()


def test_start_during_a_restore_in_place_is_refused(daemon: Daemon) -> None:
    with (
        marks.offline_mark(UUID, marks.Work.RESTORE),
        pytest.raises(libvirt.libvirtError, match="vbackup is restoring the disks of domain 'hook-01' in place"),
    ):
        start(daemon)
    start(daemon)


def test_start_of_a_live_restore_is_that_of_its_process_only(daemon: Daemon) -> None:
    begin = f"begin({UUID!r}, ['vda'], domain='x', command='y', reporter=None, work=Work.LIVE)"
    code = f"from vbackup.hooks.half_restored import *\n{begin}"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(libvirt.libvirtError, match=r"A live restore of domain 'hook-01' was interrupted.* Run 'y'"):
        start(daemon)
    half_restored.begin(UUID, ["vda"], domain="x", command="y", reporter=Recorder(), work=half_restored.Work.LIVE)
    start(daemon)
    half_restored.end(UUID)


# the installed script


def test_removed_script_is_called_no_more(daemon: Daemon) -> None:
    place = Place()
    assert place.remove()
    try:
        start(daemon).destroy()
    finally:
        place.install()  # libvirtd knows already that there are hooks
    assert operations() == []
    start(daemon)
    assert operations() == START


def test_other_script_beside_ours_is_called_too(daemon: Daemon, tmp_path: Path) -> None:
    other = Place().path.with_name("60-test-of-vbackup")
    called = tmp_path / "called"
    other.write_text(f"#!/bin/sh\necho $2 >> {called}\n")
    other.chmod(0o755)
    try:
        start(daemon).destroy()
    finally:
        other.unlink()
    assert called.read_text().split() == [operation.value for operation in operations()]
