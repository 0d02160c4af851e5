"""What a watcher is told about its SSH connection, what it says of it, and what it sees through it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.builders import TRACKER_ID, UUID, pull_session
from tests.unit.remote.conftest import SSH, VIRSH, Virsh
from vbackup.errors import (
    BusyError,
    ForwardingError,
    LinkLostError,
    MalformedError,
    RemoteError,
    UnsuitableError,
)
from vbackup.names import Naming
from vbackup.operations.session_watcher import linked
from vbackup.operations.session_watcher.linked import Answer, Forwarded, Order
from vbackup.process import Process
from vbackup.remote.link import Link, Result


def test_order_has_the_server_of_another_session() -> None:
    naming = Naming(TRACKER_ID)
    assert Order.of(UUID, naming, None) == Order(UUID, TRACKER_ID)
    first = pull_session("vda")
    assert first.internals is not None
    object.__setattr__(first.internals, "server", "/there/1")
    object.__setattr__(first.internals, "there", "/there/2")
    order = Order.of(UUID, naming, first)
    assert Order(**order.document()) == order
    assert (order.server, order.shared) == ("/there/1", "/there/2")
    off = Order(UUID, TRACKER_ID, daemon="20261130T120000Z-abcdef")
    assert Order(**off.document()) == off


def said(answer: Answer, capfd: pytest.CaptureFixture[str]) -> Answer:
    pid = os.fork()
    if pid == 0:
        linked.say(answer)
        os._exit(0)
    os.waitpid(pid, 0)
    return Answer.read(capfd.readouterr().out.encode())


def test_answer_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    made = said(Answer(os.getpid(), "/here", "/there", "/server"), capfd)
    assert (made.path, made.there, made.server) == ("/here", "/there", "/server")
    assert made.watcher("hv1") == Process.this()
    refused = said(Answer.of(ForwardingError("hv1", "it is forbidden")), capfd)
    with pytest.raises(ForwardingError, match="hv1: it is forbidden"):
        refused.watcher("hv1")
    failed = said(Answer.of(RemoteError("hv1", "make a socket", "no room")), capfd)
    with pytest.raises(RemoteError, match="on hv1: no room"):
        failed.watcher("hv1")
    for error in (BusyError("The disks are open."), UnsuitableError("It is not installed.")):
        with pytest.raises(type(error), match=f"^{error}$"):
            said(Answer.of(error), capfd).watcher("hv1")
    daemon = Process(7, 8, "boot")
    with_daemon = said(Answer(os.getpid(), "/here", "/there", "/server", "/monitor", daemon), capfd)
    assert (with_daemon.monitor, with_daemon.daemon) == ("/monitor", daemon)
    for nothing in (b"", b"12", b"[]"):
        with pytest.raises(MalformedError):
            Answer.read(nothing)


def test_connection_that_may_not_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made there before is undone by the helper."""
    (tmp_path / "replies").mkdir()
    for name, text in (("virsh", VIRSH.format(directory=tmp_path)), ("ssh", SSH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    virsh = Virsh(tmp_path)
    for command in ("getfd", "closefd"):
        virsh.answer(command, '{"return": {}}')
    uuid = "c7a5fdbd-edaf-9455-926a-d65c16db1810"
    with (
        pytest.raises(ForwardingError, match="Forwarding is not allowed"),
        linked.opened("qemu+ssh://root@hv1/system", Order(uuid, TRACKER_ID)),
    ):
        pytest.fail("it forwards")
    assert virsh.count("getfd") == 1
    assert virsh.count(f'"fdname": "vbackup-{TRACKER_ID}-nbd"') == 2, "it is closed again"


class There:
    """A link."""

    host = "hv1"

    def __init__(self) -> None:
        self.states: list[str] | None = ["01", "03"]
        self.signals: list[int] = []

    def ended(self, pid: int, *, within_s: float) -> Result | None:
        assert pid == 7
        if self.states is None:
            raise LinkLostError("hv1", "has ended")
        return Result(-9, b"", "") if signal.SIGKILL in self.signals else None

    def signal(self, pid: int, signum: int) -> None:
        self.signals.append(signum)

    def socket_states(self, path: str) -> list[str]:
        assert path == "/server"
        if self.states is None:
            raise LinkLostError("hv1", "has ended")
        return self.states

    def free_bytes(self, directory: str) -> int:
        if self.states is None:
            raise LinkLostError("hv1", "has ended")
        if directory == "/missing":
            raise RemoteError("hv1", "use it", "No such file")
        return 1000


def test_what_is_seen_through_it() -> None:
    there = There()
    seen = Forwarded(cast(Link, cast(Any, there)), UUID, Path("/here"), "/there", "/server")
    assert seen.has_server()
    assert seen.is_full("/tmp", 1001)
    assert not seen.is_full("/tmp", 1000)
    assert not seen.is_full("/missing", 1001)
    there.states = ["03"]
    assert not seen.has_server()
    there.states = None
    assert seen.has_server(), "that the link is lost shows elsewhere"
    assert not seen.is_full("/tmp", 1001)


def test_storage_daemon_that_is_seen_and_ended_through_it() -> None:
    there = There()
    seen = Forwarded(
        cast(Link, cast(Any, there)), UUID, Path("/here"), "/there", "/server", Process(7, 8, "boot"), Path("/monitor")
    )
    assert seen.answer().monitor == "/monitor"
    assert seen.has_server()
    seen.end_daemon()
    assert there.signals == [signal.SIGTERM, signal.SIGKILL]
    assert not seen.has_server()
    there.states = None
    assert seen.has_server(), "that the link is lost shows elsewhere"
    seen.end_daemon()
