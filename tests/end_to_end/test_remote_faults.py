"""Backups over SSH whose link dies, in each phase and in all ways: the guest goes on, and the next is incremental."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end.chains import levels
from tests.end_to_end.test_remote import RemoteChain
from tests.guest import Guest, GuestImage, build, domain_xml, make_disks
from tests.hosts import Hypervisor
from tests.lab import DiskSpec
from vbackup.domain import freeze, host
from vbackup.operations import backup
from vbackup.remote import connection
from vbackup.remote.connection import Connection
from vbackup.repository.journal import Journal

if TYPE_CHECKING:
    from tests.conftest import Command

#: What the guest's writes may wait for; the goal is 100 ms, and a busy machine is slow.
LONGEST_WRITE_S = 0.5
#: How long the guest may stay frozen after the loss: the silence, and the agent's answer.
THAWED_S = 4.0
#: What no backup may leave in QEMU.
STATE = ("nodes", "jobs", "fdsets")
HELPER = "zlib.decompress"  #: in its command line


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence of some seconds is a loss, for libvirt's connection too."""
    limits = {"SILENCE_S": 2.0, "THAW_SILENCE_S": 1.0, "REPLY_SILENCE_S": 4.0, "GRACE_S": 1.0, "BEAT_S": 0.3}
    for name, value in limits.items():
        monkeypatch.setattr(connection, name, value)
    monkeypatch.setattr(host, "KEEPALIVE_INTERVAL_S", 1)
    monkeypatch.setattr(host, "RECONNECT_S", 1.0)
    monkeypatch.setattr(freeze, "THAW_DEADLINE_S", 3.0)


@pytest.fixture
def chain(hypervisor: Hypervisor, command: Command, repository: Path, tmp_path: Path) -> RemoteChain:
    """A machine with two disks that has a full backup, and has changed since."""
    images = hypervisor.images
    specs = [DiskSpec(images / "vda.qcow2", size="32M"), DiskSpec(images / "vdb.qcow2", dev="vdb", size="32M")]
    chain = RemoteChain(hypervisor, command, repository, tmp_path, specs)
    for spec in specs:
        chain.machine.write(spec.dev, "write -P 1 0 16M")
    chain.backup()
    for spec in specs:
        chain.machine.write(spec.dev, "write -P 2 0 8M")
    return chain


@contextmanager
def at(step: str, action: Callable[[], None]) -> Iterator[None]:
    """Call the action once the journal has that step, in the block."""
    original = getattr(Journal, step)

    def then(journal: Journal, *arguments: Any, **more: Any) -> None:
        original(journal, *arguments, **more)
        action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, step, then)
        yield


def kill_ssh(hypervisor: Hypervisor) -> None:
    """That of the link, on the backup host."""
    [made] = [one for one in _CONNECTIONS if not one.is_lost]
    made._process.kill()


def pull_cable(hypervisor: Hypervisor) -> None:
    hypervisor.pull_cable()


def kill_helper(hypervisor: Hypervisor) -> None:
    assert hypervisor.kill(HELPER)


_CONNECTIONS: list[Connection] = []


@pytest.fixture(autouse=True)
def _connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    begin = Connection.begin

    def noted(made: Connection, *arguments: Any, **more: Any) -> Any:
        _CONNECTIONS.append(made)
        return begin(made, *arguments, **more)

    monkeypatch.setattr(Connection, "begin", noted)
    yield
    _CONNECTIONS.clear()


@pytest.mark.parametrize(
    ("step", "lose"),
    [("targets", kill_ssh), ("started", kill_ssh), ("started", kill_helper), ("started", pull_cable)],
)
def test_link_that_is_lost(
    chain: RemoteChain, hypervisor: Hypervisor, step: str, lose: Callable[[Hypervisor], None]
) -> None:
    """Before the transaction, and while the jobs copy."""
    before = chain.machine.state()
    writes = Writes(chain)

    def action() -> None:
        lose(hypervisor)
        writes.start()

    with at(step, action):
        failed = chain.run("--json", "--speed", "1M", status=4)
    writes.stop()
    assert failed.document["code"] in ("LINK_LOST", "HOST_UNREACHABLE")
    assert writes.longest_s < LONGEST_WRITE_S, f"a write of the guest waited for {writes.longest_s:.2f} s"
    wait_for(lambda: not hypervisor.processes(HELPER), "the end of the helper")
    after = chain.machine.state()
    if lose is pull_cable:  # the new bitmaps are left to the next backup
        assert [after[what] for what in STATE] == [before[what] for what in STATE]
    else:
        assert after == before
    assert chain.machine.execute("query-status")["running"]
    hypervisor.plug_cable()
    done = chain.backup()
    assert set(levels(done).values()) == {"incremental"}
    assert {disk["base"] for disk in done["disks"]} == {done["parent"]}


@pytest.mark.parametrize("lose", [kill_ssh, kill_helper])
def test_link_that_is_lost_when_all_is_copied_is_no_loss(
    chain: RemoteChain, hypervisor: Hypervisor, lose: Callable[[Hypervisor], None]
) -> None:
    """All data is here, and the images are on this host: the backup is complete."""
    with at("copied", lambda: lose(hypervisor)):
        done = chain.backup()
    assert set(levels(done).values()) == {"incremental"}
    wait_for(lambda: not hypervisor.processes(HELPER), "the end of the helper")
    assert [chain.machine.state()[what] for what in ("jobs", "fdsets")] == [[], []]
    assert chain.backup()["parent"] == done["id"]


def test_refusals_leave_everything_as_it_is(chain: RemoteChain, hypervisor: Hypervisor) -> None:
    before = chain.machine.state()
    known = hypervisor.hosts.directory / "known_hosts"
    trusted = known.read_text()
    try:
        known.write_text("")
        refused = chain.run(status=4)
        assert "Host key verification failed" in refused.stderr
        other = " ".join((hypervisor.hosts.directory / "other.pub").read_text().split()[:2])
        known.write_text("".join(f"{name} {other}\n" for name in (hypervisor.name, hypervisor.ipv4)))
        refused = chain.run(status=4)
        assert f"the host key of {hypervisor.ipv4} is not the ED25519 key that ssh knows" in refused.stderr
        assert f"({known}, line 2): it has sent SHA256:" in refused.stderr
        assert f"'ssh-keygen -f {known} -R {hypervisor.ipv4}' forgets the old one" in refused.stderr
        assert "@@" not in refused.stderr
    finally:
        known.write_text(trusted)
    with hypervisor.without("python3"):
        refused = chain.run(status=5)
    assert "vbackup's helper cannot run on root@hv1" in refused.stderr
    hypervisor.authorize('restrict,command="virt-ssh-helper qemu:///system"')  # libvirt's own connection works
    refused = chain.run(status=5)
    assert "no command may be forced" in refused.stderr
    hypervisor.authorize("restrict")
    refused = chain.run(status=5)
    assert "'restrict', add 'port-forwarding'" in refused.stderr
    hypervisor.authorize("restrict,port-forwarding")
    assert set(levels(chain.backup()).values()) == {"incremental"}
    chain.hypervisor_uri = f"qemu+ssh://root@{hypervisor.ipv4}:23/system"
    refused = chain.run(status=4)
    assert "Connection refused" in refused.stderr
    assert [chain.machine.state()[what] for what in ("jobs", "fdsets")] == [before["jobs"], before["fdsets"]]


def test_address_port_and_key(chain: RemoteChain, hypervisor: Hypervisor) -> None:
    """Of the URI, with an IPv6 address, and of ssh_config."""
    other = hypervisor.hosts.directory / "other"
    hypervisor.authorize(key="other")
    chain.hypervisor_uri = f"qemu+ssh://root@[{hypervisor.ipv6}]:2222/system?keyfile={other}"
    assert set(levels(chain.backup()).values()) == {"incremental"}
    chain.hypervisor_uri = "qemu+ssh://elsewhere/system"
    more = f"Host elsewhere\n HostName {hypervisor.ipv6}\n Port 2222\n User root\n IdentityFile {other}\n"
    with hypervisor.hosts.configured(more):
        assert set(levels(chain.backup()).values()) == {"incremental"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    return build(tmp_path_factory.mktemp("image"))


@pytest.fixture
def guest(hypervisor: Hypervisor, image: GuestImage) -> Guest:
    directory = hypervisor.images
    reachable = GuestImage(directory / "vmlinuz", directory / "initramfs")
    shutil.copyfile(image.kernel, reachable.kernel)
    shutil.copyfile(image.initramfs, reachable.initramfs)
    serial = directory / "console"
    guest = Guest(hypervisor.start(domain_xml("web", reachable, make_disks(directory), serial=serial)), serial)
    guest.wait()
    return guest


def test_frozen_guest_is_thawed_when_the_link_is_lost(
    guest: Guest, hypervisor: Hypervisor, command: Command, repository: Path
) -> None:
    """By the cable, so that the watchdog on this host cannot reach it; then by the end of ssh."""
    send = backup.send
    backup_of = ("-c", hypervisor.uri, "-q", "backup", "web", "-r", repository)
    assert command(*backup_of, "--json").document["consistency"] == "filesystem"

    for lose in (pull_cable, kill_ssh):
        seconds: list[float] = []

        def lose_and_wait(*_arguments: Any, lose: Any = lose, seconds: list[float] = seconds, **_more: Any) -> None:
            if seconds:  # the jobs that copy are begun later
                send(*_arguments, **_more)
                return
            assert guest.agent.filesystem_status() == "frozen"
            begun = time.monotonic()
            lose(hypervisor)
            wait_for(lambda: guest.agent.filesystem_status() == "thawed", "the thaw")
            seconds.append(time.monotonic() - begun)
            send(*_arguments, **_more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backup, "send", lose_and_wait)
            command(*backup_of, status=4)
        assert seconds
        assert seconds[0] < THAWED_S
        hypervisor.plug_cable()
        wait_for(lambda: not hypervisor.processes(HELPER), "the end of the helper", timeout_s=60)
        # What was sent to libvirt before the loss arrives now, such as a thaw, which must not meet the next freeze. TCP
        # tries again after as long as the cable was out, two minutes at most.
        wait_for(lambda: not hypervisor.processes("virt-ssh-helper"), "the end of the old connections", timeout_s=150)
        assert guest.agent.filesystem_status() == "thawed"
        assert guest.machine.execute("query-status")["running"]
    done = command(*backup_of, "--json").document
    assert done["consistency"] == "filesystem"
    assert set(levels(done).values()) == {"incremental"}


class Writes:
    """A guest that writes all the time, and how long its longest write took."""

    def __init__(self, chain: RemoteChain) -> None:
        self._machine = chain.machine
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.longest_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _write(self) -> None:
        offset = 0
        while not self._is_over.wait(0.05):
            offset = (offset + 64) % (8 << 10)
            begun = time.monotonic()
            self._machine.write("vda", f"write -P 3 {offset}k 4k")
            self.longest_s = max(self.longest_s, time.monotonic() - begun)


@pytest.mark.parametrize("step", ["targets", "started"])
def test_link_that_is_lost_when_the_domain_is_off(chain: RemoteChain, hypervisor: Hypervisor, step: str) -> None:
    """The fault is the link's, once, and not that of the storage daemon, which ends with it."""
    definition = chain.machine.handle.live_xml()
    chain.machine.destroy()
    hypervisor.host.connection.defineXML(definition)
    with at(step, lambda: kill_ssh(hypervisor)):
        failed = chain.run("--json", "--speed", "1M", status=None)
    assert (failed.status, failed.document["code"]) == (4, "LINK_LOST")
    assert "qemu-storage-daemon" not in failed.stderr
    assert failed.stderr.count("has ended") == 1
    assert chain.run("--json").document["level"] == "incremental"
