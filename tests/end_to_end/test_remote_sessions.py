"""Pull sessions of domains on another host: what clients read here comes through SSH, and is what the disks held.

The link can break in each phase, and whoever holds it can be killed: the guest goes on, and nothing is left there. A
domain that is off is served by a storage daemon there, which never outlives the link. What session_begin does otherwise
for such a domain is in session_elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.daemon import wait_for
from tests.end_to_end import movers
from tests.end_to_end.test_sessions import DEVS, Vendor, killed
from tests.hosts import Hypervisor
from tests.lab import compare
from vbackup.domain.host import libvirt
from vbackup.hooks import install
from vbackup.sessions.record import LINK_LOST, QEMU_ENDED, WATCHER_ENDED

if TYPE_CHECKING:
    from tests.conftest import Command


class Puller(Vendor):
    """A product on the backup host."""

    def __init__(self, hypervisor: Hypervisor, command: Command, name: str = "web") -> None:
        directory = hypervisor.images / name
        directory.mkdir()
        directory.chmod(0o755)
        super().__init__(hypervisor, command, directory, name)  # type: ignore[arg-type]
        self.hypervisor = hypervisor
        self.start()
        self.machine.write("vda", "write -P 1 0 8M", "write -P 2 20M 1M")
        self.machine.write("sda", "write -P 3 0 3M", "write -P 5 17M 512")
        self.clean = self.machine.state()

    def status(self, session: dict[str, Any]) -> dict[str, Any]:
        """What becomes of a session, as one finds out without naming its host."""
        return self.command("session", "status", session["id"], "--json").document

    def watcher(self, session: dict[str, Any]) -> int:
        pid: int = self.record(session)["internal"]["watcher"]["pid"]
        return pid

    def base(self) -> dict[str, Any]:
        """Pull and commit a first session."""
        held, session = self.reference(), self.begin()
        self.pull(session)
        self.check(held)
        self.session("commit", session["id"])
        return session

    def has_nothing_left(self) -> bool:
        """Nothing of a session is in QEMU but bitmaps, which the next one removes, and no socket is there."""
        state = self.machine.state()
        is_clean = all(state[name] == self.clean[name] for name in ("nodes", "jobs", "fdsets"))
        if not is_clean or self.machine.execute("query-block-exports"):
            return False
        return "nbd.sock" not in self.hypervisor.run("cat", "/proc/net/unix")

    def write_off(self, *commands: str) -> None:
        """Write to the first disk as any program that has it while the domain is off; QEMU marks its bitmaps."""
        argv = ["qemu-io", "-f", "qcow2", *(word for one in commands for word in ("-c", one))]
        subprocess.run([*argv, str(self.specs[0].path)], check=True, capture_output=True)

    def reference_off(self) -> dict[str, Path]:
        """What the disks hold now, while the domain is off."""
        self._references += 1
        made = {}
        for spec in self.specs:
            made[spec.dev] = path = self.directory / f"reference-{self._references}-{spec.dev}.qcow2"
            argv = ["qemu-img", "convert", "-f", spec.format, "-O", "qcow2", str(spec.path), str(path)]
            subprocess.run(argv, check=True)
        return made

    def hook(self) -> subprocess.CompletedProcess[str]:
        """What libvirt runs before it starts the domain, if the script is installed there."""
        script = self.directory / "hook"
        script.write_bytes(install._script().replace(b'"/var/lib/vbackup', f'"{self.directory}/state'.encode()))
        script.chmod(0o755)
        argv = [*self.hypervisor.inside, script, self.name, "prepare", "begin", "-"]
        return subprocess.run(argv, input=self.defined.handle.live_xml(), capture_output=True, text=True, check=False)

    def daemons(self) -> list[int]:
        return self.hypervisor.processes("qemu-storage-daemon")

    def next_is_incremental(self, base: dict[str, Any]) -> None:
        self.machine.write("vda", "write -P 77 30M 1M", "write -P 78 2M 64k")
        held, session = self.reference(), self.begin()
        assert [disk["level"] for disk in session["disks"]] == ["incremental"] * 2
        assert session["base_checkpoint"] == base["checkpoint"]
        pulled = self.pull(session)
        self.check(held)
        assert sum(pulled.values()) < 24 << 20
        self.session("commit", session["id"])
        wait_for(self.has_nothing_left, "the end of the session")
        wait_for(lambda: not self.hypervisor.run("find", "/run/vbackup", "-name", "nbd.sock"), "the end of the link")


@pytest.fixture
def puller(hypervisor: Hypervisor, command: Command, sockets: Path) -> Puller:
    return Puller(hypervisor, command)


def test_life_of_a_session(puller: Puller, tmp_path: Path) -> None:
    machine = puller.machine
    movers.prepare(tmp_path)
    for turn in range(2):
        held, session = puller.reference(), puller.begin()
        assert [disk["level"] for disk in session["disks"]] == ["full" if turn == 0 else "incremental"] * 2
        for dev in DEVS:  # the guest goes on
            machine.write(dev, f"write -P {turn + 100} {turn}M 2M", f"write -z {turn + 3}M 1M", "discard 8M 1M")
        if turn == 1:  # another product shares the server, and outlives it
            other_held, other = puller.reference(), puller.begin(tracker="other")
            machine.write("vda", "write -P 99 1M 9M")
        pulled = puller.pull(session)
        puller.check(held)
        assert turn == 0 or sum(pulled.values()) < 16 << 20
        assert puller.status(session)["state"] == "open"
        assert puller.session("renew", session["id"], "--ttl", "1h")["state"] == "open"
        changes = puller.session("changes", session["id"], "--disk", "vda")
        assert sum(one["length"] for one in changes["extents"] if one["dirty"]) == pulled["vda"]
        with movers.served(tmp_path, session["id"], sessions=Path(os.environ["VBACKUP_SESSIONS"])) as server:
            status, body = server.ask(server.url("data"))
        assert (status, body == puller.copy("vda").read_bytes()) == (200, True)
        refused = puller.begin(status=8)
        assert session["id"] in refused["message"]
        done = puller.command("session", "commit", session["id"], "--json").document  # the session knows its host
        assert done["state"] == "committed"
        if turn == 1:
            puller.pull(other)
            puller.check(other_held)
            assert puller.session("abort", other["id"])["state"] == "aborted"
    wait_for(puller.has_nothing_left, "the end of the session")
    states = [one["state"] for one in puller.vbackup("session", "list")["sessions"]]
    assert states == ["committed", "committed", "aborted"]
    machine.execute("nbd-server-start", addr={"type": "inet", "data": {"host": "127.0.0.1", "port": "10810"}})
    assert "NBD server for somebody else" in puller.begin(status=8)["message"]
    machine.execute("nbd-server-stop")
    wait_for(puller.has_nothing_left, "the undoing")
    session = puller.begin("--ttl", "2s")
    wait_for(lambda: puller.status(session)["state"] == "expired", "the end of its time")
    wait_for(puller.has_nothing_left, "the end of the session")


def test_life_of_a_session_of_a_domain_that_is_off(puller: Puller, repository: Path) -> None:
    base = puller.base()
    puller.machine.write("vda", "write -P 7 1M 1M", "write -z 3M 1M", "discard 5M 1M")
    puller.machine.write("sda", "write -P 8 1M 1M", "discard 2M 1M")
    held = puller.reference()
    puller.off()
    session = puller.begin()
    assert session["consistency"] == "offline"
    levels = {disk["dev"]: (disk["level"], disk["reason_code"]) for disk in session["disks"]}
    assert levels == {"vda": ("incremental", "base-trusted"), "sda": ("full", "disk-without-bitmaps")}
    assert session["base_checkpoint"] == base["checkpoint"]
    pulled = puller.pull(session)
    assert pulled["vda"] <= (3 << 20) + 65536
    puller.check(held)
    changes = puller.session("changes", session["id"], "--disk", "vda")
    assert sum(one["length"] for one in changes["extents"] if one["dirty"]) == pulled["vda"]
    backup = ("backup", puller.name, "-r", str(repository))
    nobody_else_has_the_disks(puller, session, backup)
    assert puller.status(session)["state"] == "open"
    assert puller.session("renew", session["id"], "--ttl", "1h")["state"] == "open"
    done = puller.command("session", "commit", session["id"], "--json").document  # the session knows its host
    assert done["state"] == "committed"
    assert puller.hook().returncode == 0
    # The chain goes on, also beside backups.
    puller.write_off("write -P 9 30M 1M", "write -z 20M 512k", "discard 0 1M")
    held = puller.reference_off()
    second = puller.begin("--level", "incremental", "--disk", "vda")
    assert second["base_checkpoint"] == session["checkpoint"]
    assert puller.pull(second)["vda"] <= (5 << 19) + 65536
    puller.check({"vda": held["vda"]})
    assert puller.session("abort", second["id"])["state"] == "aborted"
    done = puller.vbackup(*backup)
    puller.command("-q", "restore", puller.name, "-r", repository, "--output", puller.directory / "restored")
    for disk in done["disks"]:
        compare(puller.directory / "restored" / disk["file"], held[disk["dev"]])
    session = puller.begin("--ttl", "1s", tracker="other")
    assert [disk["level"] for disk in session["disks"]] == ["full"] * 2
    wait_for(lambda: puller.status(session)["state"] == "expired", "the end of its time")
    wait_for(lambda: not puller.daemons(), "the end of the daemon")
    puller.defined.handle.domain.create()
    puller.find_nodes()
    puller.machine.write("vda", "write -P 10 31M 1M")
    held, third = puller.reference(), puller.begin()
    assert third["disks"][0]["level"] == "incremental"
    assert puller.pull(third)["vda"] <= (4 << 20) + 65536
    puller.check(held)
    puller.session("commit", third["id"])


def nobody_else_has_the_disks(puller: Puller, session: dict[str, Any], backup: tuple[str, ...]) -> None:
    hook = puller.hook()
    assert (hook.returncode, f"Pull session {session['id']} of vbackup has the disks" in hook.stderr) == (1, True)
    with pytest.raises(libvirt.libvirtError, match="lock"):
        puller.defined.handle.domain.create()
    for spec in puller.specs:
        words = ["qemu-io", "-f", spec.format, "-c", "write 0 512", str(spec.path)]
        assert "lock" in subprocess.run(words, capture_output=True, text=True, check=False).stderr
    for error in (puller.begin(tracker="other", status=8), puller.vbackup(*backup, status=8)):
        assert error["message"].startswith(f"Pull session {session['id']} has the disks of domain")
    assert session["id"] in puller.begin(status=8)["message"]


@pytest.mark.long
def test_what_is_killed_while_the_domain_is_off(puller: Puller) -> None:
    """No image stays locked, and none of them takes the base."""
    base = puller.base()
    puller.off()

    def failed(session: dict[str, Any], reason: str) -> None:
        wait_for(lambda: puller.status(session)["state"] == "failed", "the notice")
        assert puller.status(session)["end_reason"] == reason

    session = puller.begin()
    assert puller.hypervisor.kill("qemu-storage-daemon")
    failed(session, QEMU_ENDED)
    session = puller.begin()
    os.kill(puller.watcher(session), signal.SIGKILL)
    failed(session, WATCHER_ENDED)
    session = puller.begin()
    assert puller.hypervisor.kill("sshd: root@notty")
    failed(session, LINK_LOST)
    session = puller.begin()
    assert puller.hypervisor.kill("import base64,zlib")
    failed(session, LINK_LOST)
    wait_for(lambda: not puller.daemons(), "the kernel's work")
    begin = ("begin", puller.name, "--tracker", "acme")
    for place in (
        ("vbackup.sessions.store:DomainStore.write", "before", 2),  # nobody has written the daemon down
        ("vbackup.engine.session_server:add_exports", "after", 1),
    ):
        killed(puller, place, *begin)
        wait_for(lambda: not puller.daemons(), "the watcher's work")
    session = puller.begin()
    killed(puller, ("vbackup.sessions.store:DomainStore.write_tracker", "before", 1), "commit", session["id"])
    with puller.hypervisor.without("qemu-storage-daemon"):
        refused = puller.begin(status=5)
        assert "could not start qemu-storage-daemon on root@hv1" in refused["message"]
    puller.write_off("write -P 77 30M 1M", "write -z 0 1M")
    held, session = puller.reference_off(), puller.begin()
    assert session["base_checkpoint"] == base["checkpoint"]
    assert puller.pull(session)["vda"] <= (2 << 20) + 65536
    puller.check(held)
    # A change that no lock prevents, as of another host on NFS.
    with puller.specs[1].path.open("r+b") as raw:
        raw.write(b"x")
    error = puller.session("commit", session["id"], status=6)
    assert "sda.raw was changed since" in error["message"]
    wait_for(lambda: not puller.daemons(), "the end of the daemon")
    puller.defined.handle.domain.create()


@pytest.mark.long
def test_network_that_dies(puller: Puller, hypervisor: Hypervisor, command: Command) -> None:
    """The guest of the one domain goes on, and the other, which is off, can be started."""
    off = Puller(hypervisor, command, "db")
    base, base_off = puller.base(), off.base()
    off.off()
    session, session_off = puller.begin(), off.begin()
    puller.hypervisor.pull_cable()
    with subprocess.Popen(["nbdcopy", session["disks"][0]["uri"], "null:"], stderr=subprocess.DEVNULL) as copying:
        begun = time.monotonic()
        puller.machine.write("vda", "write -P 9 10M 8M")
        assert time.monotonic() - begun < 2
        wait_for(puller.has_nothing_left, "the helper's work", timeout_s=40)
        wait_for(lambda: puller.status(session)["state"] == "failed", "the notice here", timeout_s=40)
    assert off.daemons() == []
    assert off.hook().returncode == 0
    wait_for(lambda: off.status(session_off)["state"] == "failed", "the notice here", timeout_s=40)
    assert off.status(session_off)["end_reason"] == LINK_LOST
    assert puller.status(session)["end_reason"] == LINK_LOST
    assert copying.returncode != 0
    puller.hypervisor.plug_cable()
    refused = puller.command("session", "commit", session["id"], "--json", status=6).document
    assert LINK_LOST in refused["message"]
    again = off.begin("--disk", "vda", "--level", "incremental")
    assert again["base_checkpoint"] == base_off["checkpoint"]
    off.session("abort", again["id"])
    puller.next_is_incremental(base)


def test_what_is_killed(puller: Puller) -> None:
    """The session ends, and none of them takes the base."""
    base = puller.base()

    def failed(session: dict[str, Any], reason: str) -> None:
        wait_for(lambda: puller.status(session)["state"] == "failed", "the notice")
        assert puller.status(session)["end_reason"] == reason
        wait_for(puller.has_nothing_left, "the helper's work", timeout_s=40)

    session = puller.begin()
    os.kill(puller.watcher(session), signal.SIGKILL)
    failed(session, WATCHER_ENDED)
    session = puller.begin()
    assert puller.hypervisor.kill("sshd: root@notty")
    failed(session, LINK_LOST)
    # vbackup as it begins a session, whose watcher lives.
    place = ("vbackup.engine.session_server:add_exports", "after", 1)
    killed(puller, place, "begin", "web", "--tracker", "acme")
    wait_for(puller.has_nothing_left, "the watcher's work", timeout_s=40)
    puller.next_is_incremental(base)
    session = puller.begin()
    puller.machine.destroy()
    wait_for(lambda: puller.status(session)["state"] == "failed", "the notice")
    assert puller.status(session)["end_reason"] == QEMU_ENDED


def test_what_is_refused(puller: Puller) -> None:
    listen = ("--listen", "0.0.0.0:10809", "--tls-creds", "/nothing")
    assert "on a unix socket only" in puller.begin(*listen, status=5)["message"]
    before = puller.machine.state()
    refused = puller.command(
        "-c",
        puller.hypervisor.uri,
        "session",
        "begin",
        "web",
        "--tracker",
        "acme",
        "--scratch",
        "/no",
        "--json",
        status=7,
    ).document
    assert "/no" in refused["message"]
    puller.hypervisor.authorize("restrict")
    assert "port-forwarding" in puller.begin(status=5)["message"]
    puller.hypervisor.authorize()
    wait_for(puller.has_nothing_left, "the undoing")
    assert puller.machine.state() == before
