"""Libvirt's passthrough: its results and exceptions become replies, events and errors of vbackup."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from tests.unit.domain.test_host import DOMAIN, WEB
from vbackup.domain import passthrough
from vbackup.domain.host import DomainHandle, Host
from vbackup.domain.passthrough import Passthrough
from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    FdsNotPassedError,
    HostUnreachableError,
    MalformedError,
    MonitorError,
    QmpError,
    StateLockedError,
    Status,
)

EVENT = "JOB_STATUS_CHANGE"


def libvirt_error(code: int, message: str = "it failed") -> libvirt.libvirtError:
    error = libvirt.libvirtError(message)
    error.err = (code, libvirt.VIR_FROM_QEMU, message, libvirt.VIR_ERR_ERROR, "", None, None, 0, 0)
    return error


class FakeLibvirtQemu:
    """The functions of libvirt_qemu: they return ``reply`` or raise ``error``."""

    def __init__(self) -> None:
        self.reply: Any = '{"return": {}}'
        self.error: Exception | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.callbacks: dict[int, Callable[..., None]] = {}

    def _answer(self, *asked: Any) -> Any:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return self.reply

    def qemuMonitorCommand(self, _domain: Any, request: str, flags: int) -> Any:  # noqa: N802
        assert flags == 0  # QMP
        return self._answer(json.loads(request))

    def qemuMonitorCommandWithFiles(self, _domain: Any, request: str, fds: list[int], flags: int) -> Any:  # noqa: N802
        assert flags == 0
        return self._answer(json.loads(request), fds)

    def qemuAgentCommand(self, _domain: Any, request: str, timeout_s: int, flags: int) -> Any:  # noqa: N802
        assert flags == 0
        return self._answer(json.loads(request), timeout_s)

    def qemuMonitorEventRegister(  # noqa: N802
        self, _connection: Any, _domain: Any, event: str, callback: Callable[..., None], _opaque: Any, _flags: int
    ) -> int:
        assert EVENT in event
        number = len(self.callbacks) + 1
        self.callbacks[number] = callback
        return number

    def qemuMonitorEventDeregister(self, _connection: Any, number: int) -> None:  # noqa: N802
        del self.callbacks[number]

    def emit(self, details: str | None) -> None:
        for callback in list(self.callbacks.values()):
            callback(None, None, EVENT, 1, 2, details, None)


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> FakeLibvirtQemu:
    made = FakeLibvirtQemu()
    monkeypatch.setattr(passthrough, "libvirt_qemu", made)
    return made


@pytest.fixture
def handle(tmp_path: Any) -> Iterator[DomainHandle]:
    (tmp_path / "node.xml").write_text(f"<node>{DOMAIN.format('web', WEB)}</node>")
    with Host(f"test://{tmp_path / 'node.xml'}") as host:
        yield host.domain("web")


@pytest.fixture
def monitor(qemu: FakeLibvirtQemu, handle: DomainHandle) -> Iterator[Passthrough]:
    with Passthrough(handle) as made:
        qemu.asked.clear()
        yield made


# commands


def test_command_and_arguments_are_sent_as_qmp(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.reply = '{"return": [1, 2], "id": "libvirt-7"}'
    assert monitor.execute("job-cancel", {"id": "käse"}) == [1, 2]
    monitor.execute("query-jobs")
    assert qemu.asked == [
        ({"execute": "job-cancel", "arguments": {"id": "käse"}},),
        ({"execute": "query-jobs", "arguments": {}},),
    ]


def test_error_reply_of_qemu_is_raised(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.reply = '{"error": {"class": "GenericError", "desc": "Job not found"}, "id": "libvirt-7"}'
    with pytest.raises(QmpError, match="QEMU refused job-cancel: Job not found"):
        monitor.execute("job-cancel", {"id": "x"})


def test_text_that_is_not_a_reply_is_malformed(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.reply = "OK"
    with pytest.raises(MalformedError):
        monitor.execute("query-jobs")


@pytest.mark.parametrize("reply", [('{"return": {"fd": 1}}', []), '{"return": {"fd": 1}}'])
def test_descriptor_goes_along(monitor: Passthrough, qemu: FakeLibvirtQemu, reply: Any) -> None:
    """What libvirt-python returns has changed over time."""
    qemu.reply = reply
    assert monitor.execute("add-fd", fd=0) == {"fd": 1}
    assert qemu.asked == [({"execute": "add-fd", "arguments": {}}, [0])]
    os.fstat(0)


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT])
def test_libvirt_without_descriptors_has_its_own_error(monitor: Passthrough, qemu: FakeLibvirtQemu, code: int) -> None:
    qemu.error = libvirt_error(code)
    with pytest.raises(FdsNotPassedError):
        monitor.execute("add-fd", fd=0)


def test_remote_host_is_not_even_asked_for_descriptors(
    monitor: Passthrough, qemu: FakeLibvirtQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "passes_fds", False)
    with pytest.raises(FdsNotPassedError):
        monitor.execute("add-fd", fd=0)
    assert qemu.asked == []
    monitor.execute("query-jobs")


def test_failure_of_libvirt_has_its_message(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.error = libvirt_error(libvirt.VIR_ERR_OPERATION_FAILED, "Operation failed: no")
    with pytest.raises(MonitorError, match="libvirt could not execute query-jobs: Operation failed: no") as caught:
        monitor.execute("query-jobs")
    assert type(caught.value) is MonitorError


def test_lock_that_another_operation_holds_is_busy(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.error = libvirt_error(libvirt.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock (held by dump)")
    with pytest.raises(
        StateLockedError, match=r"Domain web is busy .* \(cannot acquire .* \(held by dump\)\)"
    ) as caught:
        monitor.execute("query-jobs")
    assert caught.value.status == Status.BUSY


def test_stopped_domain_is_gone(monitor: Passthrough, qemu: FakeLibvirtQemu, handle: DomainHandle) -> None:
    handle.domain.destroy()
    qemu.error = libvirt_error(libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running")
    with pytest.raises(DomainGoneError) as caught:
        monitor.execute("query-jobs")
    assert caught.value.domain == "web"


def test_domain_whose_qemu_broke_off_is_given_the_time_to_end(
    monitor: Passthrough, qemu: FakeLibvirtQemu, handle: DomainHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket breaks when QEMU crashes; process and domain end after the core dump."""
    monkeypatch.setattr(passthrough, "ENDING_S", 0.01)
    qemu.error = libvirt_error(libvirt.VIR_ERR_SYSTEM_ERROR, "Unable to read from monitor: Connection reset by peer")
    ending = threading.Timer(0.3, handle.domain.destroy)
    ending.start()
    with pytest.raises(DomainGoneError):
        monitor.execute("query-jobs")
    ending.join()


# events


def test_events_come_in_their_order(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    for status in ("created", "running"):
        qemu.emit(json.dumps({"id": "j", "status": status}))
    events = [monitor.next_event(0), monitor.next_event(0)]
    assert [(event.name, event.data["status"]) for event in events if event is not None] == [
        (EVENT, "created"),
        (EVENT, "running"),
    ]
    assert monitor.next_event(0) is None
    assert monitor.next_event(0.001) is None


@pytest.mark.parametrize("details", ["", "{", "[]", "7"])
def test_event_that_cannot_be_read_is_dropped(monitor: Passthrough, qemu: FakeLibvirtQemu, details: str) -> None:
    qemu.emit(details or "{")
    assert monitor.next_event(0) is None


def test_event_without_details_has_no_data(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.emit(None)
    event = monitor.next_event(0)
    assert event is not None
    assert event.data == {}


def test_events_are_not_wanted_any_more_afterwards(qemu: FakeLibvirtQemu, handle: DomainHandle) -> None:
    with Passthrough(handle):
        assert len(qemu.callbacks) == 1
    assert qemu.callbacks == {}


# a connection that breaks


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether the connection is."""
    state = {"alive": True}
    monkeypatch.setattr(Host, "is_alive", lambda _self: state["alive"])
    return state


def lose(monitor: Passthrough, qemu: FakeLibvirtQemu, alive: dict[str, bool]) -> None:
    qemu.error = libvirt_error(libvirt.VIR_ERR_RPC, "client socket is closed")
    alive["alive"] = False
    with pytest.raises(ConnectionLostError):
        monitor.execute("query-jobs")
    qemu.error = None
    alive["alive"] = True
    qemu.asked.clear()


def test_next_call_connects_again_and_asks_for_events_again(
    monitor: Passthrough, qemu: FakeLibvirtQemu, alive: dict[str, bool]
) -> None:
    lose(monitor, qemu, alive)
    qemu.callbacks.clear()  # they went with the connection
    assert monitor.execute("query-jobs") == {}
    assert len(qemu.callbacks) == 1
    qemu.emit('{"id": "j", "status": "pending"}')
    assert monitor.next_event(0) is not None


def test_agent_is_asked_over_the_new_connection(
    monitor: Passthrough, qemu: FakeLibvirtQemu, alive: dict[str, bool]
) -> None:
    """The thaw must not be lost with libvirtd."""
    lose(monitor, qemu, alive)
    assert monitor.agent("guest-fsfreeze-thaw", timeout_s=5) == {}


def test_libvirt_that_stays_away_is_not_waited_for_twice(
    monitor: Passthrough, qemu: FakeLibvirtQemu, alive: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float | None] = []

    def reconnect(_self: DomainHandle, *, timeout_s: float | None = None) -> None:
        waited.append(timeout_s)
        raise HostUnreachableError("qemu:///system", "refused")

    lose(monitor, qemu, alive)
    monkeypatch.setattr(DomainHandle, "reconnect", reconnect)
    for _ in range(3):
        with pytest.raises(HostUnreachableError):
            monitor.execute("query-jobs")
    assert waited == [None, 0, 0]
    assert qemu.asked == []


def test_end_over_a_broken_connection_is_quiet(
    qemu: FakeLibvirtQemu, handle: DomainHandle, alive: dict[str, bool]
) -> None:
    with Passthrough(handle) as monitor:
        lose(monitor, qemu, alive)


# the guest agent


def test_agent_gets_the_arguments_of_a_command(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.reply = '{"return": {"pid": 7}}'
    assert monitor.agent("guest-exec", {"path": "/bin/true"}, timeout_s=5) == {"pid": 7}
    assert qemu.asked[-1][0] == {
        "execute": "guest-exec",
        "arguments": {"path": "/bin/true"},
    }


def test_agent_is_asked_with_its_own_time_limit(monitor: Passthrough, qemu: FakeLibvirtQemu) -> None:
    qemu.reply = '{"return": 2}'
    assert monitor.agent("guest-fsfreeze-freeze", timeout_s=10) == 2
    assert qemu.asked == [({"execute": "guest-fsfreeze-freeze"}, 10)]


@pytest.mark.parametrize("code", [libvirt.VIR_ERR_INTERNAL_ERROR, 113], ids=["9.0", "11.2"])
def test_error_of_the_agent_differs_from_its_silence(monitor: Passthrough, qemu: FakeLibvirtQemu, code: int) -> None:
    """Since libvirt 11.2 it is VIR_ERR_AGENT_COMMAND_FAILED."""
    qemu.error = libvirt_error(code, "unable to execute QEMU agent command: disabled")
    with pytest.raises(QmpError, match="disabled"):
        monitor.agent("guest-fsfreeze-freeze", timeout_s=10)
    qemu.error = libvirt_error(libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding")
    with pytest.raises(MonitorError, match="not responding"):
        monitor.agent("guest-ping", timeout_s=5)
