"""QMP to a domain's QEMU through libvirt: monitor passthrough, guest agent, monitor events.

libvirt keeps using the same monitor. It marks the domain as tainted (custom-monitor) and ignores jobs and nodes that
are not its own. API: https://libvirt.org/html/libvirt-libvirt-qemu.html
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import libvirt_qemu

from vbackup.domain.host import (
    AGENT_REPLIED,
    FDS_NOT_PASSED,
    NO_SUPPORT,
    OPERATION_TIMEOUT,
    SYSTEM_ERROR,
    DomainHandle,
    error_code,
)
from vbackup.errors import (
    ConnectionLostError,
    DomainGoneError,
    FdsNotPassedError,
    HostUnreachableError,
    MalformedError,
    MonitorError,
    QmpError,
    StateLockedError,
    UnsuitableError,
)
from vbackup.fields import Fields
from vbackup.qemu.monitor import Event
from vbackup.qemu.reply import parse

log = logging.getLogger(__name__)

#: The job events, as a regular expression for libvirt.
_EVENTS = "^(JOB_STATUS_CHANGE|BLOCK_JOB_ERROR)$"
_REGEX = 1  # VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX, which the Python binding lacks
#: How long to wait for the end of the domain after an error of the monitor. QEMU refuses a command with a reply, so
#: such an error is rare.
ENDING_S = 2.0
#: The same after the socket to QEMU broke: QEMU is certainly ending. libvirt notices when the process is gone, which
#: takes as long as the kernel writes its core dump.
BROKEN_OFF_S = 30.0


class Passthrough:
    """The monitor (vbackup.qemu.monitor.Monitor) and guest agent of a running domain. A context manager.

    The first call after a lost connection reconnects. Entering raises UnsuitableError if the domain's driver has no
    QEMU monitor.
    """

    def __init__(self, handle: DomainHandle) -> None:
        self._handle = handle
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._registered: int | None = None
        self._lost = False
        self._stayed_away = False

    def __enter__(self) -> Passthrough:
        self._register()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._deregister()

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, fd: int | None = None) -> Any:
        """Execute a QMP command by virDomainQemuMonitorCommand; a descriptor goes WithFiles (libvirt 8.2).

        Also raises DomainGoneError if the domain has ended.
        """
        request = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        log.debug("%s: %s", self._handle.name, request)
        text = self._call(command, request, fd)
        log.debug("%s: %s", self._handle.name, text)
        return parse(command, text)

    def next_event(self, timeout_s: float) -> Event | None:
        """Return the next job event that libvirt's event thread has delivered."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def agent(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: int) -> Any:
        """Send a command to the guest agent and return the "return" member of its reply.

        Waits at most ``timeout_s`` seconds (virDomainQemuAgentCommand); libvirt's virDomainFSFreeze has no limit.
        Raises MonitorError if the agent does not answer, QmpError if it answers with an error, ConnectionLostError,
        DomainGoneError.
        """
        self._reconnect_if_lost()
        request = json.dumps({"execute": command, **({"arguments": dict(arguments)} if arguments else {})})
        try:
            with self._errors(f"run guest agent command {command}"):
                text = libvirt_qemu.qemuAgentCommand(self._handle.domain, request, timeout_s, 0)
        except MonitorError as err:
            if error_code(err.__cause__) in AGENT_REPLIED:
                raise QmpError(command, "GenericError", str(err)) from err
            raise
        return parse(command, text)

    def _call(self, command: str, request: str, fd: int | None) -> str:
        self._reconnect_if_lost()
        if fd is not None and not self._handle.host.passes_fds:
            raise FdsNotPassedError(
                f"The libvirt connection {self._handle.host.real_uri} cannot carry file descriptors."
            )
        with self._errors(f"execute {command}", ending_s=ENDING_S):
            if fd is None:
                reply: str = libvirt_qemu.qemuMonitorCommand(self._handle.domain, request, 0)
                return reply
            answer = self._with_fd(request, fd)
            text: str = answer[0] if isinstance(answer, tuple) else answer
            return text

    def _with_fd(self, request: str, fd: int) -> Any:
        try:
            return libvirt_qemu.qemuMonitorCommandWithFiles(self._handle.domain, request, [fd], 0)
        except Exception as err:
            if error_code(err) in FDS_NOT_PASSED:
                raise FdsNotPassedError(str(err)) from err
            raise

    def _reconnect_if_lost(self) -> None:
        if not self._lost:
            return
        log.warning("Domain %s: the connection to libvirt broke; reconnecting", self._handle.name)
        try:
            # After one wait in vain, each remaining undo step tries once and does not wait again.
            self._handle.reconnect(timeout_s=0 if self._stayed_away else None)
        except HostUnreachableError:
            self._stayed_away = True
            raise
        self._lost = self._stayed_away = False
        self._register()

    def _register(self) -> None:
        try:
            with self._errors("register for job events"):
                self._registered = libvirt_qemu.qemuMonitorEventRegister(
                    self._handle.host.connection, self._handle.domain, _EVENTS, self._on_event, None, _REGEX
                )
        except MonitorError as err:
            if error_code(err.__cause__) == NO_SUPPORT:
                raise UnsuitableError(
                    f"Domain {self._handle.name} has no QEMU monitor; vbackup backs up only domains of QEMU and KVM."
                ) from err
            raise

    def _deregister(self) -> None:
        if self._registered is None or self._lost:
            return
        try:
            with self._errors("deregister from job events"):
                libvirt_qemu.qemuMonitorEventDeregister(self._handle.host.connection, self._registered)
        except (ConnectionLostError, DomainGoneError, MonitorError) as err:
            log.debug("domain %s: %s", self._handle.name, err)
        self._registered = None

    def _on_event(
        self, _connection: Any, _domain: Any, event: str, _seconds: int, _micros: int, details: str | None, _opaque: Any
    ) -> None:
        """Queue the event. libvirt's event thread calls this, so it must return at once."""
        try:
            data = json.loads(details or "{}")
            Fields(data, event, MalformedError)
        except (ValueError, MalformedError) as err:
            log.warning("Domain %s: cannot parse event %s: %s", self._handle.name, event, err)
            return
        self._events.put(Event(event, data))

    @contextmanager
    def _errors(self, what: str, *, ending_s: float = 0) -> Iterator[None]:
        """Translate libvirt's errors (see ``Host.errors``), and raise DomainGoneError if the domain has ended.

        After an error it waits up to ``ending_s`` seconds for the domain to end.
        """
        try:
            with self._handle.host.errors(what):
                yield
        except ConnectionLostError:
            self._lost = True
            raise
        except FdsNotPassedError:
            raise
        except MonitorError as err:
            if error_code(err.__cause__) == OPERATION_TIMEOUT:
                raise StateLockedError(self._handle.name, str(err.__cause__)) from err
            broke_off = ending_s > 0 and error_code(err.__cause__) == SYSTEM_ERROR
            if self._has_ended(within_s=BROKEN_OFF_S if broke_off else ending_s):
                raise DomainGoneError(self._handle.name) from err
            raise

    def _has_ended(self, *, within_s: float) -> bool:
        """Return True if the domain ends in that time: libvirt sees the monitor break before it sees the end."""
        deadline = time.monotonic() + within_s
        pause = threading.Event()
        try:
            while self._handle.is_active():
                if time.monotonic() >= deadline:
                    return False
                pause.wait(0.05)
        except (ConnectionLostError, MonitorError) as err:
            log.debug("domain %s: state unknown: %s", self._handle.name, err)
            return False
        return True
