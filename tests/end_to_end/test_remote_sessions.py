"""Pull sessions of domains on another host: what clients read here comes through SSH, and is what the disks held.

The link can break in each phase, and whoever holds it can be killed: the guest goes on, and nothing is left there.
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
from vbackup.sessions.record import LINK_LOST, QEMU_ENDED, WATCHER_ENDED

if TYPE_CHECKING:
    from tests.conftest import Command


class Puller(Vendor):
    """A product on the backup host."""

    def __init__(self, hypervisor: Hypervisor, command: Command) -> None:
        super().__init__(hypervisor, command, hypervisor.images, "web")  # type: ignore[arg-type]
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


def test_network_that_dies(puller: Puller) -> None:
    base = puller.base()
    session = puller.begin()
    puller.hypervisor.pull_cable()
    with subprocess.Popen(["nbdcopy", session["disks"][0]["uri"], "null:"], stderr=subprocess.DEVNULL) as copying:
        begun = time.monotonic()
        puller.machine.write("vda", "write -P 9 10M 8M")
        assert time.monotonic() - begun < 2
        wait_for(puller.has_nothing_left, "the helper's work", timeout_s=40)
        wait_for(lambda: puller.status(session)["state"] == "failed", "the notice here", timeout_s=40)
    assert puller.status(session)["end_reason"] == LINK_LOST
    assert copying.returncode != 0
    puller.hypervisor.plug_cable()
    refused = puller.command("session", "commit", session["id"], "--json", status=6).document
    assert LINK_LOST in refused["message"]
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
    puller.machine.destroy()
    assert "serves only a domain that is running" in puller.begin(status=5)["message"]
