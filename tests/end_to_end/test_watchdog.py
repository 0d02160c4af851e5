"""A real guest that vbackup leaves frozen, because it was killed or hangs, is thawed by the watchdog."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import Daemon, wait_for
from tests.guest import Guest, GuestImage, build, domain_xml, make_disks
from tests.lab import write_qemu_conf
from vbackup.domain import watchdog
from vbackup.domain.passthrough import Passthrough

if TYPE_CHECKING:
    from tests.conftest import Command

#: What a loaded machine may add to a limit.
SLACK_S = 15.0

#: vbackup with a wound: at a command of its choice it strikes itself down.
WOUNDED = """
import os, signal, sys, threading
from vbackup.cli import main
from vbackup.domain.passthrough import Passthrough

moment, signum = sys.argv.pop(1), int(sys.argv.pop(1))
really_execute, really_agent = Passthrough.execute, Passthrough.agent

def strike():
    os.kill(os.getpid(), signum)

def execute(monitor, command, arguments=None, *, fd=None):
    if command == "transaction" and moment == "transaction" and "blockdev-backup" in str(arguments):
        print(really_agent(monitor, "guest-fsfreeze-status", timeout_s=10), flush=True)
        strike()
    return really_execute(monitor, command, arguments, fd=fd)

def agent(monitor, command, *, timeout_s):
    if command == "guest-fsfreeze-freeze" and moment == "freeze sent":
        threading.Timer(0.01, strike).start()
    if command == "guest-ping" and moment == "ping":
        print("ping", flush=True)
    answer = really_agent(monitor, command, timeout_s=timeout_s)
    if command == "guest-fsfreeze-freeze" and moment == "freeze answered":
        print(really_agent(monitor, "guest-fsfreeze-status", timeout_s=10), flush=True)
        strike()
    return answer

Passthrough.execute, Passthrough.agent = execute, agent
sys.exit(main())
"""


def wounded(moment: str, signum: signal.Signals, *arguments: str | Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WOUNDED, moment, str(int(signum)), *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def watchdogs() -> list[int]:
    """The watchdogs of just this tree's vbackup."""
    program = os.fspath(watchdog.PROGRAM).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if program in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    return build(tmp_path_factory.mktemp("image"))


@pytest.fixture
def directory() -> Iterator[Path]:
    """One that QEMU without privileges reaches, and with a short path."""
    path = Path(tempfile.mkdtemp(prefix="vbw-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def uri(_daemon: Daemon) -> str:
    """Of the tests' own libvirtd, which the fixture daemon would empty after each test."""
    return _daemon.uri


@pytest.fixture(scope="module")
def guest(_daemon: Daemon, image: GuestImage) -> Iterator[Guest]:
    """A guest in it, for all tests of this module."""
    directory = Path(tempfile.mkdtemp(prefix="vbw-", dir="/tmp"))
    directory.chmod(0o755)
    reachable = GuestImage(directory / "vmlinuz", directory / "initramfs")
    shutil.copyfile(image.kernel, reachable.kernel)
    shutil.copyfile(image.initramfs, reachable.initramfs)
    serial = directory / "console"
    guest = Guest(_daemon.start(domain_xml("watched", reachable, make_disks(directory), serial=serial)), serial)
    try:
        guest.wait()
        yield guest
    finally:
        guest.machine.destroy()
        shutil.rmtree(directory)


def backup_arguments(uri: str, guest: Guest, repository: Path, *options: str) -> list[str | Path]:
    return ["-c", uri, "backup", guest.machine.name, "-r", repository, "--json", *options]


def seconds_until_thawed(guest: Guest) -> float:
    begun = time.monotonic()
    wait_for(lambda: guest.agent.filesystem_status() == "thawed", "the thaw", timeout_s=60)
    return time.monotonic() - begun


@pytest.mark.parametrize("moment", ["freeze sent", "freeze answered", "transaction"])
def test_guest_of_a_killed_vbackup_is_thawed_at_once(
    uri: str, guest: Guest, command: Command, repository: Path, moment: str
) -> None:
    arguments = backup_arguments(uri, guest, repository, "--freeze-limit", "600")
    process = wounded(moment, signal.SIGKILL, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    assert out == ("" if moment == "freeze sent" else "frozen\n")
    assert seconds_until_thawed(guest) < SLACK_S
    wait_for(lambda: not watchdogs(), "the end of the watchdog")
    again = command(*arguments).document
    assert again["consistency"] == "filesystem"
    assert guest.agent.filesystem_status() == "thawed"
    assert watchdogs() == []


def test_agent_of_a_paused_guest_is_not_waited_for(uri: str, guest: Guest, command: Command, repository: Path) -> None:
    guest.machine.handle.domain.suspend()
    try:
        arguments = backup_arguments(uri, guest, repository)
        refused = command(*arguments, "--quiesce", "required", status=5)
        assert "the domain is paused, so its guest agent cannot answer" in refused.stderr
        done = command(*arguments)
    finally:
        guest.machine.handle.domain.resume()
    assert "The domain is paused, so its guest agent cannot freeze the filesystems" in done.stderr
    assert "does not answer" not in done.stderr
    assert (done.document["consistency"], done.document["frozen_ms"]) == ("crash", 0)


@pytest.mark.parametrize("quiesce", ["auto", "required"])
def test_limit_is_kept_while_vbackup_hangs(
    uri: str, guest: Guest, command: Command, repository: Path, quiesce: str
) -> None:
    before = guest.machine.state()
    arguments = backup_arguments(uri, guest, repository, "--freeze-limit", "2", "--quiesce", quiesce)
    process = wounded("transaction", signal.SIGSTOP, *arguments)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    try:
        assert seconds_until_thawed(guest) < 2 + SLACK_S
        wait_for(lambda: not [pid for pid in watchdogs() if not is_zombie(pid)], "the end of the watchdog")
    finally:
        process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    first, _, document = out.partition("\n")
    assert first == "frozen"
    assert "the 2 s of --freeze-limit expired before QEMU had started the backup" in err
    if quiesce == "auto":
        assert process.returncode == 0, err
        assert json.loads(document)["consistency"] == "crash"
    else:
        assert process.returncode == 5
        assert json.loads(document)["error"] == "QuiesceError"
        assert guest.machine.state() == before
        assert command("list", "-r", repository, "--json").document["backups"] == []
        assert not list(repository.rglob("*.partial"))
    assert watchdogs() == []


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_agent_that_freezes_late_is_thawed(
    uri: str, guest: Guest, command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent sleeps over the freeze and its limit, wakes, and does what it was asked for meanwhile."""
    really = Passthrough.agent
    wake = threading.Timer(3, lambda: guest.obey("killall -CONT qemu-ga"))

    def agent(monitor: Passthrough, name: str, *, timeout_s: int) -> Any:
        if name == "guest-fsfreeze-freeze":
            guest.obey("killall -STOP qemu-ga")
            wake.start()
        return really(monitor, name, timeout_s=timeout_s)

    monkeypatch.setattr(Passthrough, "agent", agent)
    try:
        outcome = command(*backup_arguments(uri, guest, repository, "--freeze-limit", "1"))
    finally:
        wake.join()
    assert outcome.document["consistency"] == "crash"
    assert "could not freeze" in outcome.stderr
    assert guest.agent.filesystem_status() == "thawed"
    assert watchdogs() == []


def test_backup_that_succeeds_or_fails_leaves_no_watchdog(
    uri: str, guest: Guest, command: Command, repository: Path
) -> None:
    done = command(*backup_arguments(uri, guest, repository))
    assert done.document["consistency"] == "filesystem"
    assert watchdogs() == []
    command(*backup_arguments(uri, guest, repository, "--disk", "vdz"), status=5)
    assert watchdogs() == []


@contextlib.contextmanager
def frozen_by_virsh(guest: Guest) -> Iterator[None]:
    """Somebody else has the guest frozen: what vbackup does in the block may not thaw it."""
    assert guest.machine.handle.domain.fsFreeze() > 0
    try:
        yield
        assert guest.agent.filesystem_status() == "frozen"
    finally:
        guest.machine.handle.domain.fsThaw()


@pytest.mark.parametrize("quiesce", ["auto", "required"])
def test_guest_that_somebody_else_froze_is_backed_up_and_stays_frozen(
    uri: str, guest: Guest, command: Command, repository: Path, quiesce: str
) -> None:
    with frozen_by_virsh(guest):
        done = command(*backup_arguments(uri, guest, repository, "--quiesce", quiesce))
    assert (done.document["consistency"], done.document["frozen_ms"]) == ("filesystem", 0)
    assert "Another program had frozen the guest's filesystems" in done.stderr
    assert watchdogs() == []


def test_guest_that_somebody_froze_between_the_look_and_the_freeze_stays_frozen(
    uri: str, guest: Guest, command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent refuses ours in its own words, which differ from version to version."""
    really = Passthrough.agent

    def agent(monitor: Passthrough, name: str, *, timeout_s: int) -> Any:
        if name == "guest-fsfreeze-freeze":
            assert guest.machine.handle.domain.fsFreeze() > 0
        return really(monitor, name, timeout_s=timeout_s)

    monkeypatch.setattr(Passthrough, "agent", agent)
    try:
        done = command(*backup_arguments(uri, guest, repository, "--quiesce", "required"))
        assert guest.agent.filesystem_status() == "frozen"
    finally:
        guest.machine.handle.domain.fsThaw()
    assert done.document["consistency"] == "filesystem"
    assert "Another program had frozen the guest's filesystems" in done.stderr
    assert watchdogs() == []


def test_killed_vbackup_and_its_recovery_leave_a_freeze_of_somebody_else(
    uri: str, guest: Guest, command: Command, repository: Path
) -> None:
    with frozen_by_virsh(guest):
        arguments = backup_arguments(uri, guest, repository)
        process = wounded("transaction", signal.SIGKILL, *arguments)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (-signal.SIGKILL, "frozen\n"), err
        wait_for(lambda: not watchdogs(), "the end of the watchdog")
        assert guest.agent.filesystem_status() == "frozen"
        again = command(*arguments)
    assert again.document["consistency"] == "filesystem"
    assert "frozen, but not by vbackup, which leaves them so" in again.stderr


def test_guest_is_thawed_by_the_next_backup_if_the_watchdog_was_killed_too(
    uri: str, guest: Guest, command: Command, repository: Path
) -> None:
    arguments = backup_arguments(uri, guest, repository, "--freeze-limit", "600")
    process = wounded("transaction", signal.SIGSTOP, *arguments)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    for pid in (*watchdogs(), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert guest.agent.filesystem_status() == "frozen"
    again = command(*arguments)
    assert again.document["consistency"] == "filesystem"
    assert "An interrupted backup had left the guest's filesystems frozen" in again.stderr
    assert guest.agent.filesystem_status() == "thawed"


def test_backups_into_two_repositories_at_once_take_turns_at_freezing(
    uri: str, guest: Guest, command: Command, repository: Path, tmp_path: Path
) -> None:
    command("init", "-r", tmp_path / "other")
    options = ("--quiesce", "required", "--freeze-limit", "60")
    first = wounded("transaction", signal.SIGSTOP, *backup_arguments(uri, guest, repository, *options))
    os.waitid(os.P_PID, first.pid, os.WSTOPPED)
    second = wounded("ping", signal.SIGCONT, *backup_arguments(uri, guest, tmp_path / "other", *options))
    try:
        assert second.stdout is not None
        assert second.stdout.readline() == "ping\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            second.wait(1)  # it fails if it does not wait
        assert guest.agent.filesystem_status() == "frozen"
    finally:
        first.send_signal(signal.SIGCONT)
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out.removeprefix("frozen\n"))["consistency"] == "filesystem"
        assert "frozen" not in err.lower().replace("filesystems were frozen for", "")
    assert guest.agent.filesystem_status() == "thawed"


EMBEDDED_BOOT = """
import sys
from pathlib import Path
from tests.guest import Guest
from tests.lab import Machine
from vbackup.domain.host import Host

uri, xml, serial = sys.argv[1:]
host = Host(uri)
host.connection.defineXML(Path(xml).read_text()).create()
Guest(Machine(host.domain("embedded")), Path(serial)).wait()
"""

EMBEDDED_END = """
import sys
from tests.daemon import wait_for
from tests.guest import Agent
from vbackup.domain.host import Host, libvirt

def status():
    try:
        return agent.filesystem_status()
    except libvirt.libvirtError:
        return None  # a driver that starts says at once that it has the agent, and has it a moment later

domain = Host(sys.argv[1]).domain("embedded").domain
agent = Agent(domain)
try:
    wait_for(status, "an answer of the agent")
    print(status())
finally:
    domain.destroy()
"""


def run_script(script: str, *arguments: str | Path, status: int = 0) -> str:
    argv = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == status, done.stderr
    return done.stdout


def test_guest_of_a_killed_vbackup_is_thawed_where_the_driver_was_in_it(
    image: GuestImage, directory: Path, repository: Path
) -> None:
    """Nobody else could reach the guest while vbackup lived; and a process can have one such driver at a time."""
    write_qemu_conf(directory)
    uri, serial, xml = f"qemu:///embed?root={directory}", directory / "console", directory / "domain.xml"
    xml.write_text(domain_xml("embedded", image, make_disks(directory / "images"), serial=serial))
    run_script(EMBEDDED_BOOT, uri, xml, serial)
    try:
        process = wounded("transaction", signal.SIGKILL, "-c", uri, "backup", "embedded", "-r", repository)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (-signal.SIGKILL, "frozen\n"), err
        ended = time.monotonic()
        wait_for(lambda: not watchdogs(), "the end of the watchdog", timeout_s=60)
        assert time.monotonic() - ended < SLACK_S
    finally:
        assert run_script(EMBEDDED_END, uri) == "thawed\n"
